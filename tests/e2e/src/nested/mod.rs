//! A machine with KVM inside this one: QEMU's TCG emulates an AMD processor with SVM and nested paging, and a guest of
//! it (L1) runs guests of its own (L2) under its own, unmodified KVM.
//!
//! ```text
//!  this machine (L0) ── qemu, TCG, -cpu EPYC,+svm,+npt
//!    └─ L1: a guest's kernel, busybox until the root is mounted, then a root of Debian's packages with QEMU
//!         /host     a folder of this machine (9p): what is run, what comes out
//!         /dev/vdb  the disk of the Debian guest, for L2
//!         └─ L2: under L1's /dev/kvm
//! ```

mod attached;
mod console;
mod counted;
mod devices;
mod inner;
mod job;
mod modules;
mod moves;
mod root;
mod soak;
mod stage;
mod watch;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::{self, Kernel};
use crate::image::Image;
use crate::initramfs::Archive;
use crate::kbuild::DebugKernel;
use crate::{cache, qemu};

use console::{End, Limit};

pub use attached::{Attached, SLEEPER, attach, attached};
pub use counted::{count, counted};
pub use inner::{Inner, inner};
pub use job::job;
pub use soak::{Soak, soak_inside};
pub use stage::{Ended, Stage};
pub use watch::{Seen, watch};

/// What L1 does first. The modules are in the order in which they need each other.
const INIT: &str = include_str!("../../guest-files/nested-init");

/// How many times as long a machine whose work is limited may take.
const BESIDE_OTHERS: u32 = 6;

/// How often it is started if it stands still before anything runs. Seen once, on a machine with much more to do than it has CPUs for:
/// L1's second CPU got no timer interrupt any more soon after power-on.
const STARTS: u32 = 3;

/// How L1 is started.
#[derive(Debug, Clone)]
pub struct Shape {
    /// L1's kernel.
    pub kernel: Kernel,
    /// In the place of it: one that looks for mistakes.
    pub debug: Option<DebugKernel>,
    /// Its CPUs for what is run in it. Where they are several, QEMU gives it one more (see [`Shape::cpus`]).
    pub smp: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Instructions are counted instead of time: `-icount` of QEMU, on one CPU.
    pub counted: bool,
    /// Appended to its kernel's command line.
    pub cmdline: String,
}

impl Shape {
    /// The usual machine with this kernel.
    pub fn of(kernel: Kernel) -> Self {
        Shape {
            kernel,
            ..Shape::default()
        }
    }

    /// How many CPUs the emulator has to make.
    ///
    /// The first one is for L1's own housekeeping, and must not run guests: in QEMU's TCG, any CPU that restores a floating
    /// point state (`XRSTOR`, at each switch between threads) clears a flag of the *first* CPU in a word that the first
    /// CPU itself changes at each world switch, and nothing makes that one step (`cpu_set_fpus` calls `cpu_clear_ignne`,
    /// target/i386/tcg of 10.0.2; 11.1 fails alike). A lost update leaves nested paging on in the host, or off in the guest:
    /// L1 takes an exit of its own as one of L2, and stops with an overflown kernel stack.
    fn cpus(&self) -> u32 {
        match self.smp {
            _ if self.counted => 1,
            0 | 1 => 1,
            several => several + 1,
        }
    }
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            kernel: Kernel::K6_1,
            debug: None,
            smp: 2,
            memory_mib: 4096,
            counted: false,
            cmdline: String::new(),
        }
    }
}

/// A machine that can be started.
#[derive(Debug)]
pub struct Nested {
    folder: PathBuf,
    image: Image,
}

impl Nested {
    /// Builds what the machine is made of, when the cache does not hold it.
    ///
    /// # Errors
    /// When a package cannot be had or a tool fails.
    pub fn ensure(image: &Image) -> Result<Self> {
        Ok(Nested {
            folder: root::ensure()?,
            image: image.clone(),
        })
    }

    /// The firmware that its QEMU starts guests with, to be catalogued.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn firmware(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder.join("firmware"))?;
        let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        files.sort();
        Ok(files)
    }

    /// Starts it, runs a shell script in it as root, and gives the script's exit code when it has switched itself off. What the
    /// script writes is given line by line; `share` is `/host` there.
    ///
    /// # Errors
    /// When the machine does not come up, does not end in time, or ends without an exit code.
    pub fn run(
        &self,
        shape: &Shape,
        share: &Path,
        script: &str,
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<i32> {
        // Two on one machine are more than twice as slow, and what waits in them for a time is late. Where instructions are
        // counted that cannot be.
        let _turn = if shape.counted { None } else { Some(guest::turn()?) };
        let work = tempfile::Builder::new().prefix("nephoscope-nested-").tempdir()?;
        fs::write(share.join("run"), script)?;
        let code = share.join("exit");
        if code.exists() {
            fs::remove_file(&code)?;
        }
        let initramfs = work.path().join("initramfs");
        self.initramfs(shape, &initramfs)?;
        let log = work.path().join("emulator.log");
        let until = |times| Instant::now() + limit * times;
        let most = if shape.counted {
            Limit::Work(limit, until(BESIDE_OTHERS))
        } else {
            Limit::Until(until(1))
        };
        for start in 1..=STARTS {
            let mut command = self.command(shape, share, &initramfs)?;
            command.stderr(File::create(&log)?);
            match console::attend(&mut command, most, &mut line)? {
                End::Late(last) => bail!(
                    "the nested machine did not end within {limit:?}:\n  {}",
                    last.join("\n  ")
                ),
                End::Stalled if start < STARTS => {
                    line("the emulator lost a CPU's timer before anything ran: the machine is started again");
                }
                End::Stalled => bail!("the emulator lost a CPU's timer {STARTS} times, before anything ran"),
                End::Exited(status, last) => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    ensure!(
                        status.success(),
                        "the emulator ended with {status}: {}",
                        said.trim()
                    );
                    let code = fs::read_to_string(&code).with_context(|| {
                        format!("the nested machine ended by itself:\n  {}", last.join("\n  "))
                    })?;
                    return code
                        .trim()
                        .parse()
                        .with_context(|| format!("the script ended with {code:?}"));
                }
            }
        }
        bail!("the nested machine was not started")
    }

    fn initramfs(&self, shape: &Shape, path: &Path) -> Result<()> {
        let modules = match &shape.debug {
            Some(kernel) => modules::from(&kernel.modules())?,
            None => modules::of(
                &self.image.root(),
                &self.image.release(shape.kernel)?,
                &modules::L1,
            )?,
        };
        let mut archive = Archive::with_busybox()?;
        for name in ["modules", "root"] {
            archive.folder(name);
        }
        let mut order = String::new();
        for (name, content) in modules {
            archive.file(&format!("modules/{name}"), false, &content);
            order.push_str(&format!("{name}\n"));
        }
        archive.file("modules/order", false, order.as_bytes());
        archive.file("init", true, INIT.as_bytes());
        archive.write(path)
    }

    fn command(&self, shape: &Shape, share: &Path, initramfs: &Path) -> Result<Command> {
        // Through `setpriv`, which becomes the command: it is ended with whoever started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(qemu::system()?);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35", "-cpu", "EPYC,+svm,+npt"]);
        if shape.counted {
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        } else {
            command.args(["-accel", "tcg,thread=multi"]);
        }
        command.args(["-smp", &shape.cpus().to_string()]);
        command.args(["-m", &format!("{}M", shape.memory_mib), "-serial", "stdio"]);
        command.arg("-kernel").arg(match &shape.debug {
            Some(kernel) => kernel.image(),
            None => self.image.kernel(shape.kernel),
        });
        command.arg("-initrd").arg(initramfs);
        // KVM's module is found at the addresses that it was linked for, and nothing slows TCG down that protects nobody here.
        command.arg("-append").arg(format!(
            "console=ttyS0 quiet panic=-1 nokaslr mitigations=off {}",
            shape.cmdline
        ));
        for (id, disk) in [
            ("root", self.folder.join("disk.img")),
            ("guest", self.image.disk()),
        ] {
            let file = disk.display();
            command
                .arg("-drive")
                .arg(format!("if=none,id={id},format=raw,snapshot=on,file={file}"));
            command.arg("-device").arg(format!("virtio-blk-pci,drive={id}"));
        }
        command.arg("-virtfs").arg(format!(
            "local,path={},mount_tag=host,security_model=none",
            share.display()
        ));
        Ok(command)
    }
}

/// A folder for [`Nested::run`] that is kept in the cache for as long as nobody else runs one.
///
/// # Errors
/// When the cache cannot be written.
pub fn share() -> Result<PathBuf> {
    let folder = cache::folder()?.join("nested-share");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
