//! The ring: one producer at a time, one consumer, in shared memory.
//!
//! ```text
//!  0      8       64     128       192            4096
//!  ┌──────┬───────┬──────┬─────────┬──────────────┬──────────────────────────┐
//!  │ mark │ size  │ head │ tail    │ asleep       │ size bytes of frames     │
//!  └──────┴───────┴──────┴─────────┴──────────────┴──────────────────────────┘
//! ```
//!
//! `head` and `tail` count bytes for ever and are taken modulo `size`, a power of two. A frame never wraps: if it
//! does not fit before the end, a word with the length [`SKIP`] sends the consumer back to the start. The producer
//! writes `head` (release) after the frame; the consumer writes `tail` (release) after its copy. The consumer
//! believes nothing: `head` may not lead `tail` by more than `size`, and lengths are checked before they are used.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::frame::MAX_FRAME_BYTES;
use crate::shm::{Shm, ShmError};

/// Bytes before the frames.
pub const RING_HEAD_BYTES: usize = 4096;
const MARK: u64 = u64::from_le_bytes(*b"nphring1");
const MARK_AT: usize = 0;
const SIZE_AT: usize = 8;
const HEAD_AT: usize = 64;
const TAIL_AT: usize = 128;
const ASLEEP_AT: usize = 192;
const DATA_AT: usize = RING_HEAD_BYTES;
/// A length that is no frame's: the rest up to the end is empty.
const SKIP: u32 = u32::MAX;
/// The largest ring a monitor maps, per vCPU.
const MAX_RING_BYTES: usize = 256 << 20;

/// A ring could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The memory.
    #[error(transparent)]
    Shm(#[from] ShmError),
    /// The memory is no ring of ours.
    #[error("shared memory is not a ring of this version")]
    NotARing,
    /// Head, tail or a length is impossible: the producer is broken or hostile.
    #[error("ring is corrupt: {0}")]
    Corrupt(&'static str),
}

/// The frame does not fit now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PushError;

/// The memory of one ring.
#[derive(Debug)]
pub struct RingMemory {
    shm: Shm,
    size: u64,
}

impl RingMemory {
    /// A new, empty ring for at least `bytes` of frames.
    ///
    /// # Errors
    /// If the system gives no memory.
    pub fn create(name: &str, bytes: usize) -> Result<Self, RingError> {
        let size = bytes
            .max(4 * MAX_FRAME_BYTES)
            .next_power_of_two()
            .min(MAX_RING_BYTES / 2);
        let shm = Shm::create(name, DATA_AT + size)?;
        let ring = Self {
            shm,
            size: size as u64,
        };
        ring.word(SIZE_AT)?.store(ring.size, Ordering::Relaxed);
        ring.word(MARK_AT)?.store(MARK, Ordering::Release);
        Ok(ring)
    }

    /// A ring that another process made.
    ///
    /// # Errors
    /// If the memory is not sealed, or not a ring.
    pub fn open(fd: OwnedFd) -> Result<Self, RingError> {
        Self::of(Shm::open(fd, MAX_RING_BYTES)?)
    }

    /// A ring for `frames` bytes in a kernel driver's memory, from this offset on.
    ///
    /// # Errors
    /// If it cannot be mapped, or is not a ring.
    pub fn in_device(fd: OwnedFd, offset: u64, frames: usize) -> Result<Self, RingError> {
        let len = frames.saturating_add(RING_HEAD_BYTES);
        Self::of(Shm::device(fd, offset, len.min(MAX_RING_BYTES))?)
    }

    fn of(shm: Shm) -> Result<Self, RingError> {
        let mut ring = Self { shm, size: 0 };
        let mark = ring.word(MARK_AT)?.load(Ordering::Acquire);
        let size = ring.word(SIZE_AT)?.load(Ordering::Relaxed);
        let fits = usize::try_from(size).ok().and_then(|s| s.checked_add(DATA_AT)) == Some(ring.shm.len());
        if mark != MARK || !size.is_power_of_two() || !fits {
            return Err(RingError::NotARing);
        }
        ring.size = size;
        Ok(ring)
    }

    /// The descriptor to hand to the other side.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shm.fd()
    }

    fn word(&self, at: usize) -> Result<&AtomicU64, RingError> {
        self.shm.word(at).ok_or(RingError::NotARing)
    }

    fn place(&self, count: u64) -> usize {
        // Below `size`, which fits the address space because it is mapped.
        DATA_AT + usize::try_from(count & (self.size - 1)).unwrap_or(0)
    }

    /// Forgets all frames. Only while nobody pushes and no consumer reads.
    pub fn clear(&self) {
        if let (Ok(head), Ok(tail), Ok(asleep)) =
            (self.word(HEAD_AT), self.word(TAIL_AT), self.word(ASLEEP_AT))
        {
            asleep.store(0, Ordering::Relaxed);
            tail.store(head.load(Ordering::Relaxed), Ordering::Release);
        }
    }
}

/// The writing side. The caller sees to it that there is one at a time.
#[derive(Debug)]
pub struct Producer<'a> {
    ring: &'a RingMemory,
}

impl<'a> Producer<'a> {
    /// Writes to `ring`.
    #[must_use]
    pub fn new(ring: &'a RingMemory) -> Self {
        Self { ring }
    }

    /// Whether more than half of the ring waits to be read.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        let word = |at| self.ring.word(at).map_or(0, |word| word.load(Ordering::Acquire));
        word(HEAD_AT).wrapping_sub(word(TAIL_AT)) > self.ring.size / 2
    }

    /// Appends a frame. `Ok(true)` asks the caller to signal: the consumer said that it sleeps.
    ///
    /// # Errors
    /// [`PushError`] if there is no room now.
    pub fn push(&self, frame: &[u8]) -> Result<bool, PushError> {
        let ring = self.ring;
        let head_word = ring.word(HEAD_AT).map_err(|_| PushError)?;
        let tail = ring.word(TAIL_AT).map_err(|_| PushError)?.load(Ordering::Acquire);
        let mut head = head_word.load(Ordering::Relaxed);
        let len = frame.len() as u64;
        let to_end = ring.size - (head & (ring.size - 1));
        let skipped = if to_end < len { to_end } else { 0 };
        // A tail ahead of the head can only come from a broken consumer; treat the ring as full.
        let used = head.checked_sub(tail).ok_or(PushError)?;
        if len > ring.size || used + skipped + len > ring.size {
            return Err(PushError);
        }
        if skipped != 0 {
            ring.shm
                .write(ring.place(head), &SKIP.to_le_bytes())
                .ok_or(PushError)?;
            head += skipped;
        }
        ring.shm.write(ring.place(head), frame).ok_or(PushError)?;
        head_word.store(head + len, Ordering::Release);
        // Pairs with the fence in `Consumer::sleep`: either we see that it sleeps, or it sees the new head.
        fence(Ordering::SeqCst);
        let asleep = ring.word(ASLEEP_AT).map_err(|_| PushError)?;
        Ok(asleep.load(Ordering::Relaxed) != 0 && asleep.swap(0, Ordering::Relaxed) != 0)
    }
}

/// The reading side.
#[derive(Debug)]
pub struct Consumer {
    ring: RingMemory,
    tail: u64,
}

impl Consumer {
    /// Reads from `ring`, from where the last consumer stopped.
    ///
    /// # Errors
    /// If the ring is not readable.
    pub fn new(ring: RingMemory) -> Result<Self, RingError> {
        let tail = ring.word(TAIL_AT)?.load(Ordering::Acquire);
        Ok(Self { ring, tail })
    }

    /// Copies the next frame into `out`; `false` if there is none.
    ///
    /// # Errors
    /// [`RingError::Corrupt`] if the producer's numbers are impossible.
    pub fn pop(&mut self, out: &mut Vec<u8>) -> Result<bool, RingError> {
        let head = self.ring.word(HEAD_AT)?.load(Ordering::Acquire);
        loop {
            let ready = head.wrapping_sub(self.tail);
            if ready == 0 {
                return Ok(false);
            }
            if ready > self.ring.size {
                return Err(RingError::Corrupt("head is further ahead than the ring is long"));
            }
            let place = self.ring.place(self.tail);
            let mut prefix = [0; 4];
            self.ring
                .shm
                .read(place, &mut prefix)
                .ok_or(RingError::Corrupt("place"))?;
            let len = u32::from_le_bytes(prefix);
            if len == SKIP {
                let to_end = self.ring.size - (self.tail & (self.ring.size - 1));
                if to_end > ready {
                    return Err(RingError::Corrupt("skips past the head"));
                }
                self.release(to_end)?;
                continue;
            }
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            if u64::from(len) > ready || bytes > MAX_FRAME_BYTES || !(8..).contains(&bytes) || bytes % 8 != 0
            {
                return Err(RingError::Corrupt("length of a frame"));
            }
            out.resize(bytes, 0);
            self.ring
                .shm
                .read(place, out)
                .ok_or(RingError::Corrupt("frame past the end"))?;
            self.release(u64::from(len))?;
            return Ok(true);
        }
    }

    fn release(&mut self, bytes: u64) -> Result<(), RingError> {
        self.tail = self.tail.wrapping_add(bytes);
        self.ring.word(TAIL_AT)?.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Says that the consumer is about to sleep. `false`: something came meanwhile, do not.
    ///
    /// # Errors
    /// If the ring is not readable.
    pub fn sleep(&self) -> Result<bool, RingError> {
        self.ring.word(ASLEEP_AT)?.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Ok(self.ring.word(HEAD_AT)?.load(Ordering::Acquire) == self.tail)
    }

    /// Bytes of frames that wait to be read.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let head = self
            .ring
            .word(HEAD_AT)
            .map_or(self.tail, |w| w.load(Ordering::Acquire));
        head.wrapping_sub(self.tail).min(self.ring.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Captured, Frame, Stamp};

    fn pair(bytes: usize) -> (RingMemory, Consumer) {
        let ring = RingMemory::create("test-ring", bytes).unwrap();
        let other = RingMemory::open(ring.fd().try_clone_to_owned().unwrap()).unwrap();
        (ring, Consumer::new(other).unwrap())
    }

    fn frame(n: u64) -> Vec<u8> {
        let page = [u8::try_from(n % 256).unwrap(); 4096];
        let mut out = Vec::new();
        let captured = Captured {
            end: 1,
            bits: 64,
            ..Captured::default()
        };
        let stamp = Stamp {
            page: n,
            ..Stamp::default()
        };
        if n.is_multiple_of(3) {
            Frame::Captured(captured, &page).encode(stamp, &mut out);
        } else {
            Frame::Executed {
                root: n << 12,
                incarnation: 0,
            }
            .encode(stamp, &mut out);
        }
        out
    }

    #[test]
    fn a_ring_says_when_more_than_half_of_it_waits() {
        let (ring, mut consumer) = pair(64 << 10);
        let producer = Producer::new(&ring);
        let frame = {
            let mut bytes = Vec::new();
            Frame::Counters([0; crate::frame::COUNTER_NAMES.len()]).encode(Stamp::default(), &mut bytes);
            bytes
        };
        let mut pushed = 0;
        while !producer.is_half_full() {
            producer.push(&frame).unwrap();
            pushed += frame.len();
        }
        assert!((32 << 10..33 << 10).contains(&pushed), "{pushed}");
        consumer.pop(&mut Vec::new()).unwrap();
        assert!(!producer.is_half_full());
    }

    #[test]
    fn frames_come_out_in_order_across_many_wraps() {
        let (ring, mut consumer) = pair(20_000);
        let mut got = Vec::new();
        let mut sent = 0_u64;
        let mut received = 0_u64;
        while received < 5_000 {
            while sent < received + 7 && Producer::new(&ring).push(&frame(sent)).is_ok() {
                sent += 1;
            }
            while consumer.pop(&mut got).unwrap() {
                assert_eq!(got, frame(received));
                received += 1;
            }
        }
    }

    #[test]
    fn a_full_ring_refuses_and_takes_again_after_a_read() {
        let (ring, mut consumer) = pair(0);
        let producer = Producer::new(&ring);
        let mut pushed = 0;
        while producer.push(&frame(3 * pushed)).is_ok() {
            pushed += 1;
        }
        assert!(pushed >= 3);
        let mut got = Vec::new();
        assert!(consumer.pop(&mut got).unwrap());
        assert!(consumer.pop(&mut got).unwrap());
        assert!(producer.push(&frame(0)).is_ok());
    }

    #[test]
    fn a_producer_and_a_consumer_in_two_threads_lose_nothing() {
        let (ring, mut consumer) = pair(1 << 16);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20_000 {
                    while Producer::new(&ring).push(&frame(n)).is_err() {
                        std::hint::spin_loop();
                    }
                }
            });
            let mut got = Vec::new();
            let mut n = 0;
            while n < 20_000 {
                if consumer.pop(&mut got).unwrap() {
                    assert_eq!(got, frame(n));
                    n += 1;
                }
            }
        });
    }

    #[test]
    fn a_sleeping_consumer_is_signalled_once() {
        let (ring, consumer) = pair(0);
        assert!(consumer.sleep().unwrap());
        assert_eq!(Producer::new(&ring).push(&frame(1)), Ok(true));
        assert_eq!(Producer::new(&ring).push(&frame(1)), Ok(false));
        assert!(!consumer.sleep().unwrap(), "there is something to read");
    }

    #[test]
    fn impossible_heads_and_lengths_are_errors() {
        let (ring, mut consumer) = pair(0);
        let mut got = Vec::new();
        ring.word(HEAD_AT).unwrap().store(u64::MAX, Ordering::Relaxed);
        assert!(consumer.pop(&mut got).is_err());
        ring.word(HEAD_AT).unwrap().store(64, Ordering::Relaxed);
        for len in [0_u32, 4, 7, 9, 72, u32::MAX - 1, u32::MAX] {
            ring.shm.write(DATA_AT, &len.to_le_bytes()).unwrap();
            assert!(consumer.pop(&mut got).is_err(), "length {len}");
        }
    }

    #[test]
    fn max_ring_bytes_stops_memory_that_nobody_would_map() {
        let ring = RingMemory::create("test-ring", MAX_RING_BYTES).unwrap();
        assert!(ring.shm.len() <= MAX_RING_BYTES);
        let large = Shm::create("test-ring", MAX_RING_BYTES + 4096).unwrap();
        let opened = RingMemory::open(large.fd().try_clone_to_owned().unwrap());
        assert!(matches!(opened, Err(RingError::Shm(ShmError::Unfit { .. }))));
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let fd = rustix::fs::memfd_create("unsealed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        assert!(matches!(RingMemory::open(fd), Err(RingError::Shm(_))));
    }
}
