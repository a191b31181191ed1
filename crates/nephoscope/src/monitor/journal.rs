//! What a watch concluded, on disk, so that the next one goes on after it was killed.
//!
//! ```text
//!  horizon    number, length, time, check      32 bytes, written over and over
//!  journal.N  one line per entry               only ever added to; a new N when it is written anew
//! ```
//!
//! The horizon says up to which byte of which journal everything is whole, and for everything until which time that holds.
//! It is written after the lines. Both survive the death of the process in the system's cache; a machine that dies takes the
//! VM along. So what was lost with a watch is at most what came after the horizon, and that is its blind interval.

mod writer;

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use nephoscope_pipeline::{Entry, Session};
use serde::{Deserialize, Serialize};

use crate::runtime::{HORIZON, Kept};
use writer::{Job, Seen, Writer};

/// A journal that has grown by as much is written anew, with what still counts: it bounds what processes that come and go
/// leave in it.
const ANEW_AFTER: u64 = 32 << 20;
/// The largest that is written: it stops a guest that makes code without end from filling the disk. Past it the horizon stays
/// where it is, and a watch that begins again is blind from there.
const MAX_BYTES: u64 = 256 << 20;

/// The first line: of which VM it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Of {
    /// QEMU's process.
    pub(super) pid: u32,
    /// When the plugin was installed, which is the watch's time 0 (`CLOCK_MONOTONIC`, ns).
    pub(super) installed_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Horizon {
    number: u64,
    len: u64,
    done_ns: u64,
}

impl Horizon {
    fn bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let check = self.number ^ self.len.rotate_left(16) ^ self.done_ns.rotate_left(32) ^ u64::MAX;
        for (slot, value) in bytes
            .chunks_exact_mut(8)
            .zip([self.number, self.len, self.done_ns, check])
        {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn read(kept: &Kept) -> Option<Self> {
        let mut bytes = [0; 32];
        kept.open(HORIZON).ok()?.read_exact(&mut bytes).ok()?;
        let mut words = bytes
            .chunks_exact(8)
            .filter_map(|word| word.try_into().ok())
            .map(u64::from_le_bytes);
        let horizon = Self {
            number: words.next()?,
            len: words.next()?,
            done_ns: words.next()?,
        };
        (horizon.bytes() == bytes).then_some(horizon)
    }
}

/// What an earlier watch left.
#[derive(Debug)]
pub(super) struct Left {
    /// Of which VM.
    pub(super) of: Of,
    /// Until when it holds, in nanoseconds since the watch began.
    pub(super) done_ns: u64,
    /// Its entries.
    pub(super) entries: Vec<Entry>,
    number: u64,
}

impl Left {
    /// Reads it; `None` if there is nothing, or nothing that can be believed.
    pub(super) fn read(kept: &Kept) -> Option<Self> {
        let horizon = Horizon::read(kept)?;
        let file = kept.open(&named(horizon.number)).ok()?;
        if file.metadata().ok()?.len() < horizon.len || horizon.len > MAX_BYTES {
            return None;
        }
        let mut lines = BufReader::with_capacity(1 << 20, file.take(horizon.len)).split(b'\n');
        let of = serde_json::from_slice(&lines.next()?.ok()?).ok()?;
        let entries = lines.map(|line| serde_json::from_slice(&line.ok()?).ok());
        Some(Self {
            of,
            done_ns: horizon.done_ns,
            entries: entries.collect::<Option<Vec<_>>>()?,
            number: horizon.number,
        })
    }
}

/// Lines of a new journal that are given to the writer at once, and how many such pieces may wait for the disk.
const PIECE: usize = 1 << 20;
const PIECES: usize = 2;
/// Why it is given up ([`MAX_BYTES`]).
const BOUND: &str = "has reached its bound";

/// The journal of a running watch.
#[derive(Debug)]
pub(super) struct Journal {
    name: String,
    of: Of,
    /// Lines that the writer does not have yet.
    pending: Vec<u8>,
    seen: Arc<Seen>,
    /// The writer, and how it is told.
    writer: Option<(SyncSender<Job>, JoinHandle<()>)>,
}

impl Journal {
    /// A new journal after what was left, if anything was. Not before privileges are dropped.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn begin(kept: &Kept, of: Of, left: Option<&Left>, session: &mut Session) -> io::Result<Self> {
        let number = left.map_or(0, |left| left.number + 1);
        let mut lines = line(&of)?;
        for entry in session.journal_anew() {
            lines.append(&mut line(&entry)?);
        }
        let at = Horizon {
            number,
            len: 0,
            done_ns: left.map_or(0, |left| left.done_ns),
        };
        let (horizon, file) = (kept.create(HORIZON, false)?, kept.create(&named(number), true)?);
        let mut writer = Writer::new(kept.clone(), horizon, file, at);
        writer.write(lines, 0)?;
        writer.begun();
        if let Some(left) = left {
            kept.remove(&named(left.number));
        }
        Self::with(writer, of)
    }

    fn with(writer: Writer, of: Of) -> io::Result<Self> {
        let (name, seen) = (writer.kept.name.clone(), writer.seen.clone());
        let (tell, jobs) = sync_channel(PIECES);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&jobs))?;
        Ok(Self {
            name,
            of,
            pending: Vec::new(),
            seen,
            writer: Some((tell, thread)),
        })
    }

    /// Has what is new written, and that everything until `done_ns` is written. While the disk is at the lines before, they wait.
    pub(super) fn keep(&mut self, session: &mut Session, done_ns: u64) {
        if self.writer.is_none() {
            return;
        }
        if let Err(error) = self.try_keep(session, done_ns) {
            self.give_up(session, &format!("cannot be written any more ({error})"));
        }
    }

    fn try_keep(&mut self, session: &mut Session, done_ns: u64) -> io::Result<()> {
        for entry in session.journal() {
            self.pending.append(&mut line(&entry)?);
        }
        let unwritten = self.seen.unwritten.load(Ordering::Acquire);
        if self.pending.len() as u64 + unwritten > MAX_BYTES / 4 {
            self.give_up(session, BOUND);
            return Ok(());
        }
        if self.seen.busy.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.pending);
        self.seen
            .unwritten
            .fetch_add(lines.len() as u64, Ordering::AcqRel);
        self.give(Job::Write { lines, done_ns })?;
        let [len, anew] = [&self.seen.len, &self.seen.anew].map(|bytes| bytes.load(Ordering::Acquire));
        let has_grown = len > anew.saturating_mul(2) + ANEW_AFTER;
        if has_grown && !self.seen.anew_under_way.swap(true, Ordering::AcqRel) {
            self.write_anew(session, done_ns)?;
        }
        if anew > MAX_BYTES / 2 {
            self.give_up(session, BOUND);
        }
        Ok(())
    }

    fn give(&self, job: Job) -> io::Result<()> {
        let (tell, _) = self.writer.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        tell.send(job).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// The writer goes on with a new journal, with what still counts.
    fn write_anew(&mut self, session: &mut Session, done_ns: u64) -> io::Result<()> {
        let mut piece = line(&self.of)?;
        for entry in session.journal_anew() {
            piece.append(&mut line(&entry)?);
            if piece.len() >= PIECE {
                self.give(Job::Anew(std::mem::take(&mut piece)))?;
            }
        }
        self.give(Job::Anew(piece))?;
        self.give(Job::Switch { done_ns })
    }

    fn give_up(&mut self, session: &mut Session, why: &str) {
        session.journal_ends();
        self.pending = Vec::new();
        self.end();
        eprintln!(
            "nephoscope: the journal of {} {why}: a watch that is killed from now on takes along what it \
             concluded, and its report says so",
            self.name
        );
    }

    /// What was given is written, and nothing more.
    fn end(&mut self) {
        if let Some((tell, thread)) = self.writer.take() {
            drop(tell);
            drop(thread.join());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end();
    }
}

fn named(number: u64) -> String {
    format!("journal.{number}")
}

fn line(entry: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
