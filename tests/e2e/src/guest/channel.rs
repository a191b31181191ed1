//! The host's end of the command server (`guest-files/command-server`, where the protocol is written down).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long one read or write waits before the deadline and the emulator's life are looked at again.
const TICK: Duration = Duration::from_millis(200);

/// No header of an answer is longer.
const MAX_LINE_BYTES: usize = 128;

/// No answer to a test is longer; a guest that says otherwise is broken.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What a command in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as the shell tells it.
    pub status: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether the status is zero.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The error output as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A connection to a guest that has said that it is ready.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    unread: Vec<u8>,
    requests: u64,
    /// With a guest that had another host before.
    went_on: bool,
}

impl Channel {
    /// Connects and waits for the guest's first word. `alive` is asked in between whether waiting makes sense.
    pub(super) fn connect(
        socket: &Path,
        deadline: Instant,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) => {
                    alive()?;
                    ensure!(
                        Instant::now() < deadline,
                        "the emulator offers no {}",
                        socket.display()
                    );
                    std::thread::sleep(TICK / 4);
                }
            }
        };
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        let mut channel = Channel {
            stream,
            unread: Vec::new(),
            requests: 0,
            went_on: false,
        };
        loop {
            let line = channel
                .line(deadline, &mut alive)
                .context("waiting for the guest to be ready")?;
            if line == "ready" {
                return Ok(channel);
            }
        }
    }

    /// Connects to a guest that has said that it is ready to another emulator.
    pub(super) fn go_on(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no {}", socket.display()))?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        Ok(Channel {
            stream,
            unread: Vec::new(),
            requests: 0,
            went_on: true,
        })
    }

    pub(super) fn run(&mut self, script: &str, deadline: Instant) -> Result<Output> {
        self.request("run", "", script.as_bytes(), deadline)
    }

    pub(super) fn put(&mut self, path: &str, content: &[u8], deadline: Instant) -> Result<Output> {
        ensure!(!path.contains('\n'), "a path of several lines");
        self.request("put", path, content, deadline)
    }

    fn request(&mut self, verb: &str, path: &str, content: &[u8], deadline: Instant) -> Result<Output> {
        self.requests = self.requests.wrapping_add(1);
        let id = self.requests.to_string();
        let header = format!("{verb} {id} {} {path}", content.len());
        self.write(format!("{}\n", header.trim_end()).as_bytes(), deadline)?;
        self.write(content, deadline)?;
        let mut line = self.line(deadline, &mut || Ok(()))?;
        // A guest that was without a host for a while has begun again since, before it read the request.
        while self.went_on && line == "ready" {
            line = self.line(deadline, &mut || Ok(()))?;
        }
        let fields: Vec<&str> = line.split(' ').collect();
        let ["done", answered, status, out_length, err_length] = fields.as_slice() else {
            bail!("the guest answered `{line}`");
        };
        ensure!(
            *answered == id,
            "the guest answered request {answered} and not {id}"
        );
        let stdout = self.bytes(out_length.parse()?, deadline)?;
        let stderr = self.bytes(err_length.parse()?, deadline)?;
        Ok(Output {
            status: status.parse()?,
            stdout,
            stderr,
        })
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if is_tick(&error) => {
                    ensure!(Instant::now() < deadline, "the guest takes no input")
                }
                Err(error) => return Err(error).context("the emulator closed the connection"),
            }
        }
        Ok(())
    }

    fn line(&mut self, deadline: Instant, alive: &mut impl FnMut() -> Result<()>) -> Result<String> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            ensure!(
                self.unread.len() <= MAX_LINE_BYTES,
                "the guest's answer has no end of line"
            );
            alive()?;
            self.fill(deadline)?;
        }
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>> {
        ensure!(count <= MAX_ANSWER_BYTES, "the guest announces {count} bytes");
        while self.unread.len() < count {
            self.fill(deadline)?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the emulator closed the connection"),
            Ok(count) => self
                .unread
                .extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if is_tick(&error) => ensure!(Instant::now() < deadline, "no answer in time"),
            Err(error) => return Err(error).context("the emulator closed the connection"),
        }
        Ok(())
    }
}

fn is_tick(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
