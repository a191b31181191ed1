//! `nephoscope gather`: reads the memory of one process for a scan that has given up the right to (hidden; `scan` starts it).

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use clap::Args;
use nephoscope_drivers::{Gatherer, serve_gatherer};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::process::{Pid, getppid};

use crate::privilege::{self, Account, Keep};

/// Read the memory of one process for a scan.
#[derive(Debug, Args)]
pub(crate) struct GatherArgs {
    /// The process.
    #[arg(long)]
    pid: i32,
    /// Whom to become, if root starts this.
    #[arg(long)]
    user: Option<Account>,
}

/// Starts one for this process, to be asked over what is returned. It ends when nobody can ask any more.
pub(crate) fn start(pid: u32, user: Option<Account>) -> anyhow::Result<Gatherer> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("gather").arg("--pid").arg(pid.to_string());
    if let Some(user) = user {
        command.arg("--user").arg(user.to_string());
    }
    command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start this program again")?;
    Ok(Gatherer::new(ours))
}

/// Runs it. The connection is standard input.
pub(crate) fn run(args: &GatherArgs) -> anyhow::Result<ExitCode> {
    let process = Pid::from_raw(args.pid).context("no process")?;
    let stream = UnixStream::from(rustix::io::dup(std::io::stdin())?);
    let in_force = privilege::drop(&Keep {
        account: args.user,
        parent: getppid(),
        read_process: Some(process),
        ..Keep::default()
    })?;
    in_force.tell();
    let pid = nix::unistd::Pid::from_raw(args.pid);
    serve_gatherer(stream, |at, buf| {
        let Ok(base) = usize::try_from(at) else {
            return false;
        };
        let len = buf.len();
        let from = [RemoteIoVec { base, len }];
        process_vm_readv(pid, &mut [IoSliceMut::new(buf)], &from) == Ok(len)
    })?;
    Ok(ExitCode::SUCCESS)
}
