//! QEMU's monitor protocol, as far as tests need it beside a watch.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A snapshot of a guest takes a while.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A connection of its own beside the watch's.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to `qmp.sock` in this folder.
    ///
    /// # Errors
    /// When there is none, or QEMU does not greet.
    pub fn connect(folder: &Path) -> Result<Self> {
        let stream = UnixStream::connect(folder.join("qmp.sock")).context("QEMU offers no qmp.sock")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(!line.is_empty(), "QEMU closed the connection");
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs a command and gives what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, or the connection ends.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
        }
    }

    /// A line of the human monitor, which says something only if it is wrong.
    ///
    /// # Errors
    /// When it says something.
    pub fn human(&mut self, line: &str) -> Result<()> {
        let said = self.execute("human-monitor-command", json!({"command-line": line}))?;
        let said = said.as_str().unwrap_or_default().trim();
        ensure!(said.is_empty(), "`{line}`: {said}");
        Ok(())
    }
}
