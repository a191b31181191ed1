//! The machine's process, and what it says on its console.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What L1 says when it is about to run what it was given (`guest-files/nested-init`).
const UP: &str = "nested machine: up";

/// What Linux says of a CPU whose timer does not fire any more (`kernel/rcu/tree_stall.h`).
const STALLED: &str = "kthread timer wakeup didn't happen";

/// What it says, every 21 seconds, of a CPU on which nothing goes on (the same file). So often, with nothing else said, is for ever.
const NOTHING_GOES_ON: &str = "rcu: INFO: rcu_";
const MAX_NOTHING: usize = 4;

/// How long it may take until it is up: it takes ten seconds, and three times as long beside other work. One in some dozens stands still
/// without a word, with its CPUs busy.
const BEGINNING: Duration = Duration::from_secs(200);

/// Lines that are kept for an error.
const LAST: usize = 20;

/// What became of it, with the last lines that it said.
#[derive(Debug)]
pub(super) enum End {
    /// The process ended.
    Exited(ExitStatus, Vec<String>),
    /// It had not in time, and was ended.
    Late(Vec<String>),
    /// It stood still before it ran anything, and was ended.
    Stalled,
}

/// How long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// Until then.
    Until(Instant),
    /// So much work of its CPUs since it said something: beside others, work takes longer. Not later than then, if it does not work.
    Work(Duration, Instant),
}

/// How many times longer work may take beside others.
const BESIDE: u32 = 6;

impl Limit {
    /// The same for so long a time from now on.
    fn at_first(self, time: Duration) -> Self {
        match self {
            Self::Until(_) => Self::Until(Instant::now() + time),
            Self::Work(..) => Self::Work(time, Instant::now() + time * BESIDE),
        }
    }

    /// How much time is left at least; nothing if it is late. `before` is the work until it said something last.
    fn left(self, process: u32, before: Duration) -> Duration {
        match self {
            Self::Until(deadline) => deadline.saturating_duration_since(Instant::now()),
            Self::Work(most, deadline) => {
                let since = worked(process).map(|worked| worked.saturating_sub(before));
                let left = most.saturating_sub(since.unwrap_or(most));
                left.min(deadline.saturating_duration_since(Instant::now()))
            }
        }
    }
}

/// How long a process has had CPUs (`proc_pid_stat(5)`, fields 14 and 15).
fn worked(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let all = ticks()?.checked_add(ticks()?)?;
    Some(Duration::from_millis(
        all * 1000 / rustix::param::clock_ticks_per_second().max(1),
    ))
}

/// Starts it and waits for its end; what it says is given line by line.
pub(super) fn attend(command: &mut Command, limit: Limit, line: &mut dyn FnMut(&str)) -> Result<End> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the emulator")?;
    let console = child.stdout.take().context("no console")?;
    let (sender, lines) = channel();
    // It ends with the console.
    std::thread::spawn(move || {
        for text in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&text).trim_end().to_owned())
                .is_err()
            {
                break;
            }
        }
    });
    let (mut last, mut is_up) = (Vec::new(), false);
    let (mut is_begun, mut nothing, beginning) = (false, 0, limit.at_first(BEGINNING));
    let mut before = Duration::ZERO;
    loop {
        // Who waits for work looks again after a while.
        let to_begin = if is_up {
            Duration::MAX
        } else {
            beginning.left(child.id(), Duration::ZERO)
        };
        let left = limit.left(child.id(), before).min(to_begin);
        let end = match lines.recv_timeout(left) {
            Ok(text) if text.contains(UP) => {
                is_up = true;
                continue;
            }
            Ok(text) if !is_up && text.contains(STALLED) => End::Stalled,
            Ok(text) if !is_begun && nothing >= MAX_NOTHING && text.contains(NOTHING_GOES_ON) => End::Stalled,
            Ok(text) => {
                line(&text);
                before = worked(child.id()).unwrap_or(before);
                // What the machine is there for does not speak as the kernel does.
                let by_kernel = text.trim_start().starts_with('[');
                is_begun |= is_up && !by_kernel;
                nothing += usize::from(text.contains(NOTHING_GOES_ON));
                if last.len() == LAST {
                    last.remove(0);
                }
                last.push(text);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited(child.wait()?, last)),
            Err(RecvTimeoutError::Timeout)
                if !is_up && beginning.left(child.id(), Duration::ZERO).is_zero() =>
            {
                End::Stalled
            }
            Err(RecvTimeoutError::Timeout) if !limit.left(child.id(), before).is_zero() => continue,
            Err(RecvTimeoutError::Timeout) => End::Late(last),
        };
        child.kill()?;
        child.wait()?;
        return Ok(end);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What became of a shell in the machine's place, and what it said.
    fn attended(script: &str, within: Duration) -> (End, Vec<String>) {
        let mut said = Vec::new();
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let end = attend(&mut shell, Limit::Until(Instant::now() + within), &mut |line| {
            said.push(line.to_owned())
        });
        (end.unwrap(), said)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn work_is_what_counts_where_it_is_counted() {
        let attended = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            attend(
                &mut shell,
                Limit::Work(Duration::from_millis(300), Instant::now() + LONG),
                &mut |_| (),
            )
            .unwrap()
        };
        let idle = attended("sleep 1");
        assert!(matches!(idle, End::Exited(..)), "{idle:?}");
        let busy = attended("while :; do :; done");
        assert!(matches!(busy, End::Late(_)), "{busy:?}");
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; echo $i";
        let speaks = attended(&format!("for n in $(seq 30); do {work}; done"));
        assert!(
            matches!(speaks, End::Exited(..)),
            "more work, and said meanwhile: {speaks:?}"
        );
    }

    #[test]
    fn where_work_is_counted_a_beginning_is_work_too() {
        let mut idle = Command::new("sleep").arg("60").spawn().unwrap();
        let (soon, much) = (Duration::from_millis(20), Duration::from_secs(9));
        let by_work = Limit::Work(much, Instant::now() + much).at_first(soon);
        let by_clock = Limit::Until(Instant::now() + much).at_first(soon);
        std::thread::sleep(soon);
        let left = |limit: Limit, process: u32| limit.left(process, Duration::ZERO);
        assert!(left(by_clock, idle.id()).is_zero() && !left(by_work, idle.id()).is_zero());
        std::thread::sleep(soon * BESIDE);
        assert!(left(by_work, idle.id()).is_zero(), "nothing goes on for ever");
        idle.kill().unwrap();
        idle.wait().unwrap();
    }

    #[test]
    fn a_machine_that_stands_still_before_it_is_up_is_told_from_one_that_does_later() {
        let stall = "echo \"rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies\"";
        let (end, _) = attended(&format!("{stall}; exec sleep 600"), LONG);
        assert!(matches!(end, End::Stalled), "{end:?}");
        let (end, said) = attended(&format!("echo 'nested machine: up'; {stall}"), LONG);
        assert!(
            matches!(end, End::Exited(status, _) if status.success()),
            "{end:?}"
        );
        assert_eq!(
            said.len(),
            1,
            "the mark is not passed on, and the rest is: {said:?}"
        );
    }

    #[test]
    fn one_that_does_not_end_in_time_is_ended_and_its_last_lines_are_kept() {
        let (end, _) = attended(
            "for i in $(seq 30); do echo $i; done; exec sleep 600",
            Duration::from_secs(2),
        );
        let End::Late(last) = end else { panic!("{end:?}") };
        assert_eq!(
            (last.len(), last.first(), last.last()),
            (LAST, Some(&"11".to_owned()), Some(&"30".to_owned()))
        );
    }
}
