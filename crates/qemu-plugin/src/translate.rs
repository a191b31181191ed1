//! The translation callback: captures pages, compares, and plants marks.

use std::cell::RefCell;

use nephoscope_guest::{Coverage, GapReason, Gpa, Gva, PAGE_SIZE, Root};
use nephoscope_isa::Walker;
use nephoscope_wire::{Captured, Frame, NO_FRAME};

use crate::api::{CB_R_REGS, INLINE_STORE_U64, Insn, Tb};
use crate::collect::{before_root_change, before_unmarked_block, pack};
use crate::counters::Count;
use crate::decode::{Mode, RootChange, root_change};
use crate::frames::{First, FrameKey, PageMemory, Seen};
use crate::memory::{copy_page, page_equals};
use crate::pending::Run;
use crate::plugin::{Plugin, guarded, now_ns};
use crate::registers::{CpuState, Registers};
use crate::vcpu::{Loaded, Vcpu};

/// The longest x86 instruction.
const LONGEST_INSN: usize = 15;
/// The longest block: QEMU ends one after 512 instructions (`TCG_MAX_INSNS`), or with its second page.
const LONGEST_BLOCK: usize = 2 * PAGE_SIZE;

thread_local! {
    /// The bytes of the block being translated: one buffer per thread, because clearing one per block is not for nothing.
    static CODE: RefCell<Box<[u8; LONGEST_BLOCK]>> = RefCell::new(Box::new([0; LONGEST_BLOCK]));
}

/// QEMU translated a block, which is about to run.
pub(crate) extern "C" fn on_translation(a: u64, b: u64) {
    guarded(|plugin| {
        let tb = std::ptr::with_exposed_provenance_mut::<Tb>(
            usize::try_from(if a == plugin.id { b } else { a }).unwrap_or(0),
        );
        plugin.translated(tb);
    });
}

/// The part of a block that lies in one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    va: u64,
    host: Option<u64>,
    start: u16,
    end: u16,
}

/// The contents of the page of a piece.
struct Contents<'a> {
    plugin: &'a Plugin,
    piece: Piece,
}

impl PageMemory for Contents<'_> {
    fn equals(&self, bytes: &[u8; PAGE_SIZE]) -> bool {
        match self.piece.host {
            Some(host) => page_equals(host, bytes),
            None => {
                let mut now = [0; PAGE_SIZE];
                self.read(&mut now).is_some() && now == *bytes
            }
        }
    }

    fn read(&self, bytes: &mut [u8; PAGE_SIZE]) -> Option<()> {
        match self.piece.host {
            Some(host) => copy_page(host, bytes),
            None => {
                let read =
                    |buffer: &crate::registers::Buffer| buffer.memory(&self.plugin.api, self.piece.va, bytes);
                self.plugin.with_buffer(read)?;
            }
        }
        Some(())
    }
}

impl Plugin {
    fn translated(&self, tb: *mut Tb) {
        self.counters.add(Count::Translations, 1);
        let Some(vcpu) = self.thread_vcpu().or_else(|| self.vcpus.first()) else {
            return;
        };
        let at = (self.api.tb_vaddr)(tb);
        let state = |registers: &Registers| self.with_buffer(|buffer| registers.state(&self.api, buffer, at));
        let Some(state) = self.registers.get().and_then(state) else {
            return self.unreadable(vcpu);
        };
        let pieces = self.pieces(tb, state);
        CODE.with_borrow_mut(|buffer| {
            let code = self.code(tb, buffer);
            let mut from = 0;
            for piece in pieces.into_iter().flatten() {
                let to = from + usize::from(piece.end.saturating_sub(piece.start));
                let seen = code
                    .get(from..to)
                    .and_then(|code| self.piece(vcpu, tb, state, piece, code));
                if seen.is_none() {
                    self.unreadable(vcpu);
                }
                from = to;
            }
        });
        if !state.user {
            self.watch_root_changes(tb, state);
        }
    }

    /// The root as it is now, and how its tables are read: needed for few blocks, so read for those only.
    fn root(&self, state: CpuState) -> Option<(u64, nephoscope_isa::Mode)> {
        let registers = self.registers.get()?;
        self.with_buffer(|buffer| registers.root(&self.api, buffer, state.long))
    }

    /// The bytes that were translated: those that will run, whatever memory holds by now.
    fn code<'a>(&self, tb: *mut Tb, buffer: &'a mut [u8; LONGEST_BLOCK]) -> &'a [u8] {
        let mut len = 0;
        for number in 0..(self.api.tb_n_insns)(tb) {
            let insn = (self.api.tb_get_insn)(tb, number);
            let Some(rest) = buffer.get_mut(len..).filter(|_| !insn.is_null()) else {
                break;
            };
            // Copies no more than the instruction has, and says how much that was.
            let size = (self.api.insn_data)(insn, rest.as_mut_ptr(), rest.len().min(LONGEST_INSN));
            if size == 0 {
                break;
            }
            len += size;
        }
        buffer.get(..len).unwrap_or(&[])
    }

    /// Splits a block by page: a block is a run of consecutive instructions, so it has at most two pages.
    fn pieces(&self, tb: *mut Tb, state: CpuState) -> [Option<Piece>; 2] {
        let count = (self.api.tb_n_insns)(tb);
        let first = (self.api.tb_get_insn)(tb, 0);
        let last = (self.api.tb_get_insn)(tb, count.saturating_sub(1));
        if count == 0 || first.is_null() || last.is_null() {
            return [None, None];
        }
        let start = (self.api.insn_vaddr)(first);
        let end = (self.api.insn_vaddr)(last).wrapping_add((self.api.insn_size)(last) as u64);
        let page = PAGE_SIZE as u64;
        let va = start & !(page - 1);
        let length = end.wrapping_sub(start);
        let offset = start - va;
        let host = page_host(&self.api, first, offset);
        let in_first = length.min(page - offset);
        let bounds = |from: u64, len: u64| {
            (
                u16::try_from(from).unwrap_or(0),
                u16::try_from((from + len).min(page)).unwrap_or(4096),
            )
        };
        let (from, to) = bounds(offset, in_first);
        let piece = Piece {
            va,
            host,
            start: from,
            end: to,
        };
        if length <= in_first {
            return [Some(piece), None];
        }
        let va = va.wrapping_add(page);
        let (from, to) = bounds(0, length - in_first);
        let second = Piece {
            va,
            host: self.second_host(tb, count, va, state),
            start: from,
            end: to,
        };
        [Some(piece), Some(second)]
    }

    /// Where the second page of a block lies: an instruction that starts in it knows; if only the tail of one that
    /// crosses is in it, the page tables do.
    fn second_host(&self, tb: *mut Tb, count: usize, va: u64, state: CpuState) -> Option<u64> {
        self.counters.add(Count::CrossingInstructions, 1);
        let last = (self.api.tb_get_insn)(tb, count - 1);
        let at = (self.api.insn_vaddr)(last);
        if at >= va {
            return page_host(&self.api, last, at - va);
        }
        let gpa = if state.paging {
            let registers = self.registers.get()?;
            let (root, mode) =
                self.with_buffer(|buffer| registers.root_and_levels(&self.api, buffer, state.long))?;
            // Any doubt is no answer: the page is captured without its frame then.
            let walker = Walker::new(mode, &self.memory);
            walker.translate(Root(root), Gva(va)).ok()?.gpa
        } else {
            Gpa(va)
        };
        self.memory.host(gpa, PAGE_SIZE)
    }

    /// `None`: the page or a register cannot be read.
    fn piece(&self, vcpu: &Vcpu, tb: *mut Tb, state: CpuState, piece: Piece, code: &[u8]) -> Option<()> {
        let key = match piece.host {
            Some(host) => {
                if self.follow.is_some() {
                    self.frames.is_translated(host);
                }
                FrameKey::Host(host)
            }
            None => {
                let root = if state.paging { self.root(state)?.0 } else { 0 };
                FrameKey::Virtual { root, va: piece.va }
            }
        };
        let mut forgotten = 0;
        let seen = self.frames.translated(
            key,
            piece.start,
            code,
            &Contents { plugin: self, piece },
            &mut forgotten,
        );
        if forgotten > 0 {
            self.counters.add(Count::FramesForgotten, forgotten);
        }
        let (page, mark) = match seen? {
            Seen::Same { page, mark, extended } => {
                if extended && self.is_attached() {
                    let (start, end) = (piece.start, piece.end);
                    let mut local = vcpu.lock();
                    if !local.pending.add(Run { page, start, end }) {
                        self.tell_pending(vcpu, &mut local, true);
                    }
                }
                (page, mark)
            }
            Seen::New {
                page,
                generation,
                bytes,
            } => {
                self.captured(vcpu, state, key, piece, page, generation, &bytes)?;
                (page, None)
            }
        };
        if state.user {
            let mark = mark.or_else(|| {
                self.frames
                    .mark(key, page, || self.marks.allocate(self.api.scoreboard_new, page))
            });
            self.plant(tb, page, mark);
            self.locate(vcpu, state, page, mark, piece.va);
        }
        Some(())
    }

    #[expect(clippy::too_many_arguments, reason = "one capture has these facts")]
    fn captured(
        &self,
        vcpu: &Vcpu,
        state: CpuState,
        key: FrameKey,
        piece: Piece,
        page: u64,
        generation: u32,
        now: &[u8; PAGE_SIZE],
    ) -> Option<()> {
        let (root, _) = self.root(state)?;
        self.counters.add(
            if generation == 0 {
                Count::Captures
            } else {
                Count::Recaptures
            },
            1,
        );
        let frame = match key {
            FrameKey::Host(host) => host,
            FrameKey::Virtual { .. } => {
                self.counters.add(Count::CapturesWithoutFrame, 1);
                NO_FRAME
            }
        };
        let controls = self
            .registers
            .get()
            .filter(|_| state.paging)
            .and_then(|registers| self.with_buffer(|buffer| registers.controls(&self.api, buffer)));
        let captured = Captured {
            frame,
            root,
            va: piece.va,
            generation,
            start: piece.start,
            end: piece.end,
            user: state.user,
            paging: state.paging,
            replay: false,
            bits: bits(state),
            controls,
        };
        let (va, user) = (piece.va, state.user);
        let (paging, bits) = (state.paging, captured.bits);
        self.frames.describe(
            key,
            page,
            First {
                root,
                va,
                user,
                paging,
                bits,
            },
        );
        self.push(
            vcpu,
            &mut vcpu.lock(),
            &Frame::Captured(captured, now),
            page,
            true,
        );
        Some(())
    }

    fn plant(&self, tb: *mut Tb, page: u64, mark: Option<u32>) {
        if let Some(place) = mark.and_then(|mark| self.marks.place(mark)) {
            (self.api.tb_exec_inline)(tb, INLINE_STORE_U64, place, 1);
        } else {
            self.counters.add(Count::MarksExhausted, 1);
            let data = std::ptr::without_provenance_mut(usize::try_from(page).unwrap_or(0));
            (self.api.tb_exec)(tb, before_unmarked_block, CB_R_REGS, data);
        }
    }

    /// Says where this root sees the page, once per address space; marks do not know addresses.
    fn locate(&self, vcpu: &Vcpu, state: CpuState, page: u64, mark: Option<u32>, va: u64) {
        if !state.paging || !self.is_attached() {
            return;
        }
        let Some(mark) = mark else { return };
        let mut local = vcpu.lock();
        if let Loaded::Known { incarnation, .. } = local.loaded
            && local.located.has(incarnation, mark)
        {
            return;
        }
        let Some((root, mode)) = self.root(state) else {
            return;
        };
        if !self.round_robin.load(std::sync::atomic::Ordering::Relaxed) && local.loaded == Loaded::Unknown {
            local.loaded = self.known(root, &mode);
            vcpu.now_loaded(local.loaded);
        }
        let Loaded::Known { incarnation, .. } = local.loaded else {
            return;
        };
        if !local.located.has(incarnation, mark)
            && self.push(vcpu, &mut local, &Frame::Located { root, va }, page, false)
        {
            local.located.set(incarnation, mark);
        }
    }

    fn unreadable(&self, vcpu: &Vcpu) {
        let now = now_ns();
        let gap = Frame::Gap {
            from_ns: now,
            to_ns: now,
            lost: 1,
            left: Coverage::BLIND,
            reason: GapReason::PageUnreadable,
        };
        self.push(vcpu, &mut vcpu.lock(), &gap, 0, true);
    }

    /// Kernel code only: instructions that can change the root are privileged. QEMU ends a block after each of them
    /// (`target/i386/tcg`: they set `is_jmp`), so only the last can be one.
    fn watch_root_changes(&self, tb: *mut Tb, state: CpuState) {
        let last = (self.api.tb_n_insns)(tb).wrapping_sub(1);
        let insn = (self.api.tb_get_insn)(tb, last);
        if insn.is_null() {
            return;
        }
        let mut bytes = [0; LONGEST_INSN];
        let len = (self.api.insn_data)(insn, bytes.as_mut_ptr(), LONGEST_INSN).min(LONGEST_INSN);
        let mode = Mode {
            bits: bits(state),
            long: state.long,
            protected: state.protected,
        };
        match root_change(bytes.get(..len).unwrap_or(&[]), mode) {
            Some(RootChange::MovCr3(general)) => {
                (self.api.insn_exec)(
                    insn,
                    before_root_change,
                    CB_R_REGS,
                    pack(Some(general), state.long),
                );
            }
            Some(RootChange::Other) => {
                (self.api.insn_exec)(insn, before_root_change, CB_R_REGS, pack(None, state.long))
            }
            None => {}
        }
    }
}

/// The host address of the page an instruction starts in, if QEMU has it in memory.
fn page_host(api: &crate::api::Api, insn: *const Insn, offset: u64) -> Option<u64> {
    let host = (api.insn_haddr)(insn) as u64;
    let page = host.checked_sub(offset)?;
    (host != 0 && page.is_multiple_of(PAGE_SIZE as u64)).then_some(page)
}

/// The width of the code segment, as far as registers tell: QEMU shows selectors, not descriptors. In long mode, code
/// below 4 GiB may be in compatibility mode; it is read as 64-bit code, which only matters for showing it.
fn bits(state: CpuState) -> u8 {
    match (state.long, state.protected) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}
