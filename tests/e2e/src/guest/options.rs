//! How a guest is started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::image::Image;
use crate::qemu;

/// The socket that leads to the guest's command server.
pub(super) const COMMAND_SOCKET: &str = "command.sock";

/// One of the guest's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's own.
    K6_1,
    /// Debian 13's.
    K6_12,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 2] = [Kernel::K6_1, Kernel::K6_12];

    /// The version up to the second number, as in file names.
    pub fn version(self) -> &'static str {
        match self {
            Kernel::K6_1 => "6.1",
            Kernel::K6_12 => "6.12",
        }
    }
}

/// A name for a watched VM that no other one has, of this process or another.
pub fn vm_name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{number}", std::process::id())
}

/// That a guest is started by `nephoscope run`, and how.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The program `nephoscope`.
    pub program: PathBuf,
    /// `--catalog`.
    pub catalog: PathBuf,
    /// `--name`.
    pub name: String,
    /// `--report`.
    pub report: Option<PathBuf>,
    /// Further options of `nephoscope run`.
    pub extra: Vec<String>,
}

/// How a guest is started. Made by [`Options::default`] and changed field by field.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernel to boot.
    pub kernel: Kernel,
    /// Number of vCPUs.
    pub smp: u32,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// The emulator; the system's when absent.
    pub qemu: Option<PathBuf>,
    /// For QEMU's `-accel`.
    pub accel: String,
    /// For QEMU's `-cpu`.
    pub cpu: String,
    /// Appended to QEMU's command line.
    pub extra: Vec<String>,
    /// Appended to the kernel's command line (`nokaslr`, for example).
    pub cmdline: String,
    /// Attach the disk with the planted programs, which the guest mounts at `/opt/planted`.
    pub plants: bool,
    /// Started under watch.
    pub watched: Option<Watched>,
    /// The root disk, a file that is written to, qcow2 unless its name ends in `.raw`; the image's, which stays as it is, when
    /// absent.
    pub disk: Option<PathBuf>,
    /// The machine starts again when it is reset, and does not end.
    pub reboots: bool,
    /// Wait until no other guest of this harness runs on the machine.
    pub alone: bool,
    /// From start to ready.
    pub boot_timeout: Duration,
    /// For each command in the guest.
    pub command_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kernel: Kernel::K6_1,
            smp: 1,
            memory_mib: 1024,
            qemu: None,
            accel: "tcg,thread=multi".to_owned(),
            cpu: "qemu64".to_owned(),
            extra: Vec::new(),
            cmdline: String::new(),
            plants: true,
            watched: None,
            disk: None,
            reboots: false,
            alone: true,
            // Ten times what it takes on two idle cores.
            boot_timeout: Duration::from_secs(300),
            // Two thousand processes take a minute on two idle cores.
            command_timeout: Duration::from_secs(300),
        }
    }
}

impl Options {
    /// The whole command line, with its sockets and logs in `folder`.
    pub(super) fn command(&self, image: &Image, folder: &Path, http_port: u16) -> Result<Command> {
        let qemu = match &self.qemu {
            Some(program) => program.clone(),
            None => qemu::system()?,
        };
        let mut command = match &self.watched {
            None => Command::new(qemu),
            Some(watched) => {
                let mut command = Command::new(&watched.program);
                command
                    .arg("run")
                    .arg("--catalog")
                    .arg(&watched.catalog)
                    .arg("--name")
                    .arg(&watched.name);
                if let Some(report) = &watched.report {
                    command.arg("--report").arg(report);
                }
                command.args(&watched.extra).arg("--").arg(qemu);
                command
            }
        };
        let at = |name: &str| folder.join(name).display().to_string();
        let drive = |id: &str, path: PathBuf| {
            // The snapshot takes what the guest writes; the image in the cache stays as it was built.
            format!("if=none,id={id},format=raw,snapshot=on,file={}", path.display())
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        if !self.reboots {
            command.arg("-no-reboot");
        }
        command.args(["-accel", &self.accel, "-cpu", &self.cpu]);
        command.args([
            "-smp",
            &self.smp.to_string(),
            "-m",
            &format!("{}M", self.memory_mib),
        ]);
        command.arg("-kernel").arg(image.kernel(self.kernel));
        command.arg("-initrd").arg(image.initramfs(self.kernel));
        // A service may take as long to start as the guest may: systemd's own 90 s are short for a guest of an emulated machine.
        command.arg("-append").arg(format!(
            "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.default_timeout_start_sec={} {}",
            self.boot_timeout.as_secs(),
            self.cmdline
        ));
        command.arg("-drive").arg(match &self.disk {
            Some(disk) => {
                let is_raw = disk.extension().is_some_and(|end| end == "raw");
                let format = if is_raw { "raw" } else { "qcow2" };
                format!("if=none,id=root,format={format},file={}", disk.display())
            }
            None => drive("root", image.disk()),
        });
        command.args(["-device", "virtio-blk-pci,drive=root"]);
        if self.plants {
            command.arg("-drive").arg(drive("planted", image.plants().disk()));
            command.args(["-device", "virtio-blk-pci,drive=planted"]);
        }
        command.arg("-serial").arg(format!("file:{}", at("serial.log")));
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", at("qmp.sock")));
        command.arg("-chardev").arg(format!(
            "socket,id=command,path={},server=on,wait=off",
            at(COMMAND_SOCKET)
        ));
        command.args(["-device", "virtio-serial-pci"]);
        command.args([
            "-device",
            "virtserialport,chardev=command,name=nephoscope.command",
        ]);
        command
            .arg("-netdev")
            .arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:{http_port}-:80"));
        command.args(["-device", "virtio-net-pci,netdev=net"]);
        command.args([
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]);
        command.args(&self.extra);
        Ok(command)
    }
}
