//! The collector's thread, for vCPUs that neither idle nor change roots.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crate::plugin::{Plugin, guarded, now_ns};

/// How often the collector's thread looks at all marks: there are tens of thousands. A vCPU that changes roots or idles looks
/// at all of its own then.
const ALL: Duration = Duration::from_millis(32);

/// What the thread does: every few milliseconds while code runs that never
/// ran before, and now and then otherwise.
pub(crate) fn run_collector(plugin: &'static Plugin) {
    let pause = Duration::from_millis(plugin.config.collect_ms);
    let mut counters_due = 0;
    let mut all_due = 0;
    // Marks that were used when all were looked at last, and when they were the time before.
    let (mut used, mut before) = (0, 0);
    while !plugin.exiting.load(Ordering::Relaxed) {
        let nothing_young = || plugin.marks.used() == before;
        if nothing_young() {
            plugin.collector.rest(ALL, nothing_young);
        } else {
            std::thread::sleep(pause);
        }
        if !plugin.is_attached() {
            continue;
        }
        // Young marks are of new code, the others of code that is known. A mark is made before its code runs: one that all
        // were looked at just after stays young until the next time.
        let from = if now_ns() >= all_due {
            before = std::mem::replace(&mut used, plugin.marks.used());
            all_due = now_ns() + u64::try_from(ALL.as_nanos()).unwrap_or(u64::MAX);
            0
        } else {
            before
        };
        guarded(|plugin| {
            for vcpu in plugin
                .vcpus
                .iter()
                .filter(|vcpu| vcpu.started.load(Ordering::Acquire))
            {
                if let Some(mut local) = vcpu.try_lock() {
                    plugin.tell_pending(vcpu, &mut local, false);
                    plugin.collect_some(vcpu, &mut local, from);
                }
            }
        });
        if now_ns() >= counters_due {
            guarded(Plugin::send_counters);
            counters_due = now_ns() + 250_000_000;
        }
    }
}

/// How vCPUs wake the collector's thread while it rests.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    thread: OnceLock<Thread>,
    resting: AtomicBool,
}

impl Collector {
    /// The collector's thread waits for [`Self::wake`], at most as long, if there is `nothing` to do.
    fn rest(&self, at_most: Duration, nothing: impl Fn() -> bool) {
        self.thread.get_or_init(std::thread::current);
        // Before the look: whoever makes something to do after it sees that we rest.
        self.resting.store(true, Ordering::SeqCst);
        if nothing() {
            std::thread::park_timeout(at_most);
        }
        self.resting.store(false, Ordering::SeqCst);
    }

    /// There is something to do.
    pub(crate) fn wake(&self) {
        if self.resting.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_collector_that_rests_is_woken_and_one_with_work_does_not_rest() {
        let begun = Instant::now();
        let collector = Arc::new(Collector::default());
        collector.wake();
        collector.rest(Duration::from_secs(60), || false);
        let waker = Arc::clone(&collector);
        let waking = std::thread::spawn(move || {
            while !waker.resting.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            waker.wake();
        });
        collector.rest(Duration::from_secs(60), || true);
        waking.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
