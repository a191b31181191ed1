//! What `nephoscope run` and `attach --all` start in the background. Nobody else needs these commands.

use std::process::ExitCode;

use clap::Args;

use crate::disks::Servers;
use crate::exit::Failure;
use crate::keep::Keeper;
use crate::monitor::{self, Over};
use crate::runtime::{self, VmDir};
use crate::state::VmState;

/// Of which VM.
#[derive(Debug, Args)]
pub(crate) struct KeepArgs {
    /// Its name.
    #[arg(long)]
    name: String,
    /// Ends with the process that has started this one.
    #[arg(long)]
    attached: bool,
}

/// Its own session: a terminal's signals are meant for the VM, and its end is not the watch's.
fn detach() {
    // It fails for who leads a group already, and then it is done.
    let _ = rustix::process::setsid();
}

/// Waits until nobody keeps the VM watched any more, and then does.
pub(crate) fn keep(args: &KeepArgs) -> anyhow::Result<ExitCode> {
    detach();
    let dir = VmDir::named(&args.name)?;
    let Some(lock) = runtime::wait_for_lock(&dir.keep_lock())? else {
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(state) = VmState::read(&dir)? {
        Keeper::new(&dir, lock, Servers::of(&state.disks)).keep(None)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until nobody watches the VM, and then does, until it ends.
pub(crate) fn watch(args: &KeepArgs) -> anyhow::Result<ExitCode> {
    let parent = rustix::process::getppid().filter(|_| args.attached);
    if parent.is_none() {
        detach();
    }
    let dir = VmDir::named(&args.name)?;
    let Some(lock) = runtime::wait_for_lock(&dir.watch_lock())? else {
        return Ok(ExitCode::from(Failure::NoVm as u8));
    };
    let Some(state) = VmState::read(&dir)? else {
        return Ok(ExitCode::from(Failure::NoVm as u8));
    };
    match monitor::watch_vm(&dir, &state, &lock, parent)? {
        Over::Watched | Over::FromJournal => Ok(ExitCode::SUCCESS),
        // Its own message is on the terminal.
        Over::Unseen => Ok(ExitCode::from(Failure::NoVm as u8)),
    }
}
