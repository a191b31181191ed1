//! Asking a running watch: [`crate::control`] from the other side.
//!
//! Whoever answers may be another version, hang, or send without end: the answer's size and the time without a word are
//! bounded, and each way to fail says what to do.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nephoscope_finding::Finding;
use nephoscope_inventory::{Report, SCHEMA};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::control::{Answer, Ask, PageEvidence};
use crate::exit::{Failure, exit};
use crate::runtime::VmDir;
use crate::text::escape;

/// The largest answer: it stops a peer that sends without end. A report of 10,000 processes is a tenth of it.
const MAX_ANSWER: usize = 256 << 20;
/// Whole answers may take as many times the time without a word: it stops a peer that sends a byte now and then.
const PATIENCE: u32 = 6;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no socket.
    #[error("no VM named {0:?} is being watched: `nephoscope ps` lists those that are")]
    Absent(String),
    /// There is a socket, and nobody behind it.
    #[error(
        "the watch of {0:?} is gone: if the VM still runs, `nephoscope attach --name {0}` watches it again"
    )]
    Dead(String),
    /// The system refuses.
    #[error("not allowed to ask the watch of {0:?}: be the user who started it, or root ({1})")]
    Denied(String, PathBuf),
    /// Not a word.
    #[error("the watch of {0:?} did not answer within {1} s: ask again, or with a longer --timeout")]
    Silent(String, u64),
    /// The connection was closed instead of an answer.
    #[error("the watch of {0:?} ended before it answered: `nephoscope ps` lists those that run")]
    Closed(String),
    /// Not an answer.
    #[error(
        "the answer of the watch of {0:?} is not understood ({1}): is it of another version of nephoscope?"
    )]
    Garbage(String, String),
    /// No such page.
    #[error("{0}")]
    Nothing(String),
    /// Something else.
    #[error("cannot ask the watch of {0:?}: {1}")]
    Io(String, std::io::Error),
}

impl AskError {
    /// Whether it means that the VM, or its watch, has ended.
    #[must_use]
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Dead(_) | Self::Closed(_))
    }

    /// The exit code for it.
    #[must_use]
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Absent(_) | Self::Dead(_) | Self::Silent(..) | Self::Closed(_) => Failure::NoVm,
            Self::Denied(..) => Failure::Permission,
            Self::Garbage(..) => Failure::NotUnderstood,
            Self::Nothing(_) => Failure::NoSuchItem,
            Self::Io(..) => Failure::Other,
        }
    }

    /// Ends the program with it.
    #[must_use]
    pub(crate) fn into_exit(self) -> anyhow::Error {
        exit(self.failure(), self.to_string())
    }
}

/// A conversation with a watch.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    stream: UnixStream,
    quiet: Duration,
    read: Vec<u8>,
}

impl Client {
    /// Connects, with so much time for each word.
    ///
    /// # Errors
    /// If nobody listens.
    pub(crate) fn connect(vm: &VmDir, quiet: Duration) -> Result<Self, AskError> {
        let name = vm.name.clone();
        let stream = connect(vm, quiet).map_err(|error| match error.kind() {
            ErrorKind::NotFound => AskError::Absent(name.clone()),
            ErrorKind::ConnectionRefused => AskError::Dead(name.clone()),
            ErrorKind::PermissionDenied => AskError::Denied(name.clone(), vm.control()),
            ErrorKind::TimedOut => AskError::Silent(name.clone(), quiet.as_secs()),
            _ => AskError::Io(name.clone(), error),
        })?;
        let set = stream
            .set_read_timeout(Some(quiet))
            .and_then(|()| stream.set_write_timeout(Some(quiet)));
        set.map_err(|error| AskError::Io(name.clone(), error))?;
        Ok(Self {
            name,
            stream,
            quiet,
            read: Vec::new(),
        })
    }

    /// Over a connection that is there already, for `fuzz`.
    #[cfg(fuzzing)]
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self {
            name: "fuzz".to_owned(),
            stream,
            quiet: Duration::from_secs(60),
            read: Vec::new(),
        }
    }

    /// The report as of now.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub(crate) fn report(&mut self) -> Result<Report, AskError> {
        match self.ask(&Ask::Report)? {
            Answer::Report { report } if report.schema == SCHEMA => Ok(*report),
            Answer::Report { report } => Err(self.garbage(&format!("a report of schema {}", report.schema))),
            other => Err(self.unexpected(other)),
        }
    }

    /// Findings with a number above this one.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub(crate) fn findings(&mut self, after: u64) -> Result<Vec<Finding>, AskError> {
        match self.ask(&Ask::Findings { after })? {
            Answer::Findings { findings } => Ok(findings),
            other => Err(self.unexpected(other)),
        }
    }

    /// The evidence for a page.
    ///
    /// # Errors
    /// If there is no such page, no answer, or another one.
    pub(crate) fn page(&mut self, page: u64) -> Result<PageEvidence, AskError> {
        match self.ask(&Ask::Page { page })? {
            Answer::Page { page } => Ok(*page),
            other => Err(self.unexpected(other)),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<Answer, AskError> {
        let mut question = serde_json::to_vec(ask).map_err(|error| self.garbage(&error.to_string()))?;
        question.push(b'\n');
        self.stream
            .write_all(&question)
            .map_err(|error| self.failed(error))?;
        let line = self.line()?;
        serde_json::from_slice(&line).map_err(|error| self.garbage(&error.to_string()))
    }

    fn line(&mut self) -> Result<Vec<u8>, AskError> {
        let deadline = Instant::now() + self.quiet * PATIENCE;
        let mut chunk = vec![0; 64 << 10];
        loop {
            let got = match self.stream.read(&mut chunk) {
                Ok(0) if self.read.is_empty() => return Err(AskError::Closed(self.name.clone())),
                Ok(0) => return Err(self.garbage("it ends in the middle")),
                Ok(got) => chunk.get(..got).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            };
            if let Some(end) = got.iter().position(|byte| *byte == b'\n') {
                let (last, next) = got.split_at(end);
                let mut line = std::mem::take(&mut self.read);
                line.extend_from_slice(last);
                self.read.extend(next.iter().skip(1));
                return Ok(line);
            }
            self.read.extend_from_slice(got);
            if self.read.len() > MAX_ANSWER {
                return Err(self.garbage(&format!("longer than {} MiB", MAX_ANSWER >> 20)));
            }
            if Instant::now() > deadline {
                return Err(AskError::Silent(
                    self.name.clone(),
                    (self.quiet * PATIENCE).as_secs(),
                ));
            }
        }
    }

    fn failed(&self, error: std::io::Error) -> AskError {
        let name = self.name.clone();
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent(name, self.quiet.as_secs()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => AskError::Closed(name),
            _ => AskError::Io(name, error),
        }
    }

    /// What is wrong with an answer may quote it.
    fn garbage(&self, what: &str) -> AskError {
        AskError::Garbage(self.name.clone(), escape(what).into_owned())
    }

    fn unexpected(&self, answer: Answer) -> AskError {
        match answer {
            Answer::Nothing { why } => AskError::Nothing(format!("{:?}: {}", self.name, escape(&why))),
            _ => self.garbage("an answer to another question"),
        }
    }
}

/// Connects without waiting for a peer whose backlog is full and who never accepts.
fn connect(vm: &VmDir, quiet: Duration) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(vm.control())?;
    let deadline = Instant::now() + quiet;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}
