//! The rings of one VM, read as one stream in the order of time.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nephoscope_guest::{Event, Stamped};
use nephoscope_wire::{Consumer, Frame, FrameError, RingError, Stamp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What the rings hold cannot be believed, or not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum RingsError {
    /// A ring.
    #[error("ring {ring} cannot be read")]
    Ring {
        /// Its number.
        ring: usize,
        /// Why.
        #[source]
        source: RingError,
    },
    /// A frame.
    #[error("ring {ring} holds a frame that cannot be right")]
    Frame {
        /// Its ring.
        ring: usize,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// Waiting failed.
    #[error("waiting for frames failed")]
    Wait(#[source] rustix::io::Errno),
}

/// The most frames taken in one batch, so that a guest that executes without end cannot keep the monitor in it.
pub(crate) const MAX_BATCH: usize = 16 << 10;

/// While frames come, the rings are looked at so often, and nobody has to wake anybody: a wake-up is a system call on the
/// vCPU that sends the frame, and under a hypervisor an interrupt to another CPU. A boot sends some hundred thousand frames.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

/// After so long without a frame the next one wakes. A quiet guest costs no looking, and what it does is known at once.
const QUIET: Duration = Duration::from_millis(6);

/// What wakes a monitor that sleeps.
#[derive(Debug)]
pub(crate) struct Bell<'a> {
    /// Readable when there is something in the rings; reading 8 bytes makes it quiet again. Hung up: that was all.
    pub(crate) wake: BorrowedFd<'a>,
    /// Readable or hung up when nothing will come any more.
    pub(crate) end: Option<BorrowedFd<'a>>,
}

/// All rings, and frames held back until every ring was looked at past their time.
#[derive(Debug)]
pub(crate) struct Rings {
    consumers: Vec<Consumer>,
    /// `CLOCK_MONOTONIC` of the watch's beginning.
    origin: u64,
    held: Vec<Stamped>,
    frame: Vec<u8>,
    events: Vec<Event>,
    /// Everything stamped before was taken from the rings.
    seen_until: u64,
    closed: bool,
    /// Whether the rings were empty when they were read the last time.
    empty: bool,
    /// When frames came last.
    busy: Instant,
}

impl Rings {
    pub(crate) fn new(consumers: Vec<Consumer>, origin: u64) -> Self {
        Self {
            consumers,
            origin,
            held: Vec::new(),
            frame: Vec::new(),
            events: Vec::new(),
            seen_until: 0,
            closed: false,
            empty: true,
            busy: Instant::now(),
        }
    }

    /// Up to when every frame that had been in its ring was given out, in nanoseconds since the watch began. It stays where
    /// it is while more frames come than are taken.
    pub(crate) fn seen_until_ns(&self) -> u64 {
        self.seen_until.saturating_sub(self.origin)
    }

    /// Whether nothing comes any more, and every frame was read.
    pub(crate) fn are_over(&self) -> bool {
        self.closed && self.empty && self.held.is_empty()
    }

    /// Waits up to `timeout` for frames, and appends the events that `take` makes of them to `out`, in the order of their
    /// time.
    pub(crate) fn next(
        &mut self,
        bell: &Bell<'_>,
        timeout: Duration,
        mut take: impl FnMut(Stamp, &Frame<'_>, &mut Vec<Event>),
        out: &mut Vec<Stamped>,
    ) -> Result<(), RingsError> {
        // Frames stamped before now that are not yet in their ring can only be those being pushed at this moment.
        let mut horizon = now_ns();
        let (mut taken, mut all) = self.drain(&mut take)?;
        if taken == 0 && self.held.is_empty() && !self.closed {
            self.wait(bell, timeout)?;
            horizon = now_ns();
            (taken, all) = self.drain(&mut take)?;
        }
        if taken > 0 {
            self.busy = Instant::now();
        }
        if all {
            self.seen_until = horizon;
        }
        self.empty = all;
        self.held.sort_by_key(|stamped| stamped.at_ns);
        let horizon = if self.closed {
            u64::MAX
        } else {
            horizon.saturating_sub(self.origin)
        };
        let ready = self.held.partition_point(|stamped| stamped.at_ns <= horizon);
        out.extend(self.held.drain(..ready));
        Ok(())
    }

    fn wait(&mut self, bell: &Bell<'_>, timeout: Duration) -> Result<(), RingsError> {
        if self.busy.elapsed() < QUIET {
            std::thread::sleep(timeout.min(BUSY_PAUSE));
            return Ok(());
        }
        for (ring, consumer) in self.consumers.iter().enumerate() {
            if !consumer
                .sleep()
                .map_err(|source| RingsError::Ring { ring, source })?
            {
                return Ok(());
            }
        }
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let timespec = Timespec {
            tv_sec: seconds,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(bell.wake, PollFlags::IN)];
        fds.extend(
            bell.end
                .map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN | PollFlags::HUP)),
        );
        match poll(&mut fds, Some(&timespec)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(RingsError::Wait(error)),
        }
        let told = |number: usize| fds.get(number).map_or(PollFlags::empty(), PollFd::revents);
        if told(0).contains(PollFlags::IN) {
            let _ = rustix::io::read(bell.wake, &mut [0_u8; 8]);
        }
        self.closed |= told(0).contains(PollFlags::HUP) || !told(1).is_empty();
        Ok(())
    }

    /// How many frames were taken, and whether that was all there were.
    fn drain(
        &mut self,
        take: &mut impl FnMut(Stamp, &Frame<'_>, &mut Vec<Event>),
    ) -> Result<(usize, bool), RingsError> {
        let (mut taken, mut all) = (0, true);
        for (ring, consumer) in self.consumers.iter_mut().enumerate() {
            for left in (0..MAX_BATCH).rev() {
                all &= left > 0;
                match consumer.pop(&mut self.frame) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(source) => return Err(RingsError::Ring { ring, source }),
                }
                let (stamp, frame) =
                    Frame::decode(&self.frame).map_err(|source| RingsError::Frame { ring, source })?;
                let at_ns = stamp.at_ns.saturating_sub(self.origin);
                take(stamp, &frame, &mut self.events);
                self.held
                    .extend(self.events.drain(..).map(|event| Stamped { at_ns, event }));
                taken += 1;
            }
        }
        Ok((taken, all))
    }
}

/// The clock that frames are stamped with.
pub(crate) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nephoscope_wire::{Producer, RingMemory};
    use std::os::fd::AsFd;

    #[test]
    fn a_ring_whose_writer_has_ended_is_over_when_all_of_it_was_read() {
        let memory = RingMemory::create("test", 2 << 20).unwrap();
        let fd = memory.fd().try_clone_to_owned().unwrap();
        let consumer = Consumer::new(RingMemory::open(fd).unwrap()).unwrap();
        let mut rings = Rings::new(vec![consumer], 0);
        let wake = rustix::fs::memfd_create("wake", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let bell = Bell {
            wake: wake.as_fd(),
            end: None,
        };
        let mut frame = Vec::new();
        Frame::Executed {
            root: 0x1000,
            incarnation: 0,
        }
        .encode(Stamp::default(), &mut frame);
        for _ in 0..MAX_BATCH + 7 {
            Producer::new(&memory).push(&frame).unwrap();
        }
        // As if it ended while we slept, and wrote all that before.
        rings.closed = true;
        let read = |rings: &mut Rings| {
            let (mut taken, mut out) = (0, Vec::new());
            rings
                .next(&bell, Duration::ZERO, |_, _, _| taken += 1, &mut out)
                .unwrap();
            taken
        };
        assert_eq!(read(&mut rings), MAX_BATCH);
        assert!(!rings.are_over());
        assert_eq!(read(&mut rings), 7);
        assert!(rings.are_over());
    }
}
