//! The collector's thread, for vCPUs that neither idle nor change roots.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::plugin::{Plugin, guarded, now_ns};

/// How often the collector's thread looks at all marks: there are tens of thousands. A vCPU that changes roots or idles looks
/// at all of its own then.
const ALL: Duration = Duration::from_millis(32);

/// What the thread does: every few milliseconds it looks at young marks, and now and then at all.
pub(crate) fn run_collector(plugin: &'static Plugin) {
    let pause = Duration::from_millis(plugin.config.collect_ms);
    let mut counters_due = 0;
    let mut all_due = 0;
    // Marks that were used when all were looked at last, and when they were the time before.
    let (mut used, mut before) = (0, 0);
    while !plugin.exiting.load(Ordering::Relaxed) {
        // At even pace: a thread that rested for longer, and was woken when there was something to do, was up to 100 ms late
        // where other work kept all CPUs busy.
        std::thread::sleep(pause);
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
