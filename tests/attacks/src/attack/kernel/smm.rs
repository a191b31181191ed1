//! Firmware code in system management mode: below any kernel, in memory that no kernel can read.
//!
//! Right is that its pages are there: with the firmware's name, or unknown with their origin. That some ran is certain: the
//! OVMF of the first machine is built so that it does not come up without system management mode, and relocates every
//! processor's entry into TSEG before it does; the SeaBIOS of the second enters the mode at 0x38000 to move its handler to
//! 0xa8000.
//!
//! OVMF completes instructions of its entry code in memory (`PatchInstructionX86`), and no recipe lists those places yet: such
//! a page is modified, and named after the firmware all the same.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nephoscope_e2e::{Control, Kernel, initramfs, qemu};

use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::scene::Scene;

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// Ten times what a boot takes on two idle cores.
const BOOT: Duration = Duration::from_secs(200);

/// TSEG is at the end of the memory below 4 GiB: 16 MiB of 512.
const TSEG: std::ops::Range<u64> = 0x1f00_0000..0x2000_0000;
/// Where every processor's first entry is (SMBASE 0x30000), until it is moved.
const FIRST: std::ops::Range<u64> = 0x3_8000..0x3_9000;
/// Where a handler is in the memory that a display adapter has otherwise (SMBASE 0xa0000).
const LOW: std::ops::Range<u64> = 0xa_0000..0xc_0000;

/// Number 17.
#[derive(Debug)]
pub(super) struct Smm {
    name: &'static str,
    firmware: &'static str,
    memory: &'static [std::ops::Range<u64>],
}

pub(super) static ALL: [Smm; 2] = [
    Smm {
        name: "smm-ovmf",
        firmware: OVMF,
        memory: &[TSEG],
    },
    Smm {
        name: "smm-seabios",
        firmware: SEABIOS,
        memory: &[FIRST, LOW],
    },
];

impl Attack for Smm {
    fn number(&self) -> u8 {
        17
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn expected(&self) -> &'static str {
        "code in SMRAM, named after the firmware or unknown with its origin"
    }

    /// A machine of its own is started beside the group's.
    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let folder = tempfile::tempdir()?;
        let kernel = scene.image.kernel(scene.kernel);
        let catalog = folder.path().join("catalog");
        let added = Command::new(&scene.program)
            .args(["catalog", "add", "--catalog"])
            .arg(&catalog)
            .arg(self.firmware)
            .arg(&kernel)
            .stdout(Stdio::null())
            .status()?;
        ensure!(added.success(), "catalog add ended with {added}");
        initramfs::busybox(&folder.path().join("initramfs"))?;
        let vm = format!("{}-smm", scene.vm);
        let mut machine = self.start(&scene.program, &catalog, &kernel, folder.path(), &vm)?;
        let seen = machine.up().and_then(|()| self.judge(&vm, scene.kernel));
        machine.end()?;
        seen
    }
}

impl Smm {
    fn start(
        &self,
        program: &Path,
        catalog: &Path,
        kernel: &Path,
        folder: &Path,
        vm: &str,
    ) -> Result<Machine> {
        let at = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--catalog")
            .arg(catalog)
            .args(["--name", vm, "--"]);
        command.arg(qemu::system()?);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-no-shutdown",
        ]);
        command.args([
            "-machine",
            "q35,smm=on",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "qemu64",
            "-m",
            "512M",
        ]);
        command.args(["-serial", &format!("file:{}", at("serial.log"))]);
        command
            .arg("-kernel")
            .arg(kernel)
            .args(["-initrd", &at("initramfs")]);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        if self.firmware == OVMF {
            std::fs::copy(OVMF_VARIABLES, folder.join("variables.fd"))?;
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            command.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={OVMF}")]);
            command.args([
                "-drive",
                &format!("if=pflash,format=raw,file={}", at("variables.fd")),
            ]);
        }
        command.stdin(Stdio::null());
        let log = std::fs::File::create(folder.join("emulator.log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Machine {
            child: command.spawn()?,
            serial: folder.join("serial.log"),
        })
    }

    /// Looks at every page of the watch, of which there are some hundreds.
    fn judge(&self, vm: &str, kernel: Kernel) -> Result<Seen> {
        let mut control = Control::connect(vm)?;
        let report = control.report()?;
        let captured = |class: &str| report["pages"][class]["captured"].as_u64().unwrap_or(0);
        let captured = captured("user") + captured("kernel") + captured("firmware");
        let (mut named, mut modified, mut unknown, mut number, mut looked) = (0, 0, 0, 0, 0);
        while looked < captured && number < captured.saturating_mul(4) {
            number += 1;
            let Ok(page) = control.page(number) else { continue };
            looked += 1;
            let here = page["gpa"]
                .as_u64()
                .is_some_and(|gpa| self.memory.iter().any(|range| range.contains(&gpa)));
            if !here || page["privilege"] != "supervisor" {
                continue;
            }
            match page["verdict"].as_str() {
                Some(verdict @ ("identified" | "modified")) => {
                    let places = page["places"].as_array().into_iter().flatten();
                    let paths: Vec<&str> = places.filter_map(|place| place["path"].as_str()).collect();
                    ensure!(
                        paths.contains(&self.firmware),
                        "code in SMRAM is taken for {paths:?} under {kernel:?}"
                    );
                    *(if verdict == "modified" {
                        &mut modified
                    } else {
                        &mut named
                    }) += 1;
                }
                Some("unknown") => {
                    let origin = page["origin"].as_str().unwrap_or_default();
                    ensure!(!origin.is_empty(), "the unknown page {number} has no origin");
                    unknown += 1;
                }
                other => bail!("page {number} is {other:?}"),
            }
        }
        ensure!(
            named + modified + unknown > 0,
            "no code in SMRAM among {looked} pages, though some ran"
        );
        Ok(Seen::right(
            format!(
                "{named} page(s) of SMRAM are {}'s, {modified} modified ones too, {unknown} unknown",
                self.firmware
            ),
            None,
        ))
    }
}

/// A machine of its own.
#[derive(Debug)]
struct Machine {
    child: Child,
    serial: PathBuf,
}

impl Machine {
    /// Waits until the first program of the guest has said that it runs.
    fn up(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let log = std::fs::read(&self.serial).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            if log.contains(initramfs::UP) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the machine ended with {status}: {log}");
            }
            ensure!(begun.elapsed() < BOOT, "the machine did not come up: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it, the emulator with it.
    fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait().context("the machine does not end").map(drop)
    }
}
