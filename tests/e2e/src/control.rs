//! The control socket of a running watch: one JSON object per line each way (`crates/nephoscope/src/control.rs`).
//!
//! A test asks as any other program would; it shares no types with the program, so that a change of the protocol is
//! noticed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;
use serde_json::{Value, json};

/// A watch answers within milliseconds; this is for machines that do ten other things.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to the watch of one VM.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the watch of the VM with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(vm: &str) -> Result<Self> {
        let socket = socket(vm);
        let stream = UnixStream::connect(&socket)
            .with_context(|| format!("nobody answers for {vm} at {}", socket.display()))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Control {
            stream: BufReader::new(stream),
        })
    }

    /// The same on a machine that is so many times slower than an ordinary one: answers may take so much longer.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn slower(self, times: u32) -> Result<Self> {
        self.stream.get_ref().set_read_timeout(Some(TIMEOUT * times))?;
        Ok(self)
    }

    /// The process that answers, which is the one that watches: another may wait to take its place.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn watcher(&self) -> Result<Pid> {
        Ok(socket_peercred(self.stream.get_ref())?.pid)
    }

    /// The findings with a number above `after`.
    ///
    /// # Errors
    /// When the watch has ended or answers something else.
    pub fn findings(&mut self, after: u64) -> Result<Vec<Value>> {
        let answer = self.ask(&json!({"ask": "findings", "after": after}), "findings")?;
        let findings = answer.as_array().context("findings are not a list")?;
        Ok(findings.clone())
    }

    /// The report as of now.
    ///
    /// # Errors
    /// As [`Control::findings`].
    pub fn report(&mut self) -> Result<Value> {
        self.ask(&json!({"ask": "report"}), "report")
    }

    /// Everything known of one page.
    ///
    /// # Errors
    /// As [`Control::findings`], and when there is no such page.
    pub fn page(&mut self, page: u64) -> Result<Value> {
        self.ask(&json!({"ask": "page", "page": page}), "page")
    }

    /// The moment on this machine's clock from which the watch counts its nanoseconds; at most a few hundredths of a
    /// second too early, so that a time since then is never told too short.
    ///
    /// # Errors
    /// As [`Control::findings`].
    pub fn origin(&mut self) -> Result<Instant> {
        let asked = Instant::now();
        let report = self.report()?;
        let now_ns = report["coverage"]["intervals"]
            .as_array()
            .and_then(|intervals| intervals.last()?.get("to_ns")?.as_u64())
            .context("the report does not say how long the watch has lasted")?;
        asked
            .checked_sub(Duration::from_nanos(now_ns))
            .context("the watch is older than the machine")
    }

    fn ask(&mut self, question: &Value, what: &str) -> Result<Value> {
        let stream = self.stream.get_mut();
        stream
            .write_all(format!("{question}\n").as_bytes())
            .context("the watch has ended")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the watch has ended");
        let mut answer: Value = serde_json::from_str(&line)?;
        ensure!(
            answer["answer"] == what,
            "asked for {what}, the watch answers {line}"
        );
        Ok(answer[what].take())
    }
}

/// The socket on which the watch of a VM answers.
pub fn socket(vm: &str) -> PathBuf {
    folder(vm).join("control.sock")
}

/// What `nephoscope` keeps of a VM while it runs.
pub fn folder(vm: &str) -> PathBuf {
    base().join(vm)
}

/// Where `nephoscope` keeps the sockets of its watches (`crates/nephoscope/src/runtime.rs`).
fn base() -> PathBuf {
    if let Some(folder) = std::env::var_os("NEPHOSCOPE_RUNTIME_DIR") {
        return PathBuf::from(folder);
    }
    let uid = rustix::process::getuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !uid.is_root() => PathBuf::from(folder).join("nephoscope"),
        _ if uid.is_root() => PathBuf::from("/run/nephoscope"),
        _ => std::env::temp_dir().join(format!("nephoscope-{}", uid.as_raw())),
    }
}
