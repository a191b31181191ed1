//! What a number was measured on.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use nephoscope_e2e::command::output_of;
use nephoscope_e2e::qemu;

/// The machine and its software, in one line.
pub(crate) fn describe() -> Result<String> {
    let model = value_of("/proc/cpuinfo", "model name", ':').unwrap_or_else(|| "unknown CPU".to_owned());
    let cpus = std::thread::available_parallelism()?;
    let memory = value_of("/proc/meminfo", "MemTotal", ':')
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib.div_ceil(1 << 20));
    let system = value_of("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_default();
    let qemu = qemu::version(&qemu::system()?)?;
    Ok(format!(
        "{model}, {cpus} CPUs, {memory} GiB; {}; QEMU {qemu}",
        system.trim_matches('"')
    ))
}

/// What is measured: the commit at the first call, and whether the tree differed from it. A bench takes long, and commits go on.
pub(crate) fn commit() -> Result<String> {
    static COMMIT: OnceLock<String> = OnceLock::new();
    if let Some(commit) = COMMIT.get() {
        return Ok(commit.clone());
    }
    let git = |arguments: &[&str]| {
        output_of(
            Command::new("git")
                .args(arguments)
                .current_dir(crate::build::workspace()),
        )
    };
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let clean = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":!bench",
        ":!docs",
    ])?
    .is_empty();
    let changed = if clean { "" } else { " with changes" };
    Ok(COMMIT
        .get_or_init(|| format!("{}{changed}", commit.trim()))
        .clone())
}

/// Today, as UTC has it.
pub(crate) fn date() -> Result<String> {
    Ok(output_of(Command::new("date").args(["-u", "+%F"]))?
        .trim()
        .to_owned())
}

fn value_of(file: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(separator)?.1.trim().to_owned())
}
