//! Running the tools that build things: their output in a log, their last line as progress, their end as an error
//! that can be acted upon.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// How many lines of a failed tool's output its error repeats.
const LINES_IN_ERROR: usize = 15;

/// A command that runs as root: itself when we are root, through `sudo` otherwise.
pub fn privileged(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Runs `command` to its end without input, its output appended to `log` and shown as the step's progress.
///
/// # Errors
/// When it cannot be started or does not succeed; the error holds the last lines it wrote.
pub fn run_logged(step: &mut Step, command: &mut Command, log: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut log_file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(log_file, "$ {command:?}")?;
    let (output, writer) = std::io::pipe()?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn();
    // The command keeps the pipe's writing ends; as long as it lives here, reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child =
        spawned.with_context(|| format!("cannot run {name}; has `cargo xtask setup` been run?"))?;
    let mut last_lines: Vec<String> = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        writeln!(log_file, "{line}")?;
        step.note(&line);
        if last_lines.len() == LINES_IN_ERROR {
            last_lines.remove(0);
        }
        last_lines.push(line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{name} failed ({status}); the end of {}:\n  {}",
            log.display(),
            last_lines.join("\n  ")
        );
    }
    Ok(())
}

/// What `command` writes to its standard output.
///
/// # Errors
/// When it cannot be started or does not succeed; the error holds what it wrote to its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name is in the search path, or where Debian keeps those for root.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Writes `content` to `path`, making the folders above it.
///
/// # Errors
/// When the file system says so.
pub fn write_file(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
