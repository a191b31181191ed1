//! Committed inputs: few and small, and together they reach what all that was found reaches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::Step;

use super::engine::Engine;
use super::targets::Target;

/// Bytes of one target's committed inputs, those made by hand aside; what does not fit is left out, the largest first.
const MOST_BYTES: u64 = 12 << 10;
/// Their number.
const MOST_INPUTS: usize = 64;

/// Replaces a target's committed inputs. What was made by hand (`seed-`) stays.
pub(crate) fn keep(engine: &Engine, target: Target) -> Result<()> {
    let step = Step::begin(&format!("Choosing inputs of {}", target.name));
    let chosen = tempfile::tempdir()?;
    let status = Command::new(engine.program(target))
        .args(["-set_cover_merge=1", "-rss_limit_mb=0"])
        .arg(format!("-max_len={}", target.longest))
        .arg(chosen.path())
        .arg(engine.found(target))
        .args(Some(Engine::committed(target)).filter(|folder| folder.is_dir()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot start the program of {}", target.name))?;
    ensure!(
        status.success(),
        "choosing the inputs of {} ended with {status}",
        target.name
    );
    let committed = Engine::committed(target);
    fs::create_dir_all(&committed)?;
    let mut left = MOST_BYTES;
    for (_, old) in files(&committed)?.iter().filter(|(_, path)| !is_seed(path)) {
        fs::remove_file(old)?;
    }
    let mut kept = 0;
    for (len, from) in files(chosen.path())? {
        if len > left || kept == MOST_INPUTS {
            break;
        }
        left -= len;
        kept += 1;
        if let Some(name) = from.file_name() {
            // Short names: the whole of a digest tells no more.
            let name: String = name.to_string_lossy().chars().take(12).collect();
            fs::copy(&from, committed.join(name))?;
        }
    }
    step.done(&format!("{kept}"));
    Ok(())
}

fn is_seed(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("seed-"))
}

/// Length and path of each file, the shortest first.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    Ok(files)
}
