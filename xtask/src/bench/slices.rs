//! Guests that run by turns, a slice of time each, so that whatever the machine has to do besides falls on all of them alike.
//!
//! ```text
//!  plain    ▇▇▇▇▇▇            ▇▇▇▇▇▇            ▇▇▇▇▇▇        one runs (SIGCONT),
//!  watched        ▇▇▇▇▇▇            ▇▇▇▇▇▇            ▇▇▇▇▇▇  the others are stopped (SIGSTOP)
//! ```
//!
//! A job that takes ten seconds has a hundred slices on each side: a neighbour that slows the machine down for a second costs
//! all the same. One after the other, medians of ten pairs still differ by five per cent.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Long beside what it costs to stop and go on, short beside what changes on the machine.
const SLICE: Duration = Duration::from_millis(100);

/// One that takes part.
#[derive(Debug)]
struct Member {
    pid: Pid,
    /// For how long it ran.
    ran: Duration,
    done: bool,
}

#[derive(Debug, Default)]
struct Shared {
    members: Vec<Member>,
    over: bool,
}

/// Running slices. Dropped, all members go on.
#[derive(Debug)]
pub(crate) struct Slices {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Slices {
    /// Stops all but one of these processes, and lets them run in turns, in this order.
    pub(crate) fn begin(pids: impl IntoIterator<Item = u32>) -> Result<Self> {
        let mut members = Vec::new();
        for pid in pids {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            members.push(Member {
                pid: raw.context("no process id")?,
                ran: Duration::ZERO,
                done: false,
            });
        }
        for member in &members {
            kill_process(member.pid, Signal::STOP).context("a guest has ended")?;
        }
        let shared = Arc::new(Mutex::new(Shared { members, over: false }));
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || turns(&shared)
        });
        Ok(Slices {
            shared,
            thread: Some(thread),
        })
    }

    /// This member has done its job, and stays stopped until all have: for how long it ran.
    pub(crate) fn done(&self, number: usize) -> Duration {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = shared.members.get_mut(number) else {
            return Duration::ZERO;
        };
        member.done = true;
        member.ran
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for member in &shared.members {
            // One that has ended is missed by whoever waits for it.
            let _ = kill_process(member.pid, Signal::CONT);
        }
    }
}

fn turns(shared: &Mutex<Shared>) {
    let mut next = 0;
    loop {
        let pid = {
            let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let count = shared.members.len();
            let waiting = (0..count)
                .map(|ahead| (next + ahead) % count)
                .find(|number| shared.members.get(*number).is_some_and(|member| !member.done));
            let Some(number) = waiting.filter(|_| !shared.over) else {
                return;
            };
            next = number;
            shared.members.get(number).map(|member| member.pid)
        };
        let Some(pid) = pid else { return };
        let begun = Instant::now();
        let _ = kill_process(pid, Signal::CONT);
        std::thread::sleep(SLICE);
        let _ = kill_process(pid, Signal::STOP);
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = shared.members.get_mut(next) {
            member.ran = member.ran.saturating_add(begun.elapsed());
        }
        next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Whether a process is stopped, as proc(5) has it.
    fn is_stopped(child: &Child) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    }

    #[test]
    fn members_run_for_as_long_as_each_other_and_go_on_in_the_end() {
        let mut children: Vec<Child> = (0..2)
            .map(|_| Command::new("sleep").arg("60").spawn().unwrap())
            .collect();
        let slices = Slices::begin(children.iter().map(Child::id)).unwrap();
        std::thread::sleep(SLICE * 5);
        let both = children.iter().filter(|child| is_stopped(child)).count();
        let ran = [slices.done(0), slices.done(1)];
        drop(slices);
        let stopped: Vec<bool> = children.iter().map(is_stopped).collect();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(both >= 1, "they do not run at the same time");
        assert!(ran.iter().all(|ran| *ran >= SLICE), "{ran:?}");
        assert!(ran[0].abs_diff(ran[1]) <= SLICE * 2, "{ran:?}");
        assert_eq!(stopped, [false, false]);
    }
}
