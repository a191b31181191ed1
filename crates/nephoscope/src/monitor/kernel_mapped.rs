//! Reads what the kernel has mapped executable and did not run, when a page that ran may depend on it.
//!
//! A page that calls a function of another module is only right if that module lies where the call leads. If no page of
//! it ran, its mapped ones are looked at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nephoscope_guest::{Gva, PAGE_SIZE, PageBytes, PhysicalMemory, Root};
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
/// Pages read in one look; the next goes on with the rest.
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
}

impl Default for KernelMapped {
    fn default() -> Self {
        Self {
            pending: None,
            looked: Instant::now(),
            known: HashMap::new(),
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
        for (va, gpa) in found {
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
                return;
            }
        }
    }
}
