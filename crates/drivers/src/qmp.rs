//! A small synchronous client of QEMU's machine protocol (QMP) over a Unix socket.
//!
//! ```text
//!  connect ── greeting ── qmp_capabilities ──► execute ─┬─ reply with our id ──► result
//!                                                 ▲     ├─ event ──► kept for take_events
//!                                                 └─────┴─ reply with another id (late) ──► counted
//! ```
//!
//! One command at a time, each with a deadline: a QEMU that hangs does not hang the monitor. Lines and kept events
//! are bounded. A crate was not taken: those there are bring an async runtime or types for a thousand commands,
//! of which five are used. Source: QEMU `docs/interop/qmp-spec.rst`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// The longest line that is taken: stops a peer that is no QEMU and never ends its line.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Events kept until somebody takes them; then the oldest are dropped and counted.
const MAX_EVENTS: usize = 1024;

/// How often the socket is read before what came is looked at: a peer that never stops keeps nobody here.
const MAX_CHUNKS: usize = 64;

/// How often a socket that is not there yet is looked for.
const CONNECT_POLL: Duration = Duration::from_millis(10);

/// Why a command has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QmpError {
    /// Nobody listens there, or it is not allowed.
    #[error("cannot connect to the QMP socket")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the QMP connection broke")]
    Io(#[source] io::Error),
    /// QEMU closed the connection; it has most likely ended.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// No answer in time. A greeting that does not come mostly means that another client holds the socket, as QEMU
    /// serves one at a time.
    #[error("no {what} from QEMU within {} ms", after.as_millis())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// A line without end.
    #[error("a line of more than {MAX_LINE_BYTES} bytes came over QMP")]
    LineTooLong,
    /// A line that is no JSON.
    #[error("a line over QMP is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON that is no QMP.
    #[error("QEMU sent no {expected} where QMP has one")]
    Unexpected {
        /// What should have been there.
        expected: &'static str,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QMP's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
}

/// Something that QEMU said unasked.
#[derive(Clone, PartialEq, Debug)]
pub struct QmpEvent {
    /// Its name, as `SHUTDOWN` or `RESET`.
    pub name: String,
    /// What comes with it, or null.
    pub data: Value,
    /// When, in microseconds since the Unix epoch by QEMU's clock.
    pub at_us: Option<u64>,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    timeout: Duration,
    /// Bytes received and not yet taken; the first `scanned` of them hold no end of line.
    pending: Vec<u8>,
    scanned: usize,
    next_id: u64,
    events: VecDeque<QmpEvent>,
    events_dropped: u64,
    replies_late: u64,
    version: String,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates. `timeout` holds for this and for each later command.
    ///
    /// # Errors
    /// [`QmpError::Connect`] if nobody listens there; others if the peer is no QEMU or is busy with another client.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        Self::from_stream(UnixStream::connect(path).map_err(QmpError::Connect)?, timeout)
    }

    /// Like [`connect`](Self::connect), but waits up to `timeout` for a QEMU that was just started to listen.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_when_ready(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::from_stream(stream, timeout),
                Err(error) if not_yet(&error) && Instant::now() < deadline => {
                    std::thread::sleep(CONNECT_POLL)
                }
                Err(error) => return Err(QmpError::Connect(error)),
            }
        }
    }

    /// Negotiates over a stream that is already connected.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self {
            stream,
            timeout,
            pending: Vec::new(),
            scanned: 0,
            next_id: 0,
            events: VecDeque::new(),
            events_dropped: 0,
            replies_late: 0,
            version: String::new(),
        };
        let deadline = Instant::now() + timeout;
        let greeting = qmp.message(deadline, "greeting")?;
        let version = greeting
            .get("QMP")
            .and_then(|qmp| qmp.get("version"))
            .ok_or(QmpError::Unexpected { expected: "greeting" })?;
        qmp.version = version_text(version);
        qmp.execute("qmp_capabilities", None)?;
        Ok(qmp)
    }

    /// What QEMU calls its version, as `10.0.2`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The process that listens on the other end: QEMU itself, unless a manager opened the socket for it.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    /// Runs a command and gives its result.
    ///
    /// # Errors
    /// [`QmpError::Refused`] if QEMU does not do it; others if the connection fails. After
    /// [`QmpError::TimedOut`] the connection can still be used: an answer that comes late is dropped and counted.
    pub fn execute(&mut self, command: &str, arguments: Option<Value>) -> Result<Value, QmpError> {
        let deadline = Instant::now() + self.timeout;
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if let (Some(arguments), Some(request)) = (arguments, request.as_object_mut()) {
            request.insert("arguments".to_owned(), arguments);
        }
        self.send(&request)?;
        loop {
            let mut message = self.message(deadline, "answer")?;
            if message.contains_key("event") {
                self.keep(&message);
                continue;
            }
            // QEMU cannot give back the id of a request that it could not parse; ours always can be.
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                self.replies_late += 1;
                continue;
            }
            if let Some(result) = message.remove("return") {
                return Ok(result);
            }
            let error = message
                .get("error")
                .ok_or(QmpError::Unexpected { expected: "result" })?;
            return Err(QmpError::Refused {
                command: command.to_owned(),
                class: text(error, "class"),
                description: text(error, "desc"),
            });
        }
    }

    /// Runs a line of the human monitor and gives what it prints. Lines end in CR LF.
    ///
    /// # Errors
    /// As [`execute`](Self::execute). The human monitor itself reports errors as text, which comes as a result.
    pub fn monitor(&mut self, line: &str) -> Result<String, QmpError> {
        match self.execute("human-monitor-command", Some(json!({ "command-line": line })))? {
            Value::String(text) => Ok(text),
            _ => Err(QmpError::Unexpected { expected: "text" }),
        }
    }

    /// Takes the events that came with earlier answers, oldest first.
    pub fn take_events(&mut self) -> Vec<QmpEvent> {
        self.events.drain(..).collect()
    }

    /// Takes the events that are there, oldest first, and waits for none: the shortest wait that a socket keeps is some
    /// milliseconds long.
    ///
    /// # Errors
    /// If the connection fails; events that came before are there for [`take_events`](Self::take_events).
    pub fn events_so_far(&mut self) -> Result<Vec<QmpEvent>, QmpError> {
        let mut received = Ok(true);
        for _ in 0..MAX_CHUNKS {
            received = self.receive(RecvFlags::DONTWAIT);
            if !matches!(received, Ok(true)) {
                break;
            }
        }
        // A QEMU that ends says so and closes: its last words come first.
        while let Some(line) = self.whole_line() {
            let message: Value = serde_json::from_slice(&line).map_err(QmpError::NotJson)?;
            match message {
                Value::Object(message) if message.contains_key("event") => self.keep(&message),
                // The answer to a command that was given up.
                Value::Object(_) => self.replies_late += 1,
                _ => return Err(QmpError::Unexpected { expected: "object" }),
            }
        }
        received?;
        Ok(self.take_events())
    }

    /// Waits up to `wait` for an event.
    ///
    /// # Errors
    /// [`QmpError::TimedOut`] if none came, others if the connection fails.
    pub fn wait_event(&mut self, wait: Duration) -> Result<QmpEvent, QmpError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.message(deadline, "event").map_err(|error| match error {
                QmpError::TimedOut { what, .. } => QmpError::TimedOut { what, after: wait },
                other => other,
            })?;
            if message.contains_key("event") {
                self.keep(&message)
            } else {
                self.replies_late += 1
            }
        }
    }

    /// Events dropped because nobody took them.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events_dropped
    }

    /// Answers that came after their command had timed out.
    #[must_use]
    pub const fn replies_late(&self) -> u64 {
        self.replies_late
    }

    fn keep(&mut self, message: &Map<String, Value>) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.events_dropped += 1;
        }
        let stamp = |part| message.get("timestamp")?.get(part)?.as_u64();
        self.events.push_back(QmpEvent {
            name: message
                .get("event")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            data: message.get("data").cloned().unwrap_or(Value::Null),
            at_us: stamp("seconds")
                .zip(stamp("microseconds"))
                .and_then(|(seconds, rest)| seconds.checked_mul(1_000_000)?.checked_add(rest)),
        });
    }

    fn send(&mut self, request: &Value) -> Result<(), QmpError> {
        let timeout = Some(self.timeout.max(Duration::from_millis(1)));
        self.stream.set_write_timeout(timeout).map_err(QmpError::Io)?;
        let mut line = request.to_string();
        line.push('\n');
        self.stream
            .write_all(line.as_bytes())
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QmpError::TimedOut {
                    what: "readiness to take a command",
                    after: self.timeout,
                },
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
                _ => QmpError::Io(error),
            })
    }

    fn message(&mut self, deadline: Instant, what: &'static str) -> Result<Map<String, Value>, QmpError> {
        let line = self.line(deadline, what)?;
        match serde_json::from_slice(&line).map_err(QmpError::NotJson)? {
            Value::Object(message) => Ok(message),
            _ => Err(QmpError::Unexpected { expected: "object" }),
        }
    }

    fn line(&mut self, deadline: Instant, what: &'static str) -> Result<Vec<u8>, QmpError> {
        loop {
            if let Some(line) = self.whole_line() {
                return Ok(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let in_time = !left.is_zero() && {
                self.stream.set_read_timeout(Some(left)).map_err(QmpError::Io)?;
                self.receive(RecvFlags::empty())?
            };
            if !in_time {
                return Err(QmpError::TimedOut {
                    what,
                    after: self.timeout,
                });
            }
        }
    }

    /// The first line of what was received, if all of it was.
    fn whole_line(&mut self) -> Option<Vec<u8>> {
        let mut fresh = self.pending.iter().skip(self.scanned);
        let Some(end) = fresh.position(|&byte| byte == b'\n').map(|at| self.scanned + at) else {
            self.scanned = self.pending.len();
            return None;
        };
        let rest = self.pending.split_off(end + 1);
        self.scanned = 0;
        Some(std::mem::replace(&mut self.pending, rest))
    }

    /// Receives some more; `false` if there is nothing, at once or until the read timeout.
    fn receive(&mut self, flags: RecvFlags) -> Result<bool, QmpError> {
        if self.pending.len() > MAX_LINE_BYTES && !self.pending.contains(&b'\n') {
            return Err(QmpError::LineTooLong);
        }
        let mut chunk = [0; 1 << 14];
        match rustix::net::recv(&self.stream, &mut chunk[..], flags) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Err(QmpError::Closed),
            Ok((_, count)) => {
                self.pending.extend(chunk.iter().take(count));
                Ok(true)
            }
            Err(Errno::INTR) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(QmpError::Io(error.into())),
        }
    }
}

fn not_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn text(object: &Value, key: &str) -> String {
    object
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn version_text(version: &Value) -> String {
    let part = |name| {
        version
            .get("qemu")
            .and_then(|qemu| qemu.get(name))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
