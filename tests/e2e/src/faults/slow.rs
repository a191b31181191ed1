//! A monitor that gets little of the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// It runs for so long at once.
const RUNS: Duration = Duration::from_millis(5);

/// A process that is stopped most of the time, as long as this is there.
#[derive(Debug)]
pub struct Slow {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// The process gets one of so many parts of the time.
    #[must_use]
    pub fn begin(pid: Pid, parts: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let theirs = over.clone();
        let thread = thread::spawn(move || {
            let signal = |signal, then: Duration| {
                // One that has ended is not slow any more.
                let there = kill_process(pid, signal).is_ok();
                thread::sleep(then);
                there
            };
            while !theirs.load(Ordering::Relaxed)
                && signal(Signal::STOP, RUNS * (parts - 1))
                && signal(Signal::CONT, RUNS)
            {}
            signal(Signal::CONT, Duration::ZERO);
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
