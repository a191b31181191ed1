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

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use nephoscope_pipeline::{Entry, Session};
use serde::{Deserialize, Serialize};

use crate::runtime::{HORIZON, Kept};

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

/// The journal of a running watch.
#[derive(Debug)]
pub(super) struct Journal {
    kept: Kept,
    of: Of,
    horizon: File,
    file: File,
    at: Horizon,
    /// Its length when it was written anew last.
    anew: u64,
    /// Lines that did not go to the file yet.
    pending: Vec<u8>,
    full: bool,
    refused: bool,
}

impl Journal {
    /// A new journal after what was left, if anything was.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn begin(kept: &Kept, of: Of, left: Option<&Left>, session: &mut Session) -> io::Result<Self> {
        let number = left.map_or(0, |left| left.number + 1);
        let mut pending = line(&of)?;
        for entry in session.journal_anew() {
            pending.append(&mut line(&entry)?);
        }
        let mut journal = Self {
            kept: kept.clone(),
            of,
            horizon: kept.create(HORIZON, false)?,
            file: kept.create(&named(number), true)?,
            at: Horizon {
                number,
                len: 0,
                done_ns: left.map_or(0, |left| left.done_ns),
            },
            anew: 0,
            pending,
            full: false,
            refused: false,
        };
        journal.write()?;
        journal.anew = journal.at.len;
        journal.set_horizon()?;
        if let Some(left) = left {
            kept.remove(&named(left.number));
        }
        Ok(journal)
    }

    /// Writes what is new, and that everything until `done_ns` is written. What the disk does not take is tried again at the
    /// next call; until then the horizon stays.
    pub(super) fn keep(&mut self, session: &mut Session, done_ns: u64) {
        if self.full {
            return;
        }
        let kept = self.try_keep(session, done_ns);
        match kept {
            Ok(()) if self.refused => {
                self.refused = false;
                eprintln!("nephoscope: the journal in {} is written again", self.kept.name);
            }
            Ok(()) => {}
            Err(error) if !self.refused => {
                self.refused = true;
                eprintln!(
                    "nephoscope: the journal of {} cannot be written ({error}): as long as that is so, a watch that is \
                     killed takes along what it concluded from {:.3} s on, and its report says so",
                    self.kept.name,
                    std::time::Duration::from_nanos(self.at.done_ns).as_secs_f64()
                );
            }
            Err(_) => {}
        }
    }

    fn try_keep(&mut self, session: &mut Session, done_ns: u64) -> io::Result<()> {
        for entry in session.journal() {
            self.pending.append(&mut line(&entry)?);
        }
        if self.pending.len() as u64 > MAX_BYTES / 4 {
            self.give_up(session);
            return Ok(());
        }
        self.write()?;
        if self.at.len > self.anew.saturating_mul(2) + ANEW_AFTER {
            self.write_anew(session)?;
        }
        self.at.done_ns = self.at.done_ns.max(done_ns);
        self.set_horizon()
    }

    fn write(&mut self) -> io::Result<()> {
        // At its own place: what was written of it before the disk was full is written again.
        self.file.write_all_at(&self.pending, self.at.len)?;
        self.at.len += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn set_horizon(&self) -> io::Result<()> {
        self.horizon.write_all_at(&self.at.bytes(), 0)
    }

    fn write_anew(&mut self, session: &mut Session) -> io::Result<()> {
        let number = self.at.number + 1;
        let file = self.kept.create(&named(number), true)?;
        let mut writer = io::BufWriter::with_capacity(1 << 20, &file);
        let mut len = 0;
        let mut add = |bytes: Vec<u8>| {
            len += bytes.len() as u64;
            writer.write_all(&bytes)
        };
        add(line(&self.of)?)?;
        for entry in session.journal_anew() {
            add(line(&entry)?)?;
        }
        writer.flush()?;
        drop(writer);
        let old = std::mem::replace(&mut self.at.number, number);
        (self.file, self.at.len, self.anew) = (file, len, len);
        self.set_horizon()?;
        self.kept.remove(&named(old));
        if len > MAX_BYTES / 2 {
            self.give_up(session);
        }
        Ok(())
    }

    fn give_up(&mut self, session: &mut Session) {
        self.full = true;
        session.journal_ends();
        self.pending = Vec::new();
        eprintln!(
            "nephoscope: the journal of {} has reached its bound: a watch that is killed from now on takes along what it \
             concluded, and its report says so",
            self.kept.name
        );
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
