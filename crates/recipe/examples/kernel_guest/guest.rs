//! One boot, up to the moment that is looked at.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Options;
use crate::cpio::Cpio;
use crate::modules::Module;

/// Enough for the kernel and a few dozen modules.
const MEMORY_BYTES: u64 = 768 << 20;
const READY: &str = "kernel-guest-ready";
const PATIENCE: Duration = Duration::from_secs(300);

/// What was seen.
pub(crate) struct Snapshot {
    /// All physical memory from 0.
    pub(crate) memory: Vec<u8>,
    /// A page-table root.
    pub(crate) root: u64,
    /// CR4.LA57.
    pub(crate) five_levels: bool,
    /// Everything that the guest printed.
    pub(crate) console: String,
}

/// Kills the guest when the run ends, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots and takes the snapshot.
pub(crate) fn boot(options: &Options, modules: &[Module]) -> Result<Snapshot> {
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, initial_files(options, modules)?)?;
    let socket = dir.path().join("qmp");
    let mut child = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-m",
        ])
        .arg(format!("{}M", MEMORY_BYTES >> 20))
        .args(["-cpu", &options.cpu, "-smp", &options.smp, "-serial", "stdio"])
        .args(["-device", "virtio-net-pci", "-device", "virtio-rng-pci"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .arg("-kernel")
        .arg(&options.kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", &format!("console=ttyS0 panic=-1 {}", options.append)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64")?;
    let output = child.stdout.take().context("no console")?;
    let running = Running(child);
    let mut monitor = Monitor::connect(&socket)?;
    let console = wait(output, options.stop_at.as_deref().unwrap_or(READY))?;
    monitor.run(&json!({"execute": "stop"}))?;
    let file = dir.path().join("memory");
    let save = json!({"val": 0, "size": MEMORY_BYTES, "filename": file});
    monitor.run(&json!({"execute": "pmemsave", "arguments": save}))?;
    let registers = monitor.run(&json!({
        "execute": "human-monitor-command", "arguments": {"command-line": "info registers"}
    }))?;
    let registers = registers.as_str().context("no registers")?.to_owned();
    drop(running);
    let cr4 = register(&registers, "CR4=")?;
    Ok(Snapshot {
        memory: fs::read(&file)?,
        root: register(&registers, "CR3=")? & !0xfff,
        five_levels: cr4 & (1 << 12) != 0,
        console,
    })
}

fn register(text: &str, name: &str) -> Result<u64> {
    let at = text.find(name).with_context(|| format!("no {name}"))? + name.len();
    let digits: String = text[at..].chars().take_while(char::is_ascii_hexdigit).collect();
    Ok(u64::from_str_radix(&digits, 16)?)
}

fn wait(output: impl std::io::Read, text: &str) -> Result<String> {
    let start = Instant::now();
    let mut console = String::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let found = line.contains(text);
        console.push_str(&line);
        console.push('\n');
        if found {
            return Ok(console);
        }
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    bail!("the guest never printed {text:?}; its console:\n{console}")
}

fn initial_files(options: &Options, modules: &[Module]) -> Result<Vec<u8>> {
    let mut files = Cpio::default();
    for dir in ["bin", "proc", "sys", "dev", "modules"] {
        files.directory(dir);
    }
    files.program("bin/busybox", &fs::read(&options.busybox)?);
    let mut init = String::from(
        "#!/bin/busybox sh\nbb=/bin/busybox\n$bb mount -t proc proc /proc\n$bb mount -t sysfs sys /sys\n\
         $bb mount -t devtmpfs dev /dev\n",
    );
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        files.program(&path, &module.plain);
        init.push_str(&format!(
            "$bb insmod /{path} || echo kernel-guest-refused {}\n",
            module.name
        ));
    }
    init.push_str(&format!(
        "$bb sleep 1\n$bb sed 's/^/kernel-guest-module /' /proc/modules\n\
         $bb grep -E ' (_text|_stext)$' /proc/kallsyms | $bb sed 's/^/kernel-guest-symbol /'\n\
         for s in /sys/module/*/sections/.text /sys/module/*/sections/.init.text; do \
         echo kernel-guest-section $s $($bb cat $s); done\n\
         echo {READY}\n$bb sleep 100000\n"
    ));
    files.program("init", init.as_bytes());
    Ok(files.finish())
}

/// A QMP connection.
struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let lines = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { stream, lines };
        monitor.read()?;
        monitor.run(&json!({"execute": "qmp_capabilities"}))?;
        Ok(monitor)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn run(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.stream, "{command}")?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QMP: {error}");
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }
}
