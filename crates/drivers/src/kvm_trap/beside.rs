//! What the kernel had mapped executable when a page of it ran for the first time.
//!
//! Which file a page of a module is of may depend on where other modules lie, and on its own other pages. Modules' pages that
//! initialise them are unmapped a moment later, so the look is at once, in the thread that empties the rings, and not when the page has
//! its turn to be named: by then a monitor that has much to do is late.

use std::collections::HashSet;

use nephoscope_guest::{
    CodeCaptured, Event, Gpa, Gva, KernelPage, PAGE_SIZE, PageBytes, PhysicalMemory, Privilege,
};
use nephoscope_isa::{Bounds, Mode, Walker, Want};

/// Linux's kernel and modules are in the last 2 GiB, which is as far as their calls reach
/// (`Documentation/arch/x86/x86_64/mm.rst`).
const FROM: Gva = Gva(0xffff_ffff_8000_0000);
const TO: Gva = Gva(u64::MAX);
/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 4096,
    leaves: 1 << 16,
};
/// Pages given for one that ran; those that are left have another turn.
const MAX_PAGES: usize = 1024;
/// Leaves that are remembered. Forgetting them only means to give their pages again.
const MAX_KNOWN: usize = 64 << 10;

/// What was given already.
#[derive(Debug, Default)]
pub(super) struct Beside {
    known: HashSet<(Gva, Gpa)>,
}

impl Beside {
    /// What lies beside a page that was just captured, if it is one of a module: events that come before its own.
    pub(super) fn look(
        &mut self,
        memory: &impl PhysicalMemory,
        mode: Mode,
        captured: &CodeCaptured,
        events: &mut Vec<Event>,
    ) {
        if captured.privilege != Privilege::Supervisor || !captured.paging || captured.va < FROM {
            return;
        }
        let walker = Walker::new(mode, memory);
        // What is mapped in large pages is the kernel itself.
        let Ok(own) = walker.translate(captured.root, captured.va) else {
            return;
        };
        let is_known = self.known.contains(&(captured.va, own.gpa));
        if own.size_bytes != PAGE_SIZE as u64 || is_known && captured.generation == 0 {
            return;
        }
        let mut leaves = Vec::new();
        walker.leaves(captured.root, &(FROM..=TO), Want::Executable, BOUNDS, |leaf| {
            if !leaf.permissions.user && leaf.size_bytes == PAGE_SIZE as u64 {
                leaves.push((leaf.va, leaf.gpa));
            }
        });
        // Another module may have come to lie where one was.
        if captured.generation > 0 {
            for leaf in run_around(&leaves, captured.va) {
                self.known.remove(leaf);
            }
        }
        let mut given = 0;
        for (va, gpa) in leaves {
            if given == MAX_PAGES {
                break;
            }
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
            let mut bytes = PageBytes::zeroed();
            if self.known.insert((va, gpa)) && memory.read(gpa, &mut bytes[..]).is_ok() {
                events.push(Event::KernelMapped(Box::new(KernelPage { va, bytes })));
                given += 1;
            }
        }
    }

    /// The machine was reset.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}

/// The leaves around an address without a hole: Linux leaves a page unmapped between two modules' text.
fn run_around(leaves: &[(Gva, Gpa)], va: Gva) -> &[(Gva, Gpa)] {
    let next_to = |pair: &[(Gva, Gpa)]| pair[1].0.0.wrapping_sub(pair[0].0.0) == PAGE_SIZE as u64;
    let Some(at) = leaves.iter().position(|(leaf, _)| *leaf == va) else {
        return &[];
    };
    let from = at
        - leaves[..=at]
            .windows(2)
            .rev()
            .take_while(|pair| next_to(pair))
            .count();
    let to = at + leaves[at..].windows(2).take_while(|pair| next_to(pair)).count();
    &leaves[from..=to]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use nephoscope_guest::{MemoryFault, PageId, Root};

    use super::*;

    const PRESENT: u64 = 1;
    const LARGE: u64 = 1 << 7;
    const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
    const OTHER: u64 = 0x5000;
    const KERNEL: u64 = 0xffff_ffff_8100_0000;
    const MODULES: u64 = 0xffff_ffff_c000_0000;

    /// Eight-byte words by address; what is not there is zero.
    #[derive(Default)]
    struct Words(HashMap<u64, u64>);

    impl PhysicalMemory for Words {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
            for (word, to) in (at.0..).step_by(8).zip(buf.chunks_mut(8)) {
                let value = self.0.get(&word).copied().unwrap_or(0).to_le_bytes();
                to.copy_from_slice(&value[..to.len()]);
            }
            Ok(())
        }
    }

    impl Words {
        /// The kernel in a large page, and modules' pages of these numbers.
        fn with(modules: &[u64]) -> Self {
            let mut words = Self::default();
            for (table, index) in [(TABLES[0], 511), (TABLES[1], 511)] {
                words.0.insert(table + index * 8, (table + 0x1000) | PRESENT);
            }
            words.0.insert(TABLES[1] + 510 * 8, OTHER | PRESENT);
            words.0.insert(OTHER + 8 * 8, 0x20_0000 | PRESENT | LARGE);
            words.0.insert(TABLES[2], TABLES[3] | PRESENT);
            for number in modules {
                words
                    .0
                    .insert(TABLES[3] + number * 8, (0x10_0000 + number * 0x1000) | PRESENT);
            }
            words
        }
    }

    fn captured(va: u64, generation: u32) -> CodeCaptured {
        CodeCaptured {
            page: PageId(1),
            gpa: None,
            frame: 1,
            generation,
            vcpu: 0,
            root: Root(TABLES[0]),
            va: Gva(va),
            privilege: Privilege::Supervisor,
            paging: true,
            bits: 64,
            start: 0,
            end: 1,
            replay: false,
            bytes: PageBytes::zeroed(),
        }
    }

    /// The numbers of the pages that are given.
    fn given(beside: &mut Beside, memory: &Words, captured: &CodeCaptured) -> Vec<u64> {
        let mut events = Vec::new();
        beside.look(memory, Mode::long(), captured, &mut events);
        let number = |event: &Event| match event {
            Event::KernelMapped(page) => (page.va.0 - MODULES) / 0x1000,
            other => panic!("{other:?}"),
        };
        events.iter().map(number).collect()
    }

    #[test]
    fn all_that_is_mapped_beside_a_page_is_given_once() {
        let (mut beside, memory) = (Beside::default(), Words::with(&[0, 1, 5, 6, 7]));
        let at = |number: u64, generation| captured(MODULES + number * 0x1000, generation);
        assert_eq!(given(&mut beside, &memory, &at(1, 0)), [0, 1, 5, 6, 7]);
        assert_eq!(given(&mut beside, &memory, &at(6, 0)), [0; 0]);
        let more = Words::with(&[0, 1, 3, 5, 6, 7]);
        assert_eq!(given(&mut beside, &more, &at(3, 0)), [3]);
        // Something else may lie there now: as far as there is no hole.
        assert_eq!(given(&mut beside, &more, &at(6, 1)), [5, 6, 7]);
        beside.forget();
        assert_eq!(given(&mut beside, &more, &at(3, 0)).len(), 6);
    }

    #[test]
    fn the_kernel_itself_and_what_users_run_is_nothing_to_look_beside() {
        let (mut beside, memory) = (Beside::default(), Words::with(&[0]));
        let user = CodeCaptured {
            privilege: Privilege::User,
            ..captured(MODULES, 0)
        };
        for other in [captured(KERNEL, 0), user, captured(0xffff_8880_0000_0000, 0)] {
            assert_eq!(given(&mut beside, &memory, &other), [0; 0]);
        }
    }

    #[test]
    fn max_pages_bounds_what_is_given_for_one_and_the_next_gets_the_rest() {
        // Twice as many as there are in one table.
        let mut memory = Words::with(&(0..512).collect::<Vec<_>>());
        for more in 1..=2_u64 {
            memory.0.insert(TABLES[2] + more * 8, TABLES[3] | PRESENT);
        }
        let mut beside = Beside::default();
        let first = given(&mut beside, &memory, &captured(MODULES, 0));
        assert_eq!(first.len(), MAX_PAGES);
        let last = captured(MODULES + 1500 * 0x1000, 0);
        assert_eq!(
            given(&mut beside, &memory, &last),
            (MAX_PAGES as u64..1536).collect::<Vec<_>>()
        );
    }

    #[test]
    fn max_known_bounds_what_is_remembered() {
        let (mut beside, memory) = (Beside::default(), Words::with(&[0]));
        beside.known = (0..MAX_KNOWN as u64)
            .map(|number| (Gva(number), Gpa(0)))
            .collect();
        assert_eq!(given(&mut beside, &memory, &captured(MODULES, 0)), [0]);
        assert_eq!(beside.known.len(), 1);
    }
}
