//! What is mapped executable, looked at from time to time: for every way into a guest that only lends its memory.
//!
//! ```text
//!  one pass:  each root of a process ─► executable leaves of its lower half ─┐
//!             kernel halves, each table once ─► executable leaves ───────────┴─► pages: new or changed ones are captured
//!                                                                                └─► CodeMapped, for each root
//! ```
//!
//! A frame that several address spaces map is read once in a pass. What is between two passes is not seen.

use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::quality::RandomState;
use foldhash::{HashMap, HashSet};
use nephoscope_guest::{
    CodeCaptured, CodeMapped, Event, Gpa, Gva, MappedPage, PAGE_SIZE, PageBytes, PageId, PhysicalMemory,
    Privilege, Root,
};
use nephoscope_isa::{Bounds, Leaf, Mode, RootKind, Roots, Walker, Want};

/// Frames that are read in one pass, at most: 4 GiB of code. It stops a guest that maps all its memory executable.
const MAX_FRAMES: usize = 1 << 20;
/// Work of the walk through one address space.
const BOUNDS: Bounds = Bounds {
    tables: 1 << 14,
    leaves: 1 << 20,
};
/// What one pass did and could not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pass {
    /// Address spaces looked at.
    pub spaces: u64,
    /// Executable pages that they map, counted for each.
    pub mapped: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Of them, those that were new or had changed.
    pub captured: u64,
    /// Frames that could not be read: devices, or memory that a dump does not have.
    pub unreadable: u64,
    /// Walks that did not see all of an address space.
    pub cut_short: u64,
    /// Pages beyond the bounds.
    pub left_out: u64,
}

/// A frame as it was read last.
#[derive(Clone, Copy, Debug)]
struct Known {
    page: PageId,
    generation: u32,
    /// Of its bytes. The key is random, so that no guest can make two contents with one hash.
    hash: u64,
    /// In which pass.
    pass: u32,
}

/// What is remembered from pass to pass.
#[derive(Debug)]
pub struct Sampler {
    frames: HashMap<u64, Known>,
    hasher: RandomState,
    roots: Arc<Roots>,
    seen: HashSet<u64>,
    next_page: u64,
    pass: u32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::among(Arc::new(Roots::new()), 1)
    }
}

impl Sampler {
    /// One that tells address spaces apart as another driver does, and whose pages have numbers from this one on.
    pub(crate) fn among(roots: Arc<Roots>, first_page: u64) -> Self {
        Self {
            frames: HashMap::default(),
            hasher: RandomState::default(),
            roots,
            seen: HashSet::default(),
            next_page: first_page,
            pass: 0,
        }
    }

    /// Looks at all that `roots` map executable and gives it as events. `at` is told the address spaces done, for progress.
    pub fn pass<M: PhysicalMemory>(
        &mut self,
        memory: &M,
        mode: &Mode,
        roots: &[(Root, RootKind)],
        give: &mut dyn FnMut(Event),
        at: &mut dyn FnMut(usize),
    ) -> Pass {
        self.pass = self.pass.wrapping_add(1);
        let mut pass = Pass::default();
        let mut halves = mode.spaces();
        let (first, second) = (halves.next(), halves.next());
        let (user, kernel) = match (first, second) {
            (Some(user), Some(kernel)) => (user, kernel),
            // 32 bits: one space, in whose upper half the kernel is; where it begins is the guest's choice.
            (Some(all), None) => (all.clone(), all),
            _ => return pass,
        };
        let one_space = user == kernel;
        let mut kernel_pages: HashMap<u64, MappedPage> = HashMap::default();
        let mut kernels: HashSet<(u16, u64)> = HashSet::default();
        let all: HashSet<Root> = roots.iter().map(|(root, _)| *root).collect();
        for (number, (root, kind)) in roots.iter().enumerate() {
            at(number);
            pass.spaces += 1;
            let walker = Walker::new(*mode, memory);
            // Isolated page tables: user code runs on the second of two roots, which are one address space. It has that one's
            // name, as where what runs is seen.
            let pair = walker
                .isolation_pair(*root, &mode.user_half())
                .ok()
                .flatten()
                .filter(|pair| [pair.kernel, pair.user].iter().all(|root| all.contains(root)));
            let (named, runs_user_code) = match pair {
                Some(pair) => (pair.user, pair.user == *root),
                None => (*root, *kind == RootKind::Process),
            };
            let mut leaves = Vec::new();
            let mut walk = |range: &RangeInclusive<Gva>, pass: &mut Pass| {
                let census = walker.leaves(*root, range, Want::Executable, BOUNDS, |leaf| leaves.push(leaf));
                pass.cut_short += u64::from(census.is_cut_short());
            };
            if runs_user_code || one_space {
                walk(&user, &mut pass);
            }
            if !one_space {
                for range in new_ranges(&walker, *root, &kernel, &mut kernels) {
                    walk(&range, &mut pass);
                }
            }
            let mut own = Vec::new();
            for leaf in leaves {
                self.leaf(memory, *root, &leaf, mode, give, &mut pass, &mut |page| {
                    if leaf.permissions.user {
                        own.push(page);
                    } else {
                        kernel_pages.insert(page.va.0, page);
                    }
                });
            }
            // One that maps no code has nothing to be named after: it is being made, or taken down.
            if runs_user_code && (!own.is_empty() || self.seen.contains(&root.0)) {
                pass.mapped += own.len() as u64;
                give(Event::CodeMapped(CodeMapped {
                    space: Some((named, self.incarnation(memory, mode, named))),
                    pages: own,
                }));
            }
        }
        pass.mapped += kernel_pages.len() as u64;
        let mut pages: Vec<MappedPage> = kernel_pages.into_values().collect();
        pages.sort_unstable_by_key(|page| page.va);
        give(Event::CodeMapped(CodeMapped { space: None, pages }));
        let now = self.pass;
        self.frames.retain(|_, known| known.pass == now);
        self.forget_roots(roots);
        pass
    }

    /// Which of the address spaces that had this root it is now.
    fn incarnation(&self, memory: &impl PhysicalMemory, mode: &Mode, root: Root) -> u32 {
        let incarnation = self.roots.loaded(memory, mode, root.0);
        self.roots.ran_user_code(memory, root.0);
        incarnation
    }

    /// A root that is gone names another address space if it comes back.
    fn forget_roots(&mut self, roots: &[(Root, RootKind)]) {
        let now: HashSet<u64> = roots.iter().map(|(root, _)| root.0).collect();
        for gone in self.seen.difference(&now) {
            self.roots.gone(*gone);
        }
        self.seen = now;
    }

    /// The pages of a leaf.
    #[expect(
        clippy::too_many_arguments,
        reason = "a leaf of an address space, and where its pages go"
    )]
    fn leaf(
        &mut self,
        memory: &impl PhysicalMemory,
        root: Root,
        leaf: &Leaf,
        mode: &Mode,
        give: &mut dyn FnMut(Event),
        pass: &mut Pass,
        page: &mut dyn FnMut(MappedPage),
    ) {
        let size = PAGE_SIZE as u64;
        for number in 0..leaf.size_bytes / size {
            let (gpa, va) = (leaf.gpa.0 + number * size, leaf.va.0.wrapping_add(number * size));
            let privilege = if leaf.permissions.user {
                Privilege::User
            } else {
                Privilege::Supervisor
            };
            if let Some(known) = self.frame(memory, root, gpa, va, privilege, mode, give, pass) {
                page(MappedPage {
                    page: known,
                    va: Gva(va),
                    accessed: leaf.accessed,
                });
            }
        }
    }

    /// The page that a frame is now; it is captured if it was not known, or has changed.
    #[expect(clippy::too_many_arguments, reason = "one capture has these facts")]
    fn frame(
        &mut self,
        memory: &impl PhysicalMemory,
        root: Root,
        gpa: u64,
        va: u64,
        privilege: Privilege,
        mode: &Mode,
        give: &mut dyn FnMut(Event),
        pass: &mut Pass,
    ) -> Option<PageId> {
        let before = self.frames.get(&gpa).copied();
        if let Some(known) = before.filter(|known| known.pass == self.pass) {
            return Some(known.page);
        }
        if pass.frames >= MAX_FRAMES as u64 {
            pass.left_out += 1;
            return None;
        }
        let mut bytes = PageBytes::zeroed();
        if memory.read(Gpa(gpa), &mut bytes[..]).is_err() {
            pass.unreadable += 1;
            return None;
        }
        pass.frames += 1;
        let hash = self.hasher.hash_one(&bytes[..]);
        let same = before.filter(|known| known.hash == hash);
        let generation = match (same, before) {
            (Some(same), _) => same.generation,
            (None, Some(before)) => before.generation.saturating_add(1),
            (None, None) => 0,
        };
        let page = same.map_or_else(
            || {
                self.next_page += 1;
                PageId(self.next_page - 1)
            },
            |same| same.page,
        );
        let known = Known {
            page,
            generation,
            hash,
            pass: self.pass,
        };
        self.frames.insert(gpa, known);
        if same.is_none() {
            pass.captured += 1;
            give(Event::CodeCaptured(Box::new(CodeCaptured {
                page,
                gpa: Some(Gpa(gpa)),
                // A name that is not 0, which means that there is none.
                frame: gpa | 1,
                generation,
                vcpu: 0,
                root,
                va: Gva(va),
                privilege,
                paging: true,
                bits: mode.code_bits(),
                start: 0,
                end: 0,
                replay: false,
                bytes,
            })));
        }
        Some(page)
    }
}

/// The parts of a kernel half whose top-level entries no other root had.
fn new_ranges<M: PhysicalMemory>(
    walker: &Walker<M>,
    root: Root,
    half: &RangeInclusive<Gva>,
    seen: &mut HashSet<(u16, u64)>,
) -> Vec<RangeInclusive<Gva>> {
    let entries = walker.table_entries(root, half).unwrap_or_default();
    let count = entries.len().max(1) as u64;
    let span = ((half.end().0 - half.start().0) / count).saturating_add(1);
    entries
        .iter()
        .zip(0_u64..)
        .filter(|(entry, _)| entry.present && seen.insert((entry.index, entry.raw & !ACCESSED_AND_DIRTY)))
        .map(|(_, number)| {
            let first = half.start().0 + number * span;
            Gva(first)..=Gva(first + (span - 1))
        })
        .collect()
}

/// What a CPU sets in an entry by itself (x86: bits 5 and 6).
const ACCESSED_AND_DIRTY: u64 = 0x60;

#[cfg(test)]
mod tests {
    use super::*;
    use nephoscope_guest::MemoryFault;
    use std::cell::RefCell;

    const PRESENT: u64 = 0x27;
    const NX: u64 = 1 << 63;

    /// Words where some were written, zeros elsewhere.
    #[derive(Default)]
    struct Memory(RefCell<HashMap<u64, u64>>);

    impl Memory {
        fn write(&self, at: u64, word: u64) {
            self.0.borrow_mut().insert(at, word);
        }
    }

    impl PhysicalMemory for Memory {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
            // Where there are no tables nothing was written.
            buf.fill(0);
            if at.0 < 1 << 20 {
                for (number, word) in buf.chunks_mut(8).enumerate() {
                    let known = self.0.borrow().get(&(at.0 + 8 * number as u64)).copied();
                    word.copy_from_slice(&known.unwrap_or(0).to_le_bytes()[..word.len()]);
                }
            }
            Ok(())
        }
    }

    fn four_levels() -> Mode {
        let [_, four, ..] = Mode::guesses();
        four
    }

    /// A process at 0x1000 with a page of code at 0x8000, one of data behind it, and a page of its kernel's at 0x9000.
    fn guest() -> Memory {
        let memory = Memory::default();
        for (at, word) in [
            (0x1000, 0x2000 | PRESENT),
            (0x2000, 0x3000 | PRESENT),
            (0x3000, 0x4000 | PRESENT),
            (0x4000, 0x8000 | PRESENT),
            (0x4008, 0xa000 | PRESENT | NX),
            (0x1000 + 511 * 8, 0x5000 | PRESENT & !4),
            (0x5000, 0x6000 | PRESENT & !4),
            (0x6000, 0x7000 | PRESENT & !4),
            (0x7000, 0x9000 | PRESENT & !4),
            (0x8000, 1),
            (0x9000, 2),
        ] {
            memory.write(at, word);
        }
        memory
    }

    /// One pass: what was captured (frame and generation), what is mapped by whom, and the counts.
    type Seen = (Vec<(u64, u32)>, Vec<(Option<u64>, Vec<u64>)>, Pass);

    fn pass(sampler: &mut Sampler, memory: &Memory, roots: &[u64]) -> Seen {
        let roots: Vec<_> = roots
            .iter()
            .map(|root| (Root(*root), RootKind::Process))
            .collect();
        let (mut captured, mut mapped) = (Vec::new(), Vec::new());
        let counts = sampler.pass(
            memory,
            &four_levels(),
            &roots,
            &mut |event| match event {
                Event::CodeCaptured(page) => {
                    assert_eq!((page.start, page.end), (0, 0), "nothing is known to have run");
                    captured.push((page.gpa.unwrap().0, page.generation));
                }
                Event::CodeMapped(code) => {
                    let pages = code.pages.iter().map(|page| page.va.0).collect();
                    mapped.push((code.space.map(|(root, _)| root.0), pages));
                }
                other => panic!("{other:?}"),
            },
            &mut |_| {},
        );
        (captured, mapped, counts)
    }

    const KERNEL_VA: u64 = 0xffff_ff80_0000_0000;

    #[test]
    fn what_is_mapped_executable_is_captured_once_and_told_in_every_pass() {
        let (mut sampler, memory) = (Sampler::default(), guest());
        let mapped = vec![(Some(0x1000), vec![0]), (None, vec![KERNEL_VA])];
        let (captured, told, counts) = pass(&mut sampler, &memory, &[0x1000]);
        assert_eq!(captured, [(0x8000, 0), (0x9000, 0)]);
        assert_eq!(told, mapped);
        assert_eq!((counts.mapped, counts.frames, counts.captured), (2, 2, 2));
        let (captured, told, _) = pass(&mut sampler, &memory, &[0x1000]);
        assert_eq!((captured.len(), told), (0, mapped.clone()));
        memory.write(0x8ff8, 7);
        let (captured, told, _) = pass(&mut sampler, &memory, &[0x1000]);
        assert_eq!((captured, told), (vec![(0x8000, 1)], mapped));
    }

    #[test]
    fn what_address_spaces_share_is_read_once() {
        let (mut sampler, memory) = (Sampler::default(), guest());
        for at in [0x1000_u64, 0x1000 + 511 * 8] {
            let word = memory.0.borrow()[&at];
            memory.write(0xb000 + (at & 0xfff), word);
        }
        let (captured, told, counts) = pass(&mut sampler, &memory, &[0x1000, 0xb000]);
        assert_eq!((captured.len(), counts.frames, counts.mapped), (2, 2, 3));
        assert_eq!(told.len(), 3, "two processes and the kernel");
    }

    #[test]
    fn max_frames_bounds_a_guest_that_maps_all_its_memory_executable() {
        let memory = Memory::default();
        memory.write(0x1000, 0x2000 | PRESENT);
        // Pages of 1 GiB.
        let gib = 1_u64 << 30;
        let count = MAX_FRAMES as u64 * PAGE_SIZE as u64 / gib + 1;
        for number in 0..count {
            memory.write(0x2000 + number * 8, ((number + 1) * gib) | 0x80 | PRESENT);
        }
        let (_, _, counts) = pass(&mut Sampler::default(), &memory, &[0x1000]);
        assert_eq!(counts.frames, MAX_FRAMES as u64);
        assert_eq!(counts.left_out, gib / PAGE_SIZE as u64);
    }
}
