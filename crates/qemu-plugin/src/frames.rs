//! Which pages were captured, and whether they still are what they were.
//!
//! A frame is named by the host address of its memory, which stays the same while the guest moves it about; code
//! without host memory is named by where the root sees it. The table is split into shards by name: vCPUs that translate
//! in different pages do not meet. It is bounded; a frame that is forgotten is captured anew at its next translation,
//! which costs a capture and never an identity.

use std::sync::{Mutex, PoisonError};

use foldhash::{HashMap, HashSet};
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
    /// How it was captured, once that was said ([`Frames::describe`]).
    pub(crate) first: Option<First>,
    bytes: Box<[u8; PAGE_SIZE]>,
    executed: Box<[u64; PAGE_SIZE / 64]>,
}

/// Who ran a page first, and where: what a monitor that comes later is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct First {
    /// The root that was loaded.
    pub(crate) root: u64,
    /// Virtual address of the page.
    pub(crate) va: u64,
    /// CPL 3.
    pub(crate) user: bool,
    /// CR0.PG.
    pub(crate) paging: bool,
    /// Width of the code segment in bits.
    pub(crate) bits: u8,
}

/// A page's contents as they are now.
pub(crate) trait PageMemory {
    /// Whether they are these.
    fn equals(&self, bytes: &[u8; PAGE_SIZE]) -> bool;
    /// Copies them; `None` if they cannot be read.
    fn read(&self, bytes: &mut [u8; PAGE_SIZE]) -> Option<()>;
}

/// What a translation found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// The page is as captured; `extended` says whether these bytes are translated for the first time.
    Same {
        page: u64,
        mark: Option<u32>,
        extended: bool,
    },
    /// A new generation began; the caller sends the capture.
    New {
        page: u64,
        generation: u32,
        bytes: Box<[u8; PAGE_SIZE]>,
    },
}

const SHARDS: usize = 64;
/// The most frames that are remembered, over all shards: it stops a guest that executes in all its memory from making
/// the VMM hold a second copy of it (at 4.6 KiB each, about 600 MiB).
pub(crate) const MAX_FRAMES: usize = 128 << 10;

/// All captured frames.
#[derive(Debug)]
pub(crate) struct Frames {
    shards: Vec<Mutex<HashMap<FrameKey, Captured>>>,
    /// Frames of which QEMU may have a translation, those that are forgotten included: at most as many as guest RAM has.
    translated: Vec<Mutex<HashSet<u64>>>,
    next_page: std::sync::atomic::AtomicU64,
    per_shard: usize,
}

impl Frames {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            per_shard: (most / SHARDS).max(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            translated: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_page: std::sync::atomic::AtomicU64::new(1),
        }
    }

    fn shard(&self, key: FrameKey) -> Option<&Mutex<HashMap<FrameKey, Captured>>> {
        let number = match key {
            FrameKey::Host(address) => address,
            FrameKey::Virtual { root, va } => root ^ va,
        };
        self.shards.get(shard_of(number))
    }

    /// QEMU has translated something of a frame. Said before that runs.
    pub(crate) fn is_translated(&self, frame: u64) {
        if let Some(shard) = self.translated.get(shard_of(frame)) {
            shard.lock().unwrap_or_else(PoisonError::into_inner).insert(frame);
        }
    }

    /// Whether QEMU may have translations of a frame; they are about to be thrown away.
    pub(crate) fn take_translated(&self, frame: u64) -> bool {
        let shard = self.translated.get(shard_of(frame));
        shard.is_some_and(|shard| {
            shard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&frame)
        })
    }

    /// QEMU has none any more.
    pub(crate) fn none_is_translated(&self) {
        for shard in &self.translated {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// The bytes `code` of this page, which begin at `start`, were translated and are about to run. If the capture has them
    /// there, and all of the page is as captured (a frame that was given to another file may have some of the same code),
    /// it goes on. Otherwise a new generation begins with the page's contents, and with `code` where it is, whatever somebody
    /// wrote to memory since it was translated. `forgotten` counts frames that had to make room.
    pub(crate) fn translated(
        &self,
        key: FrameKey,
        start: u16,
        code: &[u8],
        memory: &impl PageMemory,
        forgotten: &mut u64,
    ) -> Option<Seen> {
        let mut shard = self
            .shard(key)?
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let range = usize::from(start)..usize::from(start).checked_add(code.len())?;
        let end = u16::try_from(range.end)
            .ok()
            .filter(|end| usize::from(*end) <= PAGE_SIZE)?;
        let mut generation = 0;
        if let Some(known) = shard.get_mut(&key) {
            if known.bytes.get(range.clone()) == Some(code) && memory.equals(&known.bytes) {
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
        let mut bytes = Box::new([0; PAGE_SIZE]);
        memory.read(&mut bytes)?;
        bytes.get_mut(range)?.copy_from_slice(code);
        let page = self.next_page.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut captured = Captured {
            page,
            mark: None,
            generation,
            first: None,
            bytes: bytes.clone(),
            executed: Box::new([0; PAGE_SIZE / 64]),
        };
        captured.extend(start, end);
        shard.insert(key, captured);
        Some(Seen::New {
            page,
            generation,
            bytes,
        })
    }

    /// Says how the page was captured. Before its capture is sent: a replay that does not find this yet can leave the page to
    /// the sender, who sees that a monitor is attached.
    pub(crate) fn describe(&self, key: FrameKey, page: u64, first: First) {
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = shard.get_mut(&key).filter(|known| known.page == page) {
            known.first = Some(first);
        }
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

    /// Every captured page in the order of the captures, for a monitor that comes late: what came first explains what came
    /// after. What is captured meanwhile is not among them.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(FrameKey, &Captured)) {
        let lock = |shard: &'_ Mutex<HashMap<FrameKey, Captured>>, keys: &mut Vec<(u64, FrameKey)>| {
            let shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            keys.extend(shard.iter().map(|(key, captured)| (captured.page, *key)));
        };
        let mut keys = Vec::new();
        self.shards.iter().for_each(|shard| lock(shard, &mut keys));
        keys.sort_unstable_by_key(|(page, _)| *page);
        for (page, key) in keys {
            let captured = self.shard(key).and_then(|shard| {
                let shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                shard.get(&key).filter(|captured| captured.page == page).cloned()
            });
            if let Some(captured) = captured {
                visit(key, &captured);
            }
        }
    }
}

/// Which shard has a number.
fn shard_of(number: u64) -> usize {
    let spread = (number >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
    usize::try_from(spread).unwrap_or(0) % SHARDS
}

impl Captured {
    pub(crate) fn bytes(&self) -> &[u8; PAGE_SIZE] {
        &self.bytes
    }

    /// The runs of bytes that were translated, in order: start and end.
    pub(crate) fn runs(&self) -> Vec<(u16, u16)> {
        let bit = |i: u16| {
            let word = self.executed.get(usize::from(i) / 64);
            word.is_some_and(|word| word >> (i % 64) & 1 != 0)
        };
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for i in (0..u16::try_from(PAGE_SIZE).unwrap_or(0)).filter(|i| bit(*i)) {
            match runs.last_mut() {
                Some(last) if last.1 == i => last.1 = i + 1,
                _ => runs.push((i, i + 1)),
            }
        }
        runs
    }

    /// Whether a byte of `[start, end)` was not translated before; now all are.
    fn extend(&mut self, start: u16, end: u16) -> bool {
        let (start, end) = (usize::from(start), usize::from(end).min(PAGE_SIZE));
        let mut new = false;
        // By words: this runs for every block that is translated.
        for (number, word) in self
            .executed
            .iter_mut()
            .enumerate()
            .take(end.div_ceil(64))
            .skip(start / 64)
        {
            let first = start.saturating_sub(number * 64);
            let count = end.saturating_sub(number * 64).min(64).saturating_sub(first);
            if count == 0 {
                continue;
            }
            let mask = (u64::MAX >> (64 - count)) << first;
            new |= *word & mask != mask;
            *word |= mask;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FrameKey = FrameKey::Host(0x7f00_0000_1000);

    /// The block at `[start, end)` of a page with these contents is translated: page, generation, and whether that is new.
    fn translated(frames: &Frames, page: &[u8; PAGE_SIZE], start: u16, end: u16) -> Seen {
        let code = &page[usize::from(start)..usize::from(end)];
        frames.translated(KEY, start, code, page, &mut 0).unwrap()
    }

    impl PageMemory for [u8; PAGE_SIZE] {
        fn equals(&self, bytes: &[u8; PAGE_SIZE]) -> bool {
            self == bytes
        }

        fn read(&self, bytes: &mut [u8; PAGE_SIZE]) -> Option<()> {
            bytes.copy_from_slice(self);
            Some(())
        }
    }

    struct Nothing;

    impl PageMemory for Nothing {
        fn equals(&self, _bytes: &[u8; PAGE_SIZE]) -> bool {
            false
        }

        fn read(&self, _bytes: &mut [u8; PAGE_SIZE]) -> Option<()> {
            None
        }
    }

    fn number(seen: &Seen) -> (u64, u32) {
        match seen {
            Seen::New { page, generation, .. } => (*page, *generation),
            Seen::Same { .. } => panic!("not new: {seen:?}"),
        }
    }

    #[test]
    fn a_byte_is_new_once_as_a_naive_twin_has_it() {
        let mut naive = [false; PAGE_SIZE];
        let mut captured = Captured {
            page: 1,
            mark: None,
            generation: 0,
            first: None,
            bytes: Box::new([0; PAGE_SIZE]),
            executed: Box::new([0; PAGE_SIZE / 64]),
        };
        let mut state = 1_u32;
        for _ in 0..2_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let start = (state >> 16) as usize % PAGE_SIZE;
            let end = (start + (state >> 8) as usize % 200).min(PAGE_SIZE);
            let expected = naive[start..end].iter().any(|seen| !seen);
            naive[start..end].fill(true);
            let is_new = captured.extend(u16::try_from(start).unwrap(), u16::try_from(end).unwrap());
            assert_eq!(is_new, expected, "{start}..{end}");
        }
        let bits = |i: usize| captured.executed[i / 64] >> (i % 64) & 1 != 0;
        assert!((0..PAGE_SIZE).all(|i| bits(i) == naive[i]));
    }

    #[test]
    fn a_page_is_captured_once_while_its_code_stays_as_it_is() {
        let frames = Frames::new(1024);
        let page = [0x90; PAGE_SIZE];
        assert_eq!(number(&translated(&frames, &page, 0, 8)), (1, 0));
        let same = |extended| Seen::Same {
            page: 1,
            mark: None,
            extended,
        };
        assert_eq!(translated(&frames, &page, 0, 8), same(false));
        assert_eq!(translated(&frames, &page, 4, 12), same(true));
    }

    #[test]
    fn a_frame_with_another_page_that_begins_alike_is_another_generation() {
        let frames = Frames::new(1024);
        let mut page = [0x90; PAGE_SIZE];
        translated(&frames, &page, 0, 8);
        page[4095] = 0xcc;
        assert_eq!(number(&translated(&frames, &page, 0, 8)), (2, 1));
    }

    #[test]
    fn a_page_written_after_execution_starts_a_new_generation() {
        let frames = Frames::new(1024);
        let mut page = [0x90; PAGE_SIZE];
        translated(&frames, &page, 0, 8);
        page[7] = 0xcc;
        assert_eq!(number(&translated(&frames, &page, 0, 8)), (2, 1));
        page[7] = 0x90;
        assert_eq!(
            number(&translated(&frames, &page, 0, 8)),
            (3, 2),
            "restored, and seen"
        );
    }

    #[test]
    fn what_was_translated_is_captured_although_it_was_restored_meanwhile() {
        let frames = Frames::new(1024);
        let page = [0x90; PAGE_SIZE];
        translated(&frames, &page, 0, 8);
        let seen = frames.translated(KEY, 4, &[0xcc, 0xcc], &page, &mut 0);
        let Some(Seen::New { bytes, .. }) = seen else {
            panic!("not new")
        };
        assert_eq!(bytes[..8], [0x90, 0x90, 0x90, 0x90, 0xcc, 0xcc, 0x90, 0x90]);
    }

    #[test]
    fn a_page_that_cannot_be_read_is_none_and_leaves_nothing() {
        let frames = Frames::new(1024);
        assert_eq!(frames.translated(KEY, 0, &[1], &Nothing, &mut 0), None);
        assert_eq!(number(&translated(&frames, &[0; PAGE_SIZE], 0, 1)), (1, 0));
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
    fn a_page_tells_how_it_was_captured_and_which_bytes_of_it_ran() {
        let frames = Frames::new(1024);
        let page = [0x90; PAGE_SIZE];
        translated(&frames, &page, 8, 16);
        translated(&frames, &page, 4088, 4096);
        translated(&frames, &page, 12, 20);
        let first = First {
            root: 0x1000,
            va: 0x40_0000,
            user: true,
            paging: true,
            bits: 64,
        };
        frames.describe(KEY, 7, first);
        let told = || {
            let mut told = None;
            frames.for_each(|_, captured| told = Some((captured.first, captured.runs())));
            told.unwrap()
        };
        assert_eq!(told(), (None, vec![(8, 20), (4088, 4096)]), "page 7 is another");
        frames.describe(KEY, 1, first);
        assert_eq!(told().0, Some(first));
    }

    #[test]
    fn a_late_monitor_gets_pages_in_the_order_of_their_captures() {
        let frames = Frames::new(1024);
        for i in (0..100).rev() {
            frames.translated(FrameKey::Host(i << 12), 0, &[0], &[0; PAGE_SIZE], &mut 0);
        }
        let mut pages = Vec::new();
        frames.for_each(|_, captured| pages.push(captured.page));
        assert_eq!(pages, (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn a_frame_that_is_forgotten_is_still_translated() {
        let frames = Frames::new(64);
        for frame in 0..1000 {
            frames.is_translated(frame << 12);
            frames.translated(FrameKey::Host(frame << 12), 0, &[0], &[0; PAGE_SIZE], &mut 0);
        }
        assert!((0..500).all(|frame| frames.take_translated(frame << 12)));
        assert!(!frames.take_translated(0), "once");
        frames.none_is_translated();
        assert!(!frames.take_translated(700 << 12));
    }

    #[test]
    fn max_frames_bounds_what_is_remembered() {
        let frames = Frames::new(1024);
        let mut forgotten = 0;
        for i in 0..1_500 {
            frames.translated(FrameKey::Host(i << 12), 0, &[0], &[0; PAGE_SIZE], &mut forgotten);
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
