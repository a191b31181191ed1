//! Runs in a nested machine: has the Debian guest do its job there under the machine's own KVM, watched from the beginning, from
//! some time on, or not. What it is given and what comes out lies in one folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nephoscope_e2e::nested::{attach, count, job};
use nephoscope_e2e::{Image, Kernel, Options, Watched};

const USAGE: &str = "usage: inside FOLDER KERNEL VCPUS guard|unguarded|plain|attached [ROUNDS]";

/// Where instructions are counted, an interrupt's end is told by an exit. QEMU's TCG leaves the vector of an interrupt that `VMRUN`
/// injected in `exception_index` (target/i386/tcg/system/svm_helper.c, 10.0), until something else is put there; if a slice of
/// instructions ends before that, the interrupt is delivered once more, whether the guest takes interrupts or not. A guest that
/// has to leave soon after each interrupt is rarely met by that; without exits, a boot of Debian was each time: its only vCPU
/// waited for the lock of an interrupt that it had interrupted.
const COUNTED_CPU: &str = "qemu64,kvm-pv-eoi=off";

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Watched, and its executable frames guarded against devices.
    Guard,
    /// Watched, and not guarded.
    Unguarded,
    /// Not watched.
    Plain,
    /// Watched from some time on.
    Attached,
}

impl How {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "guard" => Self::Guard,
            "unguarded" => Self::Unguarded,
            "plain" => Self::Plain,
            "attached" => Self::Attached,
            _ => return None,
        })
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, kernel, smp, word, rounds) = match arguments.as_slice() {
        [folder, kernel, smp, how] => (folder, kernel, smp, how, None),
        [folder, kernel, smp, how, rounds] => (folder, kernel, smp, how, Some(rounds.parse()?)),
        _ => anyhow::bail!(USAGE),
    };
    let how = How::named(word).context(USAGE)?;
    let folder = Path::new(folder);
    let kernel = Kernel::ALL
        .into_iter()
        .find(|one| one.version() == kernel)
        .context("no such kernel")?;
    let mut flags = Vec::new();
    // Looking at all mappings costs what no watch has to pay.
    if rounds.is_none() {
        flags.push("--audit".to_owned());
    }
    if how == How::Unguarded {
        flags.push("--no-guard".to_owned());
    }
    let watched = Watched {
        program: folder.join("nephoscope"),
        catalog: folder.join("catalog"),
        name: "inside".to_owned(),
        // Not where others than root may write.
        report: Some(PathBuf::from("/tmp/report.json")),
        extra: flags,
    };
    let watched = Some(watched).filter(|_| matches!(how, How::Guard | How::Unguarded));
    let options = Options {
        kernel,
        smp: smp.parse()?,
        accel: "kvm".to_owned(),
        plants: false,
        boot_timeout: Duration::from_secs(900),
        command_timeout: Duration::from_secs(600),
        ..Options::default()
    };
    let say = |said: &str| println!("{said}");
    if let Some(rounds) = rounds {
        let options = Options {
            cpu: COUNTED_CPU.to_owned(),
            ..options
        };
        return count(folder, word, watched, options, rounds, say);
    }
    if how == How::Attached {
        return attach(folder, options, say);
    }
    let is_watched = watched.is_some();
    let options = Options { watched, ..options };
    let image = Image::at(folder.join("image"));
    job(&image, options, &folder.join("truth"), say)?;
    if is_watched {
        std::fs::copy("/tmp/report.json", folder.join("report.json"))?;
    }
    Ok(())
}
