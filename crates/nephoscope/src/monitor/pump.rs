//! A driver in a thread of its own.
//!
//! ```text
//!  rings ─► thread: next(), page tables of roots as they are now ─► batches, bounded ─► the watch's loop
//! ```
//!
//! While the session is busy with one page, the rings go on being emptied, and who runs what is looked up in the guest's
//! page tables at once and not when its turn comes: an address space may be gone by then. When too much waits, the rings
//! are left to fill up, and the guest waits for its monitor as it always does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nephoscope_drivers::{KvmTrap, KvmTrapError};
use nephoscope_guest::{Event, Stamped};
use nephoscope_isa::Mode;

/// What a pump needs of a driver.
pub(super) trait Pumped: Send + 'static {
    /// Waits up to `timeout` for events and appends them.
    fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> Result<(), KvmTrapError>;
    /// Whoever has a root from now on is another address space.
    fn reset(&mut self);
    /// Whether captured pages that were given out before are still being worked on.
    fn behind(&mut self, behind: bool);
    /// Up to when everything was given out.
    fn seen_until_ns(&self) -> u64;
    /// How the guest's CPUs translate.
    fn mode(&self) -> Option<Mode>;
    /// Whether nothing comes any more.
    fn is_closed(&self) -> bool;
}

impl Pumped for KvmTrap {
    fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> Result<(), KvmTrapError> {
        Self::next(self, timeout, out)
    }

    fn reset(&mut self) {
        Self::reset(self);
    }

    fn behind(&mut self, behind: bool) {
        Self::behind(self, behind);
    }

    fn seen_until_ns(&self) -> u64 {
        Self::seen_until_ns(self)
    }

    fn mode(&self) -> Option<Mode> {
        Self::mode(self)
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }
}

/// Captured pages that wait, on their way or with the watch, at most: 64 MiB. It stops a guest that makes code faster than it can be named.
const MAX_WAITING: usize = 16 << 10;
/// How long the thread waits for frames before it looks what it is told.
const PAUSE: Duration = Duration::from_millis(10);
/// How long it rests when too much waits.
const REST: Duration = Duration::from_millis(1);

/// What comes at once.
#[derive(Debug)]
struct Batch {
    events: Vec<Stamped>,
    /// Up to when that is all.
    seen_until_ns: u64,
    mode: Option<Mode>,
}

/// What both sides see.
#[derive(Debug, Default)]
struct Shared {
    reset: AtomicBool,
    /// Captured pages on their way.
    waiting: AtomicUsize,
    /// Those that the watch took last, until it asks for more.
    working: AtomicUsize,
    /// Nobody takes batches any more.
    unwanted: AtomicBool,
}

impl Shared {
    /// Captured pages that are not digested yet, as far as is known here.
    fn captures(&self) -> usize {
        let waiting = self.waiting.load(Ordering::Acquire);
        waiting.saturating_add(self.working.load(Ordering::Acquire))
    }

    fn is_behind(&self) -> bool {
        self.captures() > 0
    }
}

/// The watch's side.
#[derive(Debug)]
pub(super) struct Pump {
    batches: Receiver<Result<Batch, KvmTrapError>>,
    shared: Arc<Shared>,
    seen_until_ns: u64,
    mode: Option<Mode>,
    over: bool,
}

impl Pump {
    /// Starts the thread.
    pub(super) fn start(driver: impl Pumped) -> std::io::Result<Self> {
        let (sender, batches) = channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("nephoscope-pump".into())
            .spawn(move || run(driver, &theirs, &sender))?;
        Ok(Self {
            batches,
            shared,
            seen_until_ns: 0,
            mode: None,
            over: false,
        })
    }

    /// [`Pumped::reset`], before anything more is taken from the rings.
    pub(super) fn reset(&self) {
        self.shared.reset.store(true, Ordering::Release);
    }

    /// [`Pumped::seen_until_ns`], of what was given out here.
    pub(super) const fn seen_until_ns(&self) -> u64 {
        self.seen_until_ns
    }

    /// [`Pumped::mode`], as of what was given out here.
    pub(super) const fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Whether the VM is gone, and everything was given out.
    pub(super) const fn is_closed(&self) -> bool {
        self.over
    }

    /// Waits up to `timeout` for events and appends them.
    pub(super) fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> Result<(), KvmTrapError> {
        self.shared.working.store(0, Ordering::Release);
        let mut batch = match self.batches.recv_timeout(timeout) {
            Ok(batch) => Some(batch),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                None
            }
        };
        while let Some(taken) = batch {
            let taken = taken?;
            let captures = captures(&taken.events);
            self.shared.working.fetch_add(captures, Ordering::AcqRel);
            self.shared.waiting.fetch_sub(captures, Ordering::AcqRel);
            out.extend(taken.events);
            self.seen_until_ns = taken.seen_until_ns;
            self.mode = taken.mode;
            batch = self.batches.try_recv().ok();
        }
        Ok(())
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.unwanted.store(true, Ordering::Release);
    }
}

fn captures(events: &[Stamped]) -> usize {
    events
        .iter()
        .filter(|stamped| matches!(stamped.event, Event::CodeCaptured(_)))
        .count()
}

fn run(mut driver: impl Pumped, shared: &Shared, batches: &Sender<Result<Batch, KvmTrapError>>) {
    while !driver.is_closed() && !shared.unwanted.load(Ordering::Acquire) {
        if shared.reset.swap(false, Ordering::AcqRel) {
            driver.reset();
        }
        if shared.captures() >= MAX_WAITING {
            std::thread::sleep(REST);
            continue;
        }
        driver.behind(shared.is_behind());
        let mut events = Vec::new();
        let taken = driver.next(PAUSE, &mut events);
        shared.waiting.fetch_add(captures(&events), Ordering::AcqRel);
        let failed = taken.is_err();
        let batch = taken.map(|()| Batch {
            events,
            seen_until_ns: driver.seen_until_ns(),
            mode: driver.mode(),
        });
        if batches.send(batch).is_err() || failed {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nephoscope_guest::{CodeCaptured, Gva, Lifecycle, PageBytes, PageId, Privilege, Root};
    use std::sync::Mutex;
    use std::time::Instant;

    /// Gives so many captured pages, one at a time, and notes how many it has given.
    struct Endless {
        given: Arc<AtomicUsize>,
        most: usize,
        resets: Arc<Mutex<Vec<usize>>>,
        behind: Arc<AtomicBool>,
    }

    impl Pumped for Endless {
        fn next(&mut self, _: Duration, out: &mut Vec<Stamped>) -> Result<(), KvmTrapError> {
            let number = self.given.fetch_add(1, Ordering::AcqRel) as u64;
            let event = Event::CodeCaptured(Box::new(CodeCaptured {
                page: PageId(number),
                gpa: None,
                frame: 0,
                generation: 0,
                vcpu: 0,
                root: Root(0),
                va: Gva(0),
                privilege: Privilege::User,
                paging: true,
                bits: 64,
                start: 0,
                end: 1,
                replay: false,
                bytes: PageBytes::zeroed(),
            }));
            out.push(Stamped { at_ns: number, event });
            out.push(Stamped {
                at_ns: number,
                event: Event::Lifecycle(Lifecycle::Started),
            });
            Ok(())
        }

        fn reset(&mut self) {
            let given = self.given.load(Ordering::Acquire);
            self.resets.lock().unwrap().push(given);
        }

        fn behind(&mut self, behind: bool) {
            self.behind.store(behind, Ordering::Release);
        }

        fn seen_until_ns(&self) -> u64 {
            self.given.load(Ordering::Acquire) as u64
        }

        fn mode(&self) -> Option<Mode> {
            Some(Mode::long())
        }

        fn is_closed(&self) -> bool {
            self.given.load(Ordering::Acquire) >= self.most
        }
    }

    fn endless(most: usize) -> (Endless, Arc<AtomicUsize>, Arc<Mutex<Vec<usize>>>) {
        let (given, resets) = (Arc::default(), Arc::default());
        let driver = Endless {
            given: Arc::clone(&given),
            most,
            resets: Arc::clone(&resets),
            behind: Arc::default(),
        };
        (driver, given, resets)
    }

    fn until(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn everything_comes_in_its_order_and_then_it_is_over() {
        let (driver, _, _) = endless(1000);
        let mut pump = Pump::start(driver).unwrap();
        let mut events = Vec::new();
        while !pump.is_closed() {
            pump.next(Duration::from_millis(5), &mut events).unwrap();
        }
        assert_eq!((events.len(), pump.seen_until_ns()), (2000, 1000));
        assert!(events.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
    }

    #[test]
    fn max_waiting_bounds_what_is_taken_from_the_rings_before_its_turn() {
        let (driver, given, _) = endless(usize::MAX);
        let mut pump = Pump::start(driver).unwrap();
        until(|| given.load(Ordering::Acquire) >= MAX_WAITING);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(given.load(Ordering::Acquire), MAX_WAITING);
        let mut events = Vec::new();
        while events.len() < 2 * MAX_WAITING {
            pump.next(Duration::from_millis(5), &mut events).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        let taken = events.len() / 2;
        assert!(taken <= MAX_WAITING, "they are still worked on: {taken}");
        pump.next(Duration::from_millis(5), &mut events).unwrap();
        until(|| given.load(Ordering::Acquire) > MAX_WAITING);
    }

    #[test]
    fn who_has_pages_and_does_not_ask_for_more_is_behind() {
        let (driver, _, _) = endless(usize::MAX);
        let behind = Arc::clone(&driver.behind);
        let _unasked = Pump::start(driver).unwrap();
        until(|| behind.load(Ordering::Acquire));
        let (driver, _, _) = endless(3);
        let mut events = Vec::new();
        let mut pump = Pump::start(driver).unwrap();
        until(|| pump.shared.is_behind());
        while events.len() < 6 {
            pump.next(Duration::from_millis(5), &mut events).unwrap();
        }
        assert!(pump.shared.is_behind(), "until it asks for more");
        pump.next(Duration::from_millis(5), &mut events).unwrap();
        assert!(!pump.shared.is_behind());
    }

    #[test]
    fn a_reset_is_told_before_anything_more_is_taken_and_an_unwanted_driver_ends() {
        let (driver, given, resets) = endless(usize::MAX);
        let pump = Pump::start(driver).unwrap();
        until(|| given.load(Ordering::Acquire) > 0);
        pump.reset();
        until(|| !resets.lock().unwrap().is_empty());
        drop(pump);
        until(|| Arc::strong_count(&given) == 1);
    }
}
