//! `disk-work FOLDER SEED SECONDS`: random work on files of its own in that folder, each step held to what they must hold; then tells
//! what the files hold.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nephoscope_guest_tools::disk_work::Work;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seed, seconds] = arguments.as_slice() else {
        bail!("usage: disk-work FOLDER SEED SECONDS");
    };
    let seed = seed.parse().context("the seed is no number")?;
    let seconds = seconds.parse().context("the seconds are no number")?;
    let mut work = Work::begin(PathBuf::from(folder), seed, true)?;
    work.run(Duration::from_secs(seconds))
        .with_context(|| format!("in {folder}, seed {seed}"))?;
    work.tell(&mut std::io::stdout().lock())
}
