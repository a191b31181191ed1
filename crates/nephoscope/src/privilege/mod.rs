//! What the monitor gives up once its descriptors are open.
//!
//! What it reads was made by a guest that may be hostile. Should that ever take the monitor over, it holds: the rings and a
//! descriptor of the guest's memory, QEMU's monitor protocol for this one VM, and files to read the catalog and to write the
//! report. Not: root, another user's or another VM's things, programs to start, networks, new executable memory.
//!
//! ```text
//!  open everything ─► limits ─► another user, if root ─► capabilities ─► no_new_privs ─► Landlock ─► seccomp ─► threads
//! ```
//!
//! It is done before the first thread is started, since some of it holds for one thread and those that it starts. QEMU was
//! started before, and has none of it. What a kernel is too old for is told on standard error and in the report.

mod account;
mod capabilities;
mod files;
mod in_force;
mod limits;
mod report_file;
mod syscalls;
#[cfg(debug_assertions)]
pub(crate) mod trial;

pub(crate) use account::Account;
pub(crate) use in_force::InForce;
pub(crate) use report_file::ReportFile;

use std::path::PathBuf;

use anyhow::Context;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::runtime::Kept;

/// What is still needed afterwards.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    /// Whom to become, if root started this: `--user`.
    pub(crate) account: Option<Account>,
    /// Folders that are read.
    pub(crate) read: Vec<PathBuf>,
    /// Folders in which files are made, replaced and removed.
    pub(crate) write: Vec<PathBuf>,
    /// The folder of the VM's watches: it becomes the account's.
    pub(crate) kept: Option<Kept>,
    /// The process that has started this one, if this one is to end with it.
    pub(crate) parent: Option<Pid>,
    /// The process whose memory is read by number, with `process_vm_readv`; then no files are opened.
    pub(crate) read_process: Option<Pid>,
}

/// Whether a monitor could become this account.
///
/// # Errors
/// If not.
pub(crate) fn check(account: Option<Account>) -> anyhow::Result<()> {
    let keep = Keep {
        account,
        ..Keep::default()
    };
    account::choose(&keep).map(|_| ())
}

/// Gives up everything else, for good. Says what of it is in force.
///
/// # Errors
/// If root cannot become somebody else, or there are other threads already: going on would be as before, and nobody would
/// know. Or if who reads a process gets no filter.
pub(crate) fn drop(keep: &Keep) -> anyhow::Result<InForce> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    anyhow::ensure!(threads == 1, "privileges are dropped while {threads} threads run");
    let mut in_force = InForce::default();
    let account = account::choose(keep)?;
    limits::set(account.is_some(), &mut in_force);
    capabilities::shrink_bounding_set();
    let files = files::prepare(keep);
    let kept = keep.read_process.map(|_| capabilities::READ_PROCESS);
    if kept.is_some() {
        capabilities::keep_over_users()?;
    }
    account::become_it(account, keep, &mut in_force)?;
    capabilities::drop_all(kept, &mut in_force);
    if let Some(parent) = keep.parent {
        // Now, since becoming another user forgets it.
        set_parent_process_death_signal(Some(Signal::KILL)).context("asking to end with the parent")?;
        anyhow::ensure!(getppid() == Some(parent), "who started this has ended");
    }
    match keep.read_process {
        // Landlock keeps whoever it confines from other processes. Of files, the filter leaves nothing.
        Some(process) => syscalls::filter_reader(process, &mut in_force)?,
        None => {
            files::restrict(files, &mut in_force);
            syscalls::filter(&mut in_force);
        }
    }
    Ok(in_force)
}
