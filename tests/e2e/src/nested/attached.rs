//! A guest that runs under KVM already when `nephoscope attach --pid` begins to watch it, without a word to its VMM.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Shape, Stage};
use crate::living::disagreements;
use crate::{Control, Guest, Image, Kernel, Options, Truth};

/// What was seen, and what there was.
#[derive(Debug)]
pub struct Attached {
    /// The report soon after the watch began.
    pub soon: Value,
    /// What the guest said of itself just before and after that.
    pub around: (Truth, Truth),
    /// The report at the end.
    pub report: Value,
    /// What the guest said of itself before the end.
    pub truth: Truth,
    /// What L1's kernel warned of.
    pub warnings: Vec<String>,
}

/// The program that sleeps since before the watch began, and does nothing else.
pub const SLEEPER: &str = "/usr/bin/sleep";

/// How long the watch may take until it has looked around.
const LOOKING: Duration = Duration::from_secs(400);

const NAME: &str = "attached";
const FILES: [&str; 5] = ["soon.json", "before", "after", "report.json", "truth"];

/// Has a guest run in a nested machine, and attaches to it. `program` as with [`super::watch`].
///
/// # Errors
/// When a part cannot be built, the machine does not come up, or what runs in it fails.
pub fn attached(
    image: &Image,
    program: &Path,
    kernel: Kernel,
    limit: Duration,
    line: impl FnMut(&str),
) -> Result<Attached> {
    let stage = Stage::with(image, program, Shape::of(kernel), "inside")?;
    let command = format!("/host/inside /host {} 1 attached", kernel.version());
    let ended = stage.run(&command, limit, line)?;
    let [soon, before, after, report, truth] = FILES.map(|name| fs::read(stage.at(name)));
    let json = |bytes: std::io::Result<Vec<u8>>| -> Result<Value> {
        let report = serde_json::from_slice(&bytes?)?;
        crate::report::validate(&report)?;
        Ok(report)
    };
    let truth_of = |bytes: std::io::Result<Vec<u8>>| Truth::parse(&String::from_utf8_lossy(&bytes?));
    Ok(Attached {
        soon: json(soon)?,
        around: (truth_of(before)?, truth_of(after)?),
        report: json(report)?,
        truth: truth_of(truth)?,
        warnings: ended.warnings,
    })
}

/// Does it, within the machine. The VMM loads the plugin for KVM, as an operator has it who wants devices watched.
///
/// # Errors
/// When the guest does not come up, or is not watched.
pub fn attach(folder: &Path, mut options: Options, mut say: impl FnMut(&str)) -> Result<()> {
    let socket = "/tmp/plugin.sock";
    let plugin = folder.join("plugins/libnephoscope-qemu-api4.so");
    options.extra.push("-plugin".to_owned());
    options
        .extra
        .push(format!("{},socket={socket},kvm=on", plugin.display()));
    let mut guest = Guest::boot(&Image::at(folder.join("image")), options)?;
    say(&format!("ready after {:?}", guest.wait_ready()?));
    guest.start(&format!("{SLEEPER} 100000"))?;
    let report = Path::new("/tmp/report.json");
    let mut watch = Command::new(folder.join("nephoscope"))
        .args([
            "attach",
            "--audit",
            "--name",
            NAME,
            "--plugin",
            socket,
            "--catalog",
        ])
        .arg(folder.join("catalog"))
        .args(["--pid", &guest.pid().to_string(), "--report"])
        .arg(report)
        .stdin(Stdio::null())
        .spawn()?;
    // A debug build that takes in a whole guest, in an emulated machine.
    let mut control = connected()?.slower(15)?;
    say("attached");
    let deadline = Instant::now() + LOOKING;
    loop {
        let before = guest.run_ok("/opt/nephoscope/truth")?;
        let soon = control.report()?;
        let after = guest.run_ok("/opt/nephoscope/truth")?;
        let looked = soon["counters"]["attached_pages_mapped"].as_u64() > Some(0);
        let wrong = disagreements(&soon, &Truth::parse(&before)?, &Truth::parse(&after)?);
        if looked && wrong.is_empty() || Instant::now() > deadline {
            say(&format!("looked around: {looked}; {}", wrong.join("; ")));
            let texts = [serde_json::to_vec(&soon)?, before.into(), after.into()];
            for (name, text) in FILES.iter().zip(texts) {
                fs::write(folder.join(name), text)?;
            }
            break;
        }
    }
    let (status, body) = guest.http_get("/index.php")?;
    ensure!(status == 200, "{status} {body}");
    guest.run_ok("python3 /opt/nephoscope/work.py")?;
    fs::write(folder.join("truth"), guest.run_ok("/opt/nephoscope/truth")?)?;
    say(&format!("ended with {}", guest.power_off()?));
    let status = watch.wait()?;
    ensure!(status.success(), "`nephoscope attach` ended with {status}");
    fs::copy(report, folder.join("report.json"))?;
    Ok(())
}

fn connected() -> Result<Control> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match Control::connect(NAME) {
            Ok(control) => return Ok(control),
            Err(error) if Instant::now() > deadline => return Err(error).context("nothing is watched"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
