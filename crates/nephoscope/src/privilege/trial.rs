//! For tests, in debug builds only: does what a monitor must not be able to do, confined as a monitor is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::text::print;

use super::{Account, Keep, drop};

/// Try something that a monitor must not be able to do (debug builds only).
#[derive(Debug, Args)]
pub(crate) struct TrialArgs {
    /// exec, fork, socket, executable, signal, read:FILE, write:FILE, or thread:FILE, which reads it in one.
    act: String,
    /// A folder that may be read.
    #[arg(long, value_name = "DIR")]
    read: Vec<PathBuf>,
    /// A folder that may be written.
    #[arg(long, value_name = "DIR")]
    write: Vec<PathBuf>,
    /// Whom to become, if root.
    #[arg(long, value_name = "USER")]
    user: Option<Account>,
}

/// Tries it; prints what is in force and how the act ended: `done`, or the error.
pub(crate) fn run(args: TrialArgs) -> anyhow::Result<ExitCode> {
    let keep = Keep {
        account: args.user,
        read: args.read,
        write: args.write,
        ..Keep::default()
    };
    let in_force = drop(&keep)?;
    for (part, how) in in_force.parts() {
        print(&format!("{part}: {how}\n"))?;
    }
    match attempt(&args.act) {
        Ok(()) => print("act: done\n")?,
        Err(error) => print(&format!("act: {error}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn attempt(act: &str) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt;
    match act.split_once(':').unwrap_or((act, "")) {
        ("read", path) => std::fs::read(path).map(|_| ()),
        ("write", path) => std::fs::write(Path::new(path), "x"),
        ("exec", _) => Err(std::process::Command::new("/bin/true").exec()),
        ("fork", _) => std::process::Command::new("/bin/true").status().map(|_| ()),
        ("socket", _) => std::net::UdpSocket::bind("127.0.0.1:0").map(|_| ()),
        ("signal", _) => {
            let init = rustix::process::Pid::INIT;
            Ok(rustix::process::test_kill_process(init)?)
        }
        ("thread", path) => {
            let path = path.to_owned();
            let thread = std::thread::Builder::new().spawn(move || std::fs::read(path).map(|_| ()))?;
            thread.join().unwrap_or(Ok(()))
        }
        ("executable", _) => executable(),
        _ => Err(std::io::Error::other("no such act")),
    }
}

/// Memory that could hold new code.
#[allow(unsafe_code, reason = "asking for memory is unsafe, whatever the answer")]
fn executable() -> std::io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let protection = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    // SAFETY: a new private mapping where the kernel chooses is no memory that anything else uses, and nobody uses this.
    unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, MapFlags::PRIVATE) }?;
    Ok(())
}
