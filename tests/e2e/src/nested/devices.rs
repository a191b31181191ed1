//! Devices that write into a guest's memory past its page tables and past the VMM's code: a disk that the host's kernel serves (vhost-scsi),
//! and one whose answer takes its time, to which the kernel lends the guest's memory meanwhile (direct I/O).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::Guest;
use crate::command::output_of;

/// What QEMU needs for them.
pub(super) const ARGUMENTS: [&str; 6] = [
    "-device",
    "vhost-scsi-pci,wwpn=naa.5001405000000001,migratable=on",
    "-drive",
    "if=none,id=slow,format=raw,cache=none,file=/dev/dm-0",
    "-device",
    "virtio-blk-pci,drive=slow,serial=slow",
];

/// Where the host's kernel is told what it serves (Documentation/target/tcm_mod_builder.rst and `targetcli` do the same).
const TARGET: &str = "/sys/kernel/config/target";
const NEXUS: &str = "naa.5001405000000002";
const BYTES: u64 = 1 << 20;

/// How long the slow disk takes for a read, in milliseconds: longer than the guest, an emulated machine's, takes to run what it reads into.
const SLOW_MS: u32 = 8000;

/// Makes the disks, in L1.
///
/// # Errors
/// When L1's kernel refuses.
pub(super) fn make() -> Result<()> {
    // Mounted already where several guests run in one L1.
    if !Path::new(TARGET).exists() {
        output_of(Command::new("mount").args(["-t", "configfs", "config", "/sys/kernel/config"]))?;
    }
    let core = Path::new(TARGET).join("core/fileio_0/disk");
    if core.exists() {
        return Ok(());
    }
    let write = |path: &Path, text: &str| {
        fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    };
    fs::create_dir_all(&core).with_context(|| format!("cannot make {}", core.display()))?;
    write(
        &core.join("control"),
        &format!("fd_dev_name=/tmp/vhost-disk,fd_dev_size={BYTES}"),
    )?;
    write(&core.join("enable"), "1")?;
    let portal = Path::new(TARGET).join("vhost/naa.5001405000000001/tpgt_1");
    // One at a time: the kernel makes each when it is asked for by name.
    for folder in [
        portal.parent().and_then(Path::parent),
        portal.parent(),
        Some(&portal),
    ] {
        let folder = folder.context("no folder")?;
        if !folder.exists() {
            fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
    }
    write(&portal.join("nexus"), NEXUS)?;
    let unit = portal.join("lun/lun_0");
    fs::create_dir(&unit).with_context(|| format!("cannot make {}", unit.display()))?;
    std::os::unix::fs::symlink(&core, unit.join("disk"))?;
    dmsetup(&["create", "slow", "--table", &table(0)])
}

/// A disk in memory behind one that delays what is read.
fn table(delay_ms: u32) -> String {
    format!("0 {} delay /dev/ram0 0 {delay_ms} /dev/ram0 0 0", BYTES / 512)
}

fn dmsetup(arguments: &[&str]) -> Result<()> {
    // Nobody else makes nodes there.
    output_of(
        Command::new("dmsetup")
            .args(["--noudevsync", "--noudevrules"])
            .args(arguments),
    )?;
    Ok(())
}

/// Has the guest read code from both into frames that were executed, and run it.
///
/// # Errors
/// When the guest has no such disk, or does not run what it read.
pub(super) fn devices(guest: &mut Guest, mut say: impl FnMut(&str)) -> Result<()> {
    let read = guest.run_ok("python3 /var/tmp/dma.py /dev/sda")?;
    say(&format!("code from the host's kernel: {}", read.trim_end()));
    dmsetup(&["suspend", "slow"])?;
    dmsetup(&["reload", "slow", "--table", &table(SLOW_MS)])?;
    dmsetup(&["resume", "slow"])?;
    let read = guest.run_ok("python3 /var/tmp/dma.py /dev/disk/by-id/virtio-slow late")?;
    say(&format!("code from a slow disk: {}", read.trim_end()));
    Ok(())
}
