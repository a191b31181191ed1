//! Runs in a nested machine: has the Debian guest do its job there under the machine's own KVM, watched or not. What it is given and
//! what comes out lies in one folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nephoscope_e2e::nested::job;
use nephoscope_e2e::{Image, Kernel, Options, Watched};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, kernel, smp, how) = match arguments.as_slice() {
        [folder, kernel, smp] => (folder, kernel, smp, "guard"),
        [folder, kernel, smp, word] if ["plain", "unguarded"].contains(&word.as_str()) => {
            (folder, kernel, smp, word.as_str())
        }
        _ => anyhow::bail!("usage: inside FOLDER KERNEL VCPUS [plain|unguarded]"),
    };
    let folder = Path::new(folder);
    let kernel = Kernel::ALL
        .into_iter()
        .find(|one| one.version() == kernel)
        .context("no such kernel")?;
    let flags: &[&str] = match how {
        "guard" => &["--audit", "--guard"],
        _ => &["--audit"],
    };
    let watched = Watched {
        program: folder.join("nephoscope"),
        catalog: folder.join("catalog"),
        name: "inside".to_owned(),
        // Not where others than root may write.
        report: Some(PathBuf::from("/tmp/report.json")),
        extra: flags.iter().map(|&flag| flag.to_owned()).collect(),
    };
    let plain = how == "plain";
    let options = Options {
        kernel,
        smp: smp.parse()?,
        accel: "kvm".to_owned(),
        plants: false,
        watched: (!plain).then_some(watched),
        boot_timeout: Duration::from_secs(900),
        command_timeout: Duration::from_secs(600),
        ..Options::default()
    };
    job(
        &Image::at(folder.join("image")),
        options,
        &folder.join("truth"),
        |said| println!("{said}"),
    )?;
    if !plain {
        std::fs::copy("/tmp/report.json", folder.join("report.json"))?;
    }
    Ok(())
}
