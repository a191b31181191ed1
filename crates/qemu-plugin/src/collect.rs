//! Collecting marks: at every root change, when a vCPU idles, and when the collector's thread (`collector.rs`) asks.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::Ordering;

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, GapReason};
use nephoscope_isa::Mode;
use nephoscope_wire::Frame;

use crate::counters::Count;
use crate::plugin::{Plugin, guarded, now_ns};
use crate::vcpu::{Loaded, Local, Vcpu};

/// What an instruction that may change the root carries to its callback.
pub(crate) fn pack(general: Option<u8>, long: bool) -> *mut c_void {
    // 1 to 16: the register; 17: the new root cannot be known in advance. A block is of one mode.
    let register = general.map_or(17, |number| usize::from(number) + 1);
    std::ptr::without_provenance_mut(register | if long { LONG } else { 0 })
}

/// In what [`pack`] makes: the instruction runs in long mode.
const LONG: usize = 1 << 8;

/// Before an instruction that may change the root.
pub(crate) extern "C" fn before_root_change(vcpu: c_uint, data: *mut c_void) {
    guarded(|plugin| {
        let Some(vcpu) = plugin.vcpus.get(vcpu as usize) else {
            return;
        };
        // Also while no monitor is attached: what a later one is told of address spaces holds through the time between.
        plugin.counters.add(Count::RootChanges, 1);
        let Some(registers) = plugin.registers.get() else {
            return;
        };
        plugin.with_buffer(|buffer| {
            let mut local = vcpu.lock();
            let outgoing = registers.root(&plugin.api, buffer, data.addr() & LONG != 0);
            plugin.leave(vcpu, &mut local, outgoing, true);
            if let Some((outgoing, _)) = outgoing {
                local.recent.left(outgoing, &plugin.roots, &plugin.memory);
            }
            let number = u8::try_from(data.addr() & !LONG)
                .ok()
                .filter(|n| (1..=16).contains(n))
                .map(|n| n - 1);
            let value = number.and_then(|number| registers.general(&plugin.api, buffer, number));
            local.loaded = match (value, outgoing) {
                (Some(cr3), Some((_, mode))) => plugin.known(mode.root(cr3).0, &mode),
                _ => Loaded::Unknown,
            };
            if vcpu.now_loaded(local.loaded) {
                plugin.close_files();
            }
        });
    });
}

/// A block whose page has no mark left is about to run: `data` is its page generation.
pub(crate) extern "C" fn before_unmarked_block(vcpu: c_uint, data: *mut c_void) {
    guarded(|plugin| {
        let Some(vcpu) = plugin.vcpus.get(vcpu as usize) else {
            return;
        };
        let Some(registers) = plugin.registers.get() else {
            return;
        };
        let loaded = plugin.with_buffer(|buffer| {
            let long = registers.is_long(&plugin.api, buffer)?;
            registers.root(&plugin.api, buffer, long)
        });
        let Some((root, mode)) = loaded else { return };
        let Loaded::Known { root, incarnation } = plugin.known(root, &mode) else {
            return;
        };
        let mut local = vcpu.lock();
        let page = data.addr() as u64;
        if !local.unmarked.is_new(incarnation, page) {
            return;
        }
        if plugin.push(
            vcpu,
            &mut local,
            &Frame::Executed { root, incarnation },
            page,
            true,
        ) {
            plugin.counters.add(Count::ExecutedSent, 1);
        }
    });
}

/// A vCPU has nothing to do. QEMU holds its big lock here, so nothing waits.
pub(crate) extern "C" fn on_idle(a: u64, b: u64) {
    guarded(|plugin| {
        let index = if a == plugin.id { b } else { a };
        let Some(vcpu) = usize::try_from(index & 0xffff_ffff)
            .ok()
            .and_then(|i| plugin.vcpus.get(i))
        else {
            return;
        };
        if plugin.is_attached()
            && let Some(mut local) = vcpu.try_lock()
        {
            plugin.collect_now(vcpu, &mut local);
        }
    });
}

/// QEMU threw all translations away. No vCPU runs meanwhile.
pub(crate) extern "C" fn on_flush(_: u64, _: u64) {
    guarded(Plugin::flushed);
}

impl Plugin {
    /// The root with its incarnation.
    pub(crate) fn known(&self, root: u64, mode: &Mode) -> Loaded {
        let incarnation = self.roots.loaded(&self.memory, mode, root);
        Loaded::Known { root, incarnation }
    }

    /// The vCPU leaves its root, which `outgoing` read from the CPU. Marks since the last look belong to it if it is
    /// the root that was known then (or none was: every change passes here).
    pub(crate) fn leave(&self, vcpu: &Vcpu, local: &mut Local, outgoing: Option<(u64, Mode)>, wait: bool) {
        let loaded = match (local.loaded, outgoing) {
            (Loaded::Known { root, incarnation }, Some((outgoing, _))) if root == outgoing => {
                Loaded::Known { root, incarnation }
            }
            (Loaded::Unknown, Some((outgoing, mode))) => self.known(outgoing, &mode),
            (Loaded::Known { .. }, _) => {
                // The root changed by a way that gives no event, or MOV CR3 faulted and the old one stayed: whose
                // marks these are cannot be told.
                let lost = self.drop_marks(vcpu);
                if lost > 0 {
                    self.counters.add(Count::RootChangesUnseen, 1);
                    let now = now_ns();
                    let left = Coverage {
                        code: CodeCoverage::Complete,
                        attribution: Attribution::Sampled,
                    };
                    let reason = GapReason::RootChangedUnseen;
                    let from_ns = now.saturating_sub(self.config.collect_ms * 1_000_000);
                    let gap = Frame::Gap {
                        from_ns,
                        to_ns: now,
                        lost,
                        left,
                        reason,
                    };
                    self.push(vcpu, local, &gap, 0, wait);
                }
                local.loaded = Loaded::Unknown;
                vcpu.now_loaded(local.loaded);
                return;
            }
            (Loaded::Unknown, None) => return,
        };
        local.loaded = loaded;
        vcpu.now_loaded(loaded);
        self.collect(vcpu, local, 0, wait);
    }

    /// Collects for a vCPU whose root is known, without waiting.
    fn collect_now(&self, vcpu: &Vcpu, local: &mut Local) {
        self.collect(vcpu, local, 0, false);
    }

    /// The same, but only marks from this one on.
    pub(crate) fn collect_some(&self, vcpu: &Vcpu, local: &mut Local, from: u32) {
        self.collect(vcpu, local, from, false);
    }

    /// Tells which bytes of known pages began to run. Without `wait`, what there is no room for waits for the next time.
    pub(crate) fn tell_pending(&self, vcpu: &Vcpu, local: &mut Local, wait: bool) {
        if local.pending.is_empty() {
            return;
        }
        let mut pending = std::mem::take(&mut local.pending);
        if self.is_attached() {
            pending.tell(|run| {
                let (start, end) = (run.start, run.end);
                self.push(vcpu, local, &Frame::Extended { start, end }, run.page, wait) || wait
            });
        } else {
            // A monitor that comes is told all that ran of each page.
            pending.clear();
        }
        local.pending = pending;
    }

    fn collect(&self, vcpu: &Vcpu, local: &mut Local, from: u32, wait: bool) {
        let Loaded::Known { root, incarnation } = local.loaded else {
            return;
        };
        self.counters.add(Count::Collections, 1);
        let mut any = false;
        self.marks
            .collect(&self.api, u32::from(vcpu.index), from, |mark| {
                any = true;
                if local.said.has(incarnation, mark) {
                    return true;
                }
                let Some(page) = self.marks.page(mark) else {
                    return true;
                };
                let sent = self.push(vcpu, local, &Frame::Executed { root, incarnation }, page, wait);
                if sent {
                    self.counters.add(Count::ExecutedSent, 1);
                    local.said.set(incarnation, mark);
                }
                // What was not sent stays marked if it may still be attributed later; at a root change it may not, and
                // `push` has counted it.
                sent || wait
            });
        if any {
            self.roots.ran_user_code(&self.memory, root);
        }
    }

    fn drop_marks(&self, vcpu: &Vcpu) -> u64 {
        let mut lost = 0;
        self.marks.collect(&self.api, u32::from(vcpu.index), 0, |_| {
            lost += 1;
            true
        });
        lost
    }

    /// Forgets what was said and marked, for a new monitor. Gives the time since when frames were being lost, if they were.
    pub(crate) fn forget_marks(&self) -> Option<u64> {
        let mut lost_since = None;
        for vcpu in self
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.started.load(Ordering::Acquire))
        {
            let mut local = vcpu.lock();
            self.drop_marks(vcpu);
            local.forget_said();
            let losing = local.losing.take().map(|(since, _)| since);
            lost_since = losing.into_iter().chain(lost_since).min();
        }
        lost_since
    }

    /// The machine was reset: whoever has a root from now on is another address space. What ran in the last moments before is
    /// still marked, and is not the next root's.
    pub(crate) fn forget_roots(&self) {
        for vcpu in &self.vcpus {
            self.collect_now(vcpu, &mut vcpu.lock());
        }
        self.roots.forget();
        for vcpu in &self.vcpus {
            let mut local = vcpu.lock();
            local.loaded = Loaded::Unknown;
            vcpu.now_loaded(local.loaded);
            local.forget_said();
        }
    }

    /// QEMU threw all translations away. It does so when guest memory was replaced beneath them (a snapshot was loaded): then
    /// address spaces are others if their tables are, and what runs on has to be said again. It also does so when its cache
    /// is full, when this changes nothing.
    pub(crate) fn flushed(&self) {
        self.frames.none_is_translated();
        self.roots.look_at_all(&self.memory);
        for vcpu in &self.vcpus {
            let mut local = vcpu.lock();
            self.collect_now(vcpu, &mut local);
            local.loaded = Loaded::Unknown;
            vcpu.now_loaded(local.loaded);
            local.forget_said();
        }
    }

    /// Sends the counters.
    pub(crate) fn send_counters(&self) {
        if let Some(vcpu) = self
            .vcpus
            .iter()
            .find(|vcpu| vcpu.started.load(Ordering::Acquire))
            && let Some(mut local) = vcpu.try_lock()
        {
            self.push(
                vcpu,
                &mut local,
                &Frame::Counters(self.counters.values()),
                0,
                false,
            );
        }
    }
}
