//! Another kernel takes the machine over in the middle of a run: by kexec, of which the machine sees nothing, or by a reset.
//!
//! Right is that the report is of what runs now: one living kernel, with its own version; every address space of before is
//! gone; those of now are what the guest says, program by program.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::{disagreements, list};
use nephoscope_e2e::{Kernel, Truth};
use serde_json::Value;

use super::{Attack, Seen};
use crate::group::{Group, KEXEC, RESET};
use crate::kernel_code::living;
use crate::scene::{PATIENCE, Scene};

/// Until processes that ended are seen to have.
const SETTLES: Duration = Duration::from_secs(2);

/// Number 16, by kexec.
#[derive(Debug)]
pub(super) struct Kexec;

/// Number 16, by a reset of the machine.
#[derive(Debug)]
pub(super) struct Reset;

impl Attack for Kexec {
    fn number(&self) -> u8 {
        16
    }

    fn name(&self) -> &'static str {
        "kexec"
    }

    fn expected(&self) -> &'static str {
        "the other kernel with its version, nobody of before, and everybody of now"
    }

    fn group(&self) -> Group {
        KEXEC
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let other = match scene.kernel {
            Kernel::K6_1 => Kernel::K6_12,
            Kernel::K6_12 => Kernel::K6_1,
        };
        let release = scene.image.release(other)?;
        let tool = scene.tool("kexec")?;
        // In the background: nobody is there any more to say that it was done.
        scene.guest.run_ok(&format!(
            "(sleep 1; {tool} /boot/vmlinuz-{release} /boot/initrd.img-{release}) >/dev/null 2>&1 &"
        ))?;
        judge(scene, other)
    }
}

impl Attack for Reset {
    fn number(&self) -> u8 {
        16
    }

    fn name(&self) -> &'static str {
        "reset"
    }

    fn expected(&self) -> &'static str {
        "the kernel once, nobody of before, and everybody of now"
    }

    fn group(&self) -> Group {
        RESET
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let socket = scene.guest.folder().join("qmp.sock");
        let mut stream = BufReader::new(UnixStream::connect(socket)?);
        for command in ["qmp_capabilities", "system_reset"] {
            // QEMU greets first, and answers each.
            stream.read_line(&mut String::new())?;
            stream
                .get_mut()
                .write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes())?;
        }
        judge(scene, scene.kernel)
    }
}

/// What is said once the guest is up again under this kernel.
fn judge(scene: &mut Scene, kernel: Kernel) -> Result<Seen> {
    let at_ns = scene.now_ns();
    let release = scene.image.release(kernel)?;
    scene.guest.wait_again()?;
    let runs = scene.guest.run_ok("uname -r")?;
    ensure!(runs.trim() == release, "the guest runs {runs}");
    let mut wrong = Vec::new();
    let deadline = Instant::now() + 2 * PATIENCE;
    while Instant::now() < deadline {
        let before = truth(scene)?;
        // Those who wrote that down have ended, which is seen some tenths of a second later.
        scene.wait(SETTLES);
        let report = scene.control.report()?;
        let after = truth(scene)?;
        wrong = disagreements(&report, &before, &after);
        wrong.extend(of_kernels(&report, &release, at_ns));
        if wrong.is_empty() {
            let kernel = living(&report, "kernel").next().context("no kernel")?;
            return Ok(Seen::right(
                format!("{} processes under {}", after.processes.len(), name(kernel)),
                None,
            ));
        }
    }
    Ok(Seen::wrong(wrong.join("; ")))
}

/// What the guest says. A program of the initial RAM file system that still runs is of the same package as on the disk.
fn truth(scene: &mut Scene) -> Result<Truth> {
    let mut truth = scene.guest.truth()?;
    for process in truth.processes.values_mut() {
        process.exe = process.exe.trim_end_matches(" (deleted)").to_owned();
    }
    Ok(truth)
}

/// What is wrong about kernels, and about who lives.
fn of_kernels(report: &Value, release: &str, at_ns: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let kernels: Vec<&Value> = living(report, "kernel").collect();
    if kernels.len() != 1 {
        wrong.push(format!("{} kernels live", kernels.len()));
    }
    for kernel in kernels {
        let images = list(kernel, "modules").iter();
        let mut images =
            images.filter_map(|module| module["path"].as_str().filter(|path| path.contains("/vmlinuz-")));
        if !images.all(|path| path.ends_with(&format!("/vmlinuz-{release}"))) || name(kernel).is_empty() {
            wrong.push(format!("the kernel is taken for {}", name(kernel)));
        }
        if !list(kernel, "modified").is_empty() {
            wrong.push(format!("the kernel is modified: {}", kernel["modified"]));
        }
    }
    let old = list(report, "address_spaces").iter().filter(|space| {
        space["kind"] != "firmware" && space["ended"].is_null() && space["first_ns"].as_u64() < Some(at_ns)
    });
    let old: Vec<String> = old
        .map(|space| format!("{} {}", space["id"], space["program"]["path"]))
        .collect();
    if !old.is_empty() {
        wrong.push(format!("of before and still living: {}", old.join(", ")));
    }
    wrong
}

/// The images of a kernel's address space that are kernels.
fn name(kernel: &Value) -> String {
    let images = list(kernel, "modules").iter();
    let images =
        images.filter_map(|module| module["path"].as_str().filter(|path| path.contains("/vmlinuz-")));
    images.collect::<Vec<_>>().join(", ")
}
