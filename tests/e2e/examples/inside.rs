//! Runs in a nested machine: boots the Debian guest there under the machine's own KVM, watched or not, lets it work, and switches
//! it off. What it is given and what comes out lies in one folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::{Guest, Image, Kernel, Options, Watched};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, kernel, smp, how) = match arguments.as_slice() {
        [folder, kernel, smp] => (folder, kernel, smp, "guard"),
        [folder, kernel, smp, word] if ["plain", "unguarded"].contains(&word.as_str()) => {
            (folder, kernel, smp, word.as_str())
        }
        _ => anyhow::bail!("usage: inside FOLDER KERNEL VCPUS [plain|unguarded]"),
    };
    let plain = how == "plain";
    let folder = Path::new(folder);
    let kernel = Kernel::ALL
        .into_iter()
        .find(|one| one.version() == kernel)
        .context("no such kernel")?;
    let watched = Watched {
        program: folder.join("nephoscope"),
        catalog: folder.join("catalog"),
        name: "inside".to_owned(),
        // Not where others than root may write.
        report: Some(PathBuf::from("/tmp/report.json")),
        extra: ["--audit", "--guard"][..if how == "guard" { 2 } else { 1 }]
            .iter()
            .map(|&flag| flag.to_owned())
            .collect(),
    };
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
    let mut guest = Guest::boot(&Image::at(folder.join("image")), options)?;
    println!("ready after {:?}", guest.wait_ready()?);
    let (status, body) = guest.http_get("/index.php")?;
    ensure!(status == 200, "{status} {body}");
    println!("PHP answers");
    guest.run_ok("python3 /opt/nephoscope/work.py")?;
    println!("Python has worked");
    guest.put("/var/tmp/dma.py", include_bytes!("../guest-files/dma.py"))?;
    println!(
        "code from the disk: {}",
        guest.run_ok("python3 /var/tmp/dma.py")?.trim_end()
    );
    let truth = guest.run_ok("/opt/nephoscope/truth")?;
    std::fs::write(folder.join("truth"), truth)?;
    println!("ended with {}", guest.power_off()?);
    if !plain {
        std::fs::copy("/tmp/report.json", folder.join("report.json"))?;
    }
    Ok(())
}
