//! Reads what the kernel has mapped executable and did not run, when a page that ran may depend on it.
//!
//! A page that calls a function of another module is only right if that module lies where the call leads. If no page of
//! it ran, its mapped ones are looked at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nephoscope_guest::{Gpa, Gva, PAGE_SIZE, PageBytes, PhysicalMemory, Root};
use nephoscope_isa::{Bounds, Mode, Walker, Want};
use nephoscope_pipeline::Session;

/// Linux's kernel and modules are in the last 2 GiB, which is as far as their calls reach
/// (`Documentation/arch/x86/x86_64/mm.rst`).
const FROM: Gva = Gva(0xffff_ffff_8000_0000);
const TO: Gva = Gva(u64::MAX);
/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 4096,
    leaves: 1 << 16,
};
/// Pages read in one look; the next goes on with the rest, and what the last one leaves is counted.
const MAX_PAGES: usize = 2048;
/// Pages whose contents are remembered; then all are read anew.
const MAX_KNOWN: usize = 64 << 10;
/// A module is there before its first instruction runs and may be gone soon after; one whose loading is under way comes
/// soon. So the first look is at once, and two follow.
const LOOKS: u8 = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(60);

/// When to look, and what was there.
#[derive(Debug)]
pub(super) struct KernelMapped {
    pending: Option<(Root, u8)>,
    looked: Instant,
    known: HashMap<Gva, [u8; 32]>,
    left_out: u64,
}

impl Default for KernelMapped {
    fn default() -> Self {
        Self {
            pending: None,
            looked: Instant::now(),
            known: HashMap::new(),
            left_out: 0,
        }
    }
}

impl KernelMapped {
    /// Whether it is time to look.
    pub(super) fn is_due(&mut self, session: &mut Session) -> bool {
        if let Some(root) = session.lacking() {
            self.pending = Some((root, LOOKS));
        }
        self.pending.is_some() && self.looked.elapsed() >= PAUSE
    }

    /// Gives the session pages that it has not had with these contents.
    pub(super) fn look(&mut self, session: &mut Session, mode: Mode, memory: &impl PhysicalMemory) {
        let Some((root, looks)) = self.pending else { return };
        self.looked = Instant::now();
        self.pending = looks
            .checked_sub(1)
            .filter(|left| *left > 0)
            .map(|left| (root, left));
        let walker = Walker::new(mode, memory);
        let mut found = Vec::new();
        walker.leaves(root, &(FROM..=TO), Want::Executable, BOUNDS, |leaf| {
            // What is mapped in large pages is the kernel itself, and what it makes at run time.
            if !leaf.permissions.user && leaf.size_bytes == PAGE_SIZE as u64 {
                found.push((leaf.va, leaf.gpa));
            }
        });
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let mut left = MAX_PAGES;
        let mut found = found.into_iter();
        for (va, gpa) in found.by_ref() {
            let mut bytes = PageBytes::zeroed();
            if memory.read(gpa, &mut bytes[..]).is_err() {
                continue;
            }
            let digest = *blake3::hash(&bytes[..]).as_bytes();
            if self.known.insert(va, digest) == Some(digest) {
                continue;
            }
            session.mapped_by_kernel(va, &bytes);
            left -= 1;
            if left == 0 {
                break;
            }
        }
        if self.pending.is_none() {
            let unread = found.filter(|(va, _)| !self.known.contains_key(va)).count();
            self.left_out = self.left_out.saturating_add(unread as u64);
            session.count("kernel_pages_left_out", self.left_out);
        }
    }
}

/// What is mapped executable at an address of the kernel: where it lies, and the BLAKE3 of its bytes.
pub(super) fn there(
    mode: &Mode,
    memory: &impl PhysicalMemory,
    root: Root,
    va: Gva,
) -> Option<(Gpa, [u8; 32])> {
    let found = Walker::new(*mode, memory).translate(root, va).ok()?;
    let mut bytes = PageBytes::zeroed();
    memory.read(found.gpa, &mut bytes[..]).ok()?;
    let digest = *blake3::hash(&bytes[..]).as_bytes();
    found
        .permissions
        .execute_supervisor
        .then_some((found.gpa, digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, given, long_mode, session};

    /// A guest whose kernel has so many pages mapped executable, from the page of this number on.
    fn kernel(first: usize, pages: usize) -> (Memory, Root) {
        let mut memory = Memory::default();
        let root = Root(memory.frame());
        let text = Gpa(memory.frame());
        for number in first..first + pages {
            let va = Gva(FROM.0 + number as u64 * PAGE_SIZE as u64);
            memory.map(root, va, text, PRESENT);
        }
        (memory, root)
    }

    /// Looks so often, and says how many pages were given in all after each look.
    fn look(
        mapped: &mut KernelMapped,
        session: &mut Session,
        (memory, root): &(Memory, Root),
        looks: u8,
    ) -> Vec<usize> {
        mapped.pending = Some((*root, looks));
        let mut all = Vec::new();
        while mapped.pending.is_some() {
            mapped.look(session, long_mode(), memory);
            all.push(given(session));
        }
        all
    }

    #[test]
    fn max_pages_bounds_one_look_and_what_is_left_after_the_last_is_counted() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let most = MAX_PAGES * usize::from(LOOKS);
        let guest = kernel(0, most + 5);
        let all = look(&mut mapped, &mut session, &guest, LOOKS);
        assert_eq!(all, [MAX_PAGES, 2 * MAX_PAGES, most]);
        let left = |session: &mut Session| session.report().counters.get("kernel_pages_left_out").copied();
        assert_eq!(left(&mut session), Some(5));
        let all = look(&mut mapped, &mut session, &guest, LOOKS);
        assert_eq!(all, [most + 5; 3], "the next that lacks something goes on");
        assert_eq!(left(&mut session), Some(5));
    }

    #[test]
    fn max_known_bounds_what_is_remembered_and_what_is_forgotten_is_read_again() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let guests: Vec<_> = (0..=MAX_KNOWN)
            .step_by(MAX_PAGES)
            .map(|first| kernel(first, MAX_PAGES))
            .collect();
        let (last, full) = guests.split_last().unwrap();
        let mut read = 0;
        for guest in full {
            read += MAX_PAGES;
            assert_eq!(look(&mut mapped, &mut session, guest, 1), [read]);
        }
        assert_eq!(mapped.known.len(), MAX_KNOWN);
        for guest in [last, &full[0]] {
            read += MAX_PAGES;
            assert_eq!(look(&mut mapped, &mut session, guest, 1), [read]);
            assert!(mapped.known.len() <= 2 * MAX_PAGES);
        }
    }
}
