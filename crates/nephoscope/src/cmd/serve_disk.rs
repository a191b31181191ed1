//! What `nephoscope run --watch-files` starts for each disk. Nobody else needs it.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nephoscope_disk::{Device, Follower, Image, Kinds, Link, Serial, Server, Stop};

use crate::disks::Disk;
use crate::runtime::{self, VmDir};

/// How often it is looked whether the VM has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Which one.
#[derive(Debug, Args)]
pub(crate) struct ServeDiskArgs {
    /// The VM's name.
    #[arg(long)]
    name: String,
    /// The disk, as JSON.
    #[arg(long, value_parser = parse)]
    disk: Disk,
}

fn parse(text: &str) -> Result<Disk, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Serves it until the VM has ended.
pub(crate) fn run(args: &ServeDiskArgs) -> anyhow::Result<ExitCode> {
    // Its own session: a terminal's signals are meant for the VM.
    let _ = rustix::process::setsid();
    let (dir, disk) = (VmDir::named(&args.name)?, &args.disk);
    let lock = dir.disk_lock(disk.number);
    // Made by whoever is first; the VM's folder is there as long as the VM.
    let made = fs::File::options().create(true).append(true).open(&lock);
    made.with_context(|| format!("cannot make {}", lock.display()))?;
    let Some(_lock) = runtime::wait_for_lock(&lock)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let image = Image::open(&disk.image, disk.format.into(), disk.read_only)?;
    let image = Arc::new(image);
    let files = listen(&dir.disk_files(disk.number))?;
    let listener = listen(&dir.disk(disk.number))?;
    let link = Link::listen(files).context("cannot wait for the plugin")?;
    let follower = Follower::new(disk.number, Kinds::default(), image.clone(), link);
    let skipped = follower.skipped();
    if skipped.volumes + skipped.inodes + skipped.files > 0 {
        eprintln!(
            "nephoscope: {}: {} volumes and {} inodes are not understood: what is read of them is not told",
            disk.image.display(),
            skipped.volumes,
            skipped.inodes
        );
    }
    let (stop, stopped) = UnixStream::pair().context("cannot make a socket")?;
    std::thread::spawn(move || end_with(&dir, stop));
    let device = Device::new(image, Serial::new(&disk.serial), Box::new(follower));
    Server::new(device, disk.queues).run(listener, &Stop::new(stopped.into()))?;
    Ok(ExitCode::SUCCESS)
}

/// Listens at a path where nobody does any more, and where whoever looks finds somebody who does.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let bound = UnixListener::bind(&new).and_then(|listener| fs::rename(&new, path).map(|()| listener));
    bound.with_context(|| format!("cannot listen at {}", path.display()))
}

fn end_with(dir: &VmDir, mut stop: UnixStream) {
    while dir.disks().exists() {
        std::thread::sleep(LOOK);
    }
    let _ = stop.write_all(&[0]);
}
