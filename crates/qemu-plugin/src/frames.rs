//! Which pages were captured, and whether they still are what they were.
//!
//! A frame is named by the host address of its memory, which stays the same while the guest moves it about; code
//! without host memory is named by where the root sees it. The table is split into shards by name: vCPUs that translate
//! in different pages do not meet. It is bounded; a frame that is forgotten is captured anew at its next translation,
//! which costs a capture and never an identity.

use std::collections::HashMap;
use std::sync::Mutex;

use nephoscope_guest::PAGE_SIZE;

/// Names a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum FrameKey {
    /// Host-virtual address of its first byte.
    Host(u64),
    /// No host memory: the page that this root sees at this address.
    Virtual { root: u64, va: u64 },
}

/// A captured page in its current generation.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    /// Its number on the wire.
    pub(crate) page: u64,
    /// Its mark, if user code runs in it.
    pub(crate) mark: Option<u32>,
    /// Captures of this frame before this one.
    pub(crate) generation: u32,
    bytes: Box<[u8; PAGE_SIZE]>,
    executed: Box<[u64; PAGE_SIZE / 64]>,
}

/// What a translation found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// The page is as captured; `extended` says whether these bytes are translated for the first time.
    Same {
        page: u64,
        mark: Option<u32>,
        extended: bool,
    },
    /// A new generation began; the caller sends the capture.
    New { page: u64, generation: u32 },
}

const SHARDS: usize = 64;
/// The most frames that are remembered, over all shards: it stops a guest that executes in all its memory from making
/// the VMM hold a second copy of it (at 4.6 KiB each, about 600 MiB).
pub(crate) const MAX_FRAMES: usize = 128 << 10;

/// All captured frames.
#[derive(Debug)]
pub(crate) struct Frames {
    shards: Vec<Mutex<HashMap<FrameKey, Captured>>>,
    next_page: std::sync::atomic::AtomicU64,
    per_shard: usize,
}

impl Frames {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            per_shard: (most / SHARDS).max(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_page: std::sync::atomic::AtomicU64::new(1),
        }
    }

    fn shard(&self, key: FrameKey) -> Option<&Mutex<HashMap<FrameKey, Captured>>> {
        let number = match key {
            FrameKey::Host(address) => address,
            FrameKey::Virtual { root, va } => root ^ va,
        };
        let spread = (number >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        self.shards.get(usize::try_from(spread).ok()? % SHARDS)
    }

    /// A block at `[start, end)` of this page, whose contents are `now`, is about to run. `forgotten` counts frames
    /// that had to make room.
    pub(crate) fn translated(
        &self,
        key: FrameKey,
        now: &[u8; PAGE_SIZE],
        start: u16,
        end: u16,
        forgotten: &mut u64,
    ) -> Option<Seen> {
        let mut shard = self
            .shard(key)?
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut generation = 0;
        if let Some(known) = shard.get_mut(&key) {
            if *known.bytes == *now {
                let extended = known.extend(start, end);
                return Some(Seen::Same {
                    page: known.page,
                    mark: known.mark,
                    extended,
                });
            }
            generation = known.generation.saturating_add(1);
        } else if shard.len() >= self.per_shard {
            *forgotten += shard.len() as u64;
            shard.clear();
        }
        let page = self.next_page.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut captured = Captured {
            page,
            mark: None,
            generation,
            bytes: Box::new(*now),
            executed: Box::new([0; PAGE_SIZE / 64]),
        };
        captured.extend(start, end);
        shard.insert(key, captured);
        Some(Seen::New { page, generation })
    }

    /// Gives the page a mark, unless another vCPU was faster; returns the one it has.
    pub(crate) fn mark(&self, key: FrameKey, page: u64, new: impl FnOnce() -> Option<u32>) -> Option<u32> {
        let mut shard = self
            .shard(key)?
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = shard.get_mut(&key).filter(|known| known.page == page)?;
        if known.mark.is_none() {
            known.mark = new();
        }
        known.mark
    }

    /// Every captured page, for a monitor that comes late. Pages are copied shard by shard.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(FrameKey, &Captured)) {
        for shard in &self.shards {
            let copy: Vec<_> = {
                let shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                shard
                    .iter()
                    .map(|(key, captured)| (*key, captured.clone()))
                    .collect()
            };
            for (key, captured) in &copy {
                visit(*key, captured);
            }
        }
    }
}

impl Captured {
    pub(crate) fn bytes(&self) -> &[u8; PAGE_SIZE] {
        &self.bytes
    }

    /// First and one past the last byte that was translated.
    pub(crate) fn span(&self) -> (u16, u16) {
        let bit = |i: usize| {
            self.executed
                .get(i / 64)
                .is_some_and(|word| word >> (i % 64) & 1 != 0)
        };
        let first = (0..PAGE_SIZE).find(|i| bit(*i)).unwrap_or(0);
        let last = (0..PAGE_SIZE).rev().find(|i| bit(*i)).unwrap_or(PAGE_SIZE - 1);
        (
            u16::try_from(first).unwrap_or(0),
            u16::try_from(last + 1).unwrap_or(4096),
        )
    }

    fn extend(&mut self, start: u16, end: u16) -> bool {
        let mut new = false;
        for i in usize::from(start)..usize::from(end).min(PAGE_SIZE) {
            if let Some(word) = self.executed.get_mut(i / 64) {
                new |= *word >> (i % 64) & 1 == 0;
                *word |= 1 << (i % 64);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FrameKey = FrameKey::Host(0x7f00_0000_1000);

    fn translated(frames: &Frames, page: &[u8; PAGE_SIZE], start: u16, end: u16) -> Seen {
        frames.translated(KEY, page, start, end, &mut 0).unwrap()
    }

    #[test]
    fn a_page_is_captured_once_while_it_stays_as_it_is() {
        let frames = Frames::new(1024);
        let page = [0x90; PAGE_SIZE];
        assert_eq!(
            translated(&frames, &page, 0, 8),
            Seen::New {
                page: 1,
                generation: 0
            }
        );
        assert_eq!(
            translated(&frames, &page, 0, 8),
            Seen::Same {
                page: 1,
                mark: None,
                extended: false
            }
        );
        assert_eq!(
            translated(&frames, &page, 4, 12),
            Seen::Same {
                page: 1,
                mark: None,
                extended: true
            }
        );
    }

    #[test]
    fn a_page_written_after_execution_starts_a_new_generation() {
        let frames = Frames::new(1024);
        let mut page = [0x90; PAGE_SIZE];
        translated(&frames, &page, 0, 8);
        page[4095] = 0xcc;
        assert_eq!(
            translated(&frames, &page, 0, 8),
            Seen::New {
                page: 2,
                generation: 1
            }
        );
        page[4095] = 0x90;
        assert_eq!(
            translated(&frames, &page, 0, 8),
            Seen::New {
                page: 3,
                generation: 2
            },
            "restored, and seen"
        );
    }

    #[test]
    fn a_mark_stays_with_its_generation() {
        let frames = Frames::new(1024);
        let page = [1; PAGE_SIZE];
        translated(&frames, &page, 0, 8);
        assert_eq!(frames.mark(KEY, 1, || Some(7)), Some(7));
        assert_eq!(frames.mark(KEY, 1, || Some(8)), Some(7));
        translated(&frames, &[2; PAGE_SIZE], 0, 8);
        assert_eq!(frames.mark(KEY, 1, || Some(9)), None, "that generation is over");
    }

    #[test]
    fn max_frames_bounds_what_is_remembered() {
        let frames = Frames::new(1024);
        let mut forgotten = 0;
        for i in 0..1_500 {
            frames.translated(FrameKey::Host(i << 12), &[0; PAGE_SIZE], 0, 1, &mut forgotten);
        }
        let mut kept = 0;
        frames
            .shards
            .iter()
            .for_each(|shard| kept += shard.lock().unwrap().len());
        assert!(
            kept <= 1024 && forgotten > 0,
            "{kept} kept, {forgotten} forgotten"
        );
    }
}
