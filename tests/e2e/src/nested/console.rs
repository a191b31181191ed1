//! The machine's process, and what it says on its console.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, Result};

/// What L1 says when it is about to run what it was given (`guest-files/nested-init`).
const UP: &str = "nested machine: up";

/// What Linux says of a CPU whose timer does not fire any more (`kernel/rcu/tree_stall.h`).
const STALLED: &str = "kthread timer wakeup didn't happen";

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

/// Starts it and waits for its end; what it says is given line by line.
pub(super) fn attend(command: &mut Command, deadline: Instant, line: &mut dyn FnMut(&str)) -> Result<End> {
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
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let end = match lines.recv_timeout(left) {
            Ok(text) if text.contains(UP) => {
                is_up = true;
                continue;
            }
            Ok(text) if !is_up && text.contains(STALLED) => End::Stalled,
            Ok(text) => {
                line(&text);
                if last.len() == LAST {
                    last.remove(0);
                }
                last.push(text);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Exited(child.wait()?, last)),
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
        let end = attend(&mut shell, Instant::now() + within, &mut |line| {
            said.push(line.to_owned())
        });
        (end.unwrap(), said)
    }

    const LONG: Duration = Duration::from_secs(60);

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
