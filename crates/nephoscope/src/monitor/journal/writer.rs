//! The thread that writes: a disk that stands still for a moment does not keep the watch from what runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{Horizon, named};
use crate::runtime::Kept;

/// What there is to do.
#[derive(Debug)]
pub(super) enum Job {
    /// These lines are written after the others, and with them everything until then.
    Write { lines: Vec<u8>, done_ns: u64 },
    /// These lines begin a new journal, or go on with it.
    Anew(Vec<u8>),
    /// The new journal has all until then, and takes the old one's place.
    Switch { done_ns: u64 },
}

/// What the watch sees of it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The last lines that were given are being written.
    pub(super) busy: AtomicBool,
    /// A new journal is being written.
    pub(super) anew_under_way: AtomicBool,
    /// Bytes of the journal.
    pub(super) len: AtomicU64,
    /// Its length when it was begun.
    pub(super) anew: AtomicU64,
    /// Bytes that were given and are not on the disk.
    pub(super) unwritten: AtomicU64,
}

/// What the thread has.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) kept: Kept,
    pub(super) horizon: File,
    pub(super) file: File,
    pub(super) at: Horizon,
    /// Lines that did not go to the file yet.
    pub(super) pending: Vec<u8>,
    /// A journal that is to take the place of this one, and its length, as long as the disk takes it.
    next: Option<io::Result<(File, u64)>>,
    refused: bool,
    pub(super) seen: Arc<Seen>,
}

impl Writer {
    pub(super) fn new(kept: Kept, horizon: File, file: File, at: Horizon) -> Self {
        Self {
            kept,
            horizon,
            file,
            at,
            pending: Vec::new(),
            next: None,
            refused: false,
            seen: Arc::default(),
        }
    }

    /// Until nobody has anything to do any more.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Write { lines, done_ns } => {
                    let written = self.write(lines, done_ns);
                    self.say(written);
                    self.seen.busy.store(false, Ordering::Release);
                }
                Job::Anew(lines) => self.anew(&lines),
                Job::Switch { done_ns } => {
                    let switched = self.switch(done_ns);
                    self.say(switched);
                    self.seen.anew_under_way.store(false, Ordering::Release);
                }
            }
        }
    }

    /// What the disk does not take is tried again with the next lines; until then the horizon stays.
    pub(super) fn write(&mut self, mut lines: Vec<u8>, done_ns: u64) -> io::Result<()> {
        if self.pending.is_empty() {
            self.pending = lines;
        } else {
            self.pending.append(&mut lines);
        }
        // At its own place: what was written of it before the disk was full is written again.
        let written = self.file.write_all_at(&self.pending, self.at.len);
        if written.is_ok() {
            self.at.len += self.pending.len() as u64;
            self.pending.clear();
        }
        self.seen
            .unwritten
            .store(self.pending.len() as u64, Ordering::Release);
        self.seen.len.store(self.at.len, Ordering::Release);
        written?;
        self.at.done_ns = self.at.done_ns.max(done_ns);
        self.set_horizon()
    }

    /// From now on its length counts as that with which it began.
    pub(super) fn begun(&self) {
        self.seen.anew.store(self.at.len, Ordering::Release);
    }

    fn anew(&mut self, lines: &[u8]) {
        let number = self.at.number + 1;
        let kept = &self.kept;
        let next = self
            .next
            .take()
            .unwrap_or_else(|| Ok((kept.create(&named(number), true)?, 0)));
        self.next = Some(next.and_then(|(file, len)| {
            file.write_all_at(lines, len)?;
            Ok((file, len + lines.len() as u64))
        }));
    }

    fn switch(&mut self, done_ns: u64) -> io::Result<()> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let (file, len) = next.inspect_err(|_| {
            // The old one goes on, and is written anew when it has grown by as much again.
            self.begun();
        })?;
        let old = self.at.number;
        (self.file, self.at) = (
            file,
            Horizon {
                number: old + 1,
                len,
                done_ns: self.at.done_ns.max(done_ns),
            },
        );
        self.seen.len.store(len, Ordering::Release);
        self.begun();
        self.set_horizon()?;
        self.kept.remove(&named(old));
        Ok(())
    }

    fn set_horizon(&self) -> io::Result<()> {
        self.horizon.write_all_at(&self.at.bytes(), 0)
    }

    /// Says when it cannot be written, and when it can again.
    fn say(&mut self, written: io::Result<()>) {
        match written {
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
                    Duration::from_nanos(self.at.done_ns).as_secs_f64()
                );
            }
            Err(_) => {}
        }
    }
}
