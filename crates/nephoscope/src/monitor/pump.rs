//! A driver in a thread of its own.
//!
//! ```text
//!  rings ─► thread: next(), page tables of roots as they are now ─► batches, bounded ─► the watch's loop
//! ```
//!
//! While the session is busy with one page, the rings go on being emptied: on a host with much to do a page that is hard to name
//! takes longer than a guest waits. Under KVM who runs what is looked up in the guest's page tables at once, too, and not when
//! its turn comes: an address space may be gone by then. When too much waits, the rings are left to fill up, and the guest
//! waits for its monitor as it always does; it gets room for each page that was digested.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nephoscope_drivers::{KvmTrap, QemuPlugin};
use nephoscope_guest::{Event, Stamped};

use super::driver::Told;

/// What a pump needs of a driver.
pub(super) trait Pumped: Send + 'static {
    /// Waits up to `timeout` for events and appends them.
    fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> anyhow::Result<()>;
    /// Whoever has a root from now on is another address space.
    fn reset(&mut self);
    /// Whether captured pages that were given out before are still being worked on.
    fn behind(&mut self, behind: bool);
    /// Up to when everything was given out.
    fn seen_until_ns(&self) -> u64;
    /// How the guest's CPUs translate.
    fn told(&self) -> Told;
    /// Whether nothing comes any more.
    fn is_closed(&self) -> bool;
    /// How many captured pages may wait.
    fn most_waiting(&self) -> usize;
}

impl Pumped for KvmTrap {
    fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> anyhow::Result<()> {
        Ok(Self::next(self, timeout, out)?)
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

    fn told(&self) -> Told {
        Told::Known(self.mode())
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn most_waiting(&self) -> usize {
        MAX_WAITING
    }
}

impl Pumped for QemuPlugin {
    fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> anyhow::Result<()> {
        Ok(Self::next(self, timeout, out)?)
    }

    fn reset(&mut self) {
        // It fails with the connection only, which ends the watch.
        drop(Self::reset(self));
    }

    /// The plugin captures before a page runs, however long that takes.
    fn behind(&mut self, _: bool) {}

    fn seen_until_ns(&self) -> u64 {
        Self::seen_until_ns(self)
    }

    fn told(&self) -> Told {
        match self.mode() {
            // Whoever watched from the beginning would have seen it.
            None if self.hello().blind_since_ns.is_some() => Told::Unknown,
            mode => Told::Known(mode),
        }
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn most_waiting(&self) -> usize {
        MAX_WAITING_PLUGIN
    }
}

/// Captured pages that wait, on their way or with the watch, at most: 64 MiB. It stops a guest that makes code faster than it can be named.
const MAX_WAITING: usize = 16 << 10;
/// The same under TCG, where nobody has to be looked up in time, and a guest is slow to make code: 16 MiB.
const MAX_WAITING_PLUGIN: usize = 4 << 10;
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
    told: Told,
}

/// What both sides see.
#[derive(Debug, Default)]
struct Shared {
    reset: AtomicBool,
    /// Captured pages on their way, and the one that is worked on.
    waiting: AtomicUsize,
    /// Nobody takes batches any more.
    unwanted: AtomicBool,
}

impl Shared {
    fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }
}

/// The watch's side.
#[derive(Debug)]
pub(super) struct Pump {
    batches: Receiver<anyhow::Result<Batch>>,
    shared: Arc<Shared>,
    /// What has come and was not given out yet, and up to when everything is when that is.
    held: VecDeque<Stamped>,
    until_ns: u64,
    /// What was given out last is a captured page.
    is_at_capture: bool,
    seen_until_ns: u64,
    told: Told,
    over: bool,
}

impl Pump {
    /// Starts the thread.
    pub(super) fn start(driver: impl Pumped) -> std::io::Result<Self> {
        let (sender, batches) = channel();
        let told = driver.told();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("nephoscope-pump".into())
            .spawn(move || run(driver, &theirs, &sender))?;
        Ok(Self {
            batches,
            shared,
            held: VecDeque::new(),
            until_ns: 0,
            is_at_capture: false,
            seen_until_ns: 0,
            told,
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

    /// [`Pumped::told`], as of what has come: memory is looked at as it is now, however far behind the watch is.
    pub(super) const fn told(&self) -> Told {
        self.told
    }

    /// Whether the VM is gone, and everything was given out.
    pub(super) const fn is_closed(&self) -> bool {
        self.over
    }

    /// Whether more has come and was not given out: what is for after all that ran so far has to wait.
    pub(super) fn holds_more(&self) -> bool {
        !self.held.is_empty()
    }

    /// The next event, if there is one within that time; what was given out before is digested.
    pub(super) fn next(&mut self, timeout: Duration) -> anyhow::Result<Option<Stamped>> {
        if std::mem::take(&mut self.is_at_capture) {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        if self.held.is_empty() {
            self.take(timeout)?;
        }
        let event = self.held.pop_front();
        self.is_at_capture = event.as_ref().is_some_and(is_capture);
        self.seen_until_ns = match self.held.front() {
            Some(next) => self.seen_until_ns.max(next.at_ns.min(self.until_ns)),
            None => self.until_ns,
        };
        Ok(event)
    }

    /// Takes all batches that are there.
    fn take(&mut self, timeout: Duration) -> anyhow::Result<()> {
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
            self.held.extend(taken.events);
            (self.until_ns, self.told) = (taken.seen_until_ns, taken.told);
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

fn is_capture(stamped: &Stamped) -> bool {
    matches!(stamped.event, Event::CodeCaptured(_))
}

fn captures(events: &[Stamped]) -> usize {
    events.iter().filter(|stamped| is_capture(stamped)).count()
}

fn run(mut driver: impl Pumped, shared: &Shared, batches: &Sender<anyhow::Result<Batch>>) {
    while !driver.is_closed() && !shared.unwanted.load(Ordering::Acquire) {
        if shared.reset.swap(false, Ordering::AcqRel) {
            driver.reset();
        }
        if shared.waiting.load(Ordering::Acquire) >= driver.most_waiting() {
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
            told: driver.told(),
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
    use nephoscope_isa::Mode;
    use std::sync::Mutex;
    use std::time::Instant;

    /// Gives so many captured pages, one at a time, and notes how many it has given.
    struct Endless {
        given: Arc<AtomicUsize>,
        most: usize,
        waiting: usize,
        resets: Arc<Mutex<Vec<usize>>>,
        behind: Arc<AtomicBool>,
    }

    impl Pumped for Endless {
        fn next(&mut self, _: Duration, out: &mut Vec<Stamped>) -> anyhow::Result<()> {
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

        fn told(&self) -> Told {
            // Paging is on from the second page on.
            Told::Known((self.given.load(Ordering::Acquire) > 1).then(Mode::long))
        }

        fn is_closed(&self) -> bool {
            self.given.load(Ordering::Acquire) >= self.most
        }

        fn most_waiting(&self) -> usize {
            self.waiting
        }
    }

    fn endless(most: usize) -> (Endless, Arc<AtomicUsize>, Arc<Mutex<Vec<usize>>>) {
        let (given, resets) = (Arc::default(), Arc::default());
        let driver = Endless {
            given: Arc::clone(&given),
            most,
            waiting: MAX_WAITING,
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
            events.extend(pump.next(Duration::from_millis(5)).unwrap());
            // Up to when everything was given out, and not further.
            let given = (events.len() as u64).div_ceil(2);
            assert!(pump.seen_until_ns() <= given && given - pump.seen_until_ns() <= 1);
            assert!(pump.holds_more() || pump.seen_until_ns() == given);
        }
        assert_eq!((events.len(), pump.seen_until_ns()), (2000, 1000));
        assert!(events.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
    }

    #[test]
    fn max_waiting_and_max_waiting_plugin_bound_what_is_taken_from_the_rings_before_its_turn() {
        for most in [MAX_WAITING, MAX_WAITING_PLUGIN] {
            bounds_what_is_taken(most);
        }
    }

    fn bounds_what_is_taken(most: usize) {
        let (driver, given, _) = endless(usize::MAX);
        let driver = Endless {
            waiting: most,
            ..driver
        };
        let mut pump = Pump::start(driver).unwrap();
        until(|| given.load(Ordering::Acquire) >= most);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(given.load(Ordering::Acquire), most);
        let first = pump.next(Duration::from_millis(5)).unwrap();
        assert!(is_capture(&first.unwrap()) && pump.holds_more());
        std::thread::sleep(Duration::from_millis(50));
        let taken = given.load(Ordering::Acquire);
        assert_eq!(taken, most, "it is still worked on");
        // There is room for as many as were digested, long before all were.
        let second = pump.next(Duration::from_millis(5)).unwrap();
        assert!(!is_capture(&second.unwrap()));
        until(|| given.load(Ordering::Acquire) == most + 1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(given.load(Ordering::Acquire), most + 1);
    }

    #[test]
    fn a_watch_that_is_behind_is_told_how_the_guest_translates_now() {
        let (driver, given, _) = endless(100);
        let mut pump = Pump::start(driver).unwrap();
        assert!(matches!(pump.told(), Told::Known(None)));
        until(|| given.load(Ordering::Acquire) == 100);
        std::thread::sleep(Duration::from_millis(50));
        let first = pump.next(Duration::from_millis(5)).unwrap();
        assert!(first.unwrap().at_ns == 0 && pump.holds_more());
        assert!(matches!(pump.told(), Told::Known(Some(_))));
    }

    #[test]
    fn who_has_pages_and_does_not_ask_for_more_is_behind() {
        let (driver, _, _) = endless(usize::MAX);
        let behind = Arc::clone(&driver.behind);
        let _unasked = Pump::start(driver).unwrap();
        until(|| behind.load(Ordering::Acquire));
        let (driver, _, _) = endless(3);
        let mut pump = Pump::start(driver).unwrap();
        until(|| pump.shared.is_behind());
        let mut events = Vec::new();
        while events.len() < 5 {
            events.extend(pump.next(Duration::from_millis(5)).unwrap());
        }
        assert!(
            is_capture(&events[4]) && pump.shared.is_behind(),
            "until it asks for more"
        );
        assert!(pump.next(Duration::from_millis(5)).unwrap().is_some());
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
