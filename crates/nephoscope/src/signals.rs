//! Signals meant for a VM go to it.
//!
//! QEMU ends at the first of them, and mostly soon. One that has just begun to answer a question over its monitor protocol
//! does not: it waits for the answer to be sent, and for nothing that would send it (QEMU 10.0, `monitor_cleanup`). Any
//! signal that it handles makes it look again, so it is told again until it is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long a VM may take to end before it is told again: writing back what its disks have not yet takes a while, and is
/// not disturbed.
const AGAIN: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Passes SIGTERM, SIGINT and SIGHUP on to a child that was not waited for yet.
///
/// # Errors
/// If signals cannot be caught.
pub(crate) fn forward(child: Pid) -> anyhow::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("taking signals")?;
    // Without such a descriptor, which Linux has since 5.3, nothing is told twice: the number may be another's by then.
    let process = pidfd_open(child, PidfdFlags::empty()).ok().map(Arc::new);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut insisting = false;
            for signal in signals.forever().filter_map(Signal::from_named_raw) {
                match &process {
                    Some(process) => {
                        let _ = pidfd_send_signal(process, signal);
                        if !insisting {
                            insisting = insist_beside(process, signal);
                        }
                    }
                    None => drop(kill_process(child, signal)),
                }
            }
        })?;
    Ok(())
}

fn insist_beside(process: &Arc<OwnedFd>, signal: Signal) -> bool {
    let process = process.clone();
    std::thread::Builder::new()
        .name("insist".into())
        .spawn(move || insist(process.as_fd(), signal, AGAIN))
        .is_ok()
}

/// Sends a signal that was sent already, until the process is gone. Gives how often.
fn insist(process: BorrowedFd<'_>, signal: Signal, pause: Timespec) -> u32 {
    let mut sent = 0;
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&pause)) {
            Ok(0) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) | Err(_) => return sent,
        }
        if pidfd_send_signal(process, signal).is_err() {
            return sent;
        }
        sent += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn who_does_not_end_at_the_first_signal_is_told_again_until_it_is_gone() {
        let script = "n=0; trap 'n=$((n + 1)); test $n -lt 3 || exit 7' TERM; echo ready; while :; do sleep 0.02; done";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        pidfd_send_signal(&process, Signal::TERM).unwrap();
        let again = insist(process.as_fd(), Signal::TERM, pause);
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert!(again >= 2, "{again}");
        assert_eq!(insist(process.as_fd(), Signal::TERM, pause), 0, "it is gone");
    }
}
