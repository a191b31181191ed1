//! Random work on files, each step held to what the files must hold: what `fsx` does (xfstests, `ltp/fsx.c`), on several files, with
//! renames, and with the guest's cache dropped now and then so that what is read comes from the disk.

mod files;
mod random;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use files::{Files, digest};
pub use random::Random;

/// A step: its name, and how often it comes, of all together.
const STEPS: [(&str, u64); 13] = [
    ("write", 20),
    ("append", 10),
    ("direct write", 8),
    ("mapped write", 10),
    ("read", 20),
    ("direct read", 5),
    ("read from disk", 8),
    ("truncate", 5),
    ("hole", 5),
    ("zeros", 3),
    ("sync", 10),
    ("rename", 3),
    ("remove", 2),
];

/// All is read from the disk after so many steps.
const ALL: u64 = 2000;

/// Works in a folder for a time.
#[derive(Debug)]
pub struct Work {
    files: Files,
    forgets: bool,
    random: Random,
    done: BTreeMap<&'static str, u64>,
}

impl Work {
    /// The folder's files with these names are its own. Whether the machine's caches, all of them, may be emptied.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn begin(folder: PathBuf, seed: u64, forgets: bool) -> Result<Self> {
        Ok(Self {
            files: Files::create(folder)?,
            forgets,
            random: Random::new(seed),
            done: BTreeMap::new(),
        })
    }

    /// Takes steps for so long, and compares everything with what it must be.
    ///
    /// # Errors
    /// When a step fails, or a file holds something else: which, where, and after which step.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut steps = 0;
        while begun.elapsed() < time {
            let step = self.choose();
            self.step(step).with_context(|| format!("step {steps}, {step}"))?;
            *self.done.entry(step).or_default() += 1;
            steps += 1;
            if steps % ALL == 0 {
                self.files
                    .all(true)
                    .with_context(|| format!("after step {steps}"))?;
            }
        }
        self.files.all(self.forgets).context("at the end")
    }

    /// A line for each kind of step and how often it was taken, and one for each file: its name, bytes and digest.
    ///
    /// # Errors
    /// When nobody takes them.
    pub fn tell(&self, out: &mut impl Write) -> Result<()> {
        for (step, times) in &self.done {
            writeln!(out, "step {times} {step}")?;
        }
        for (name, bytes) in self.files.must_be() {
            writeln!(out, "file {name} {} {:016x}", bytes.len(), digest(bytes))?;
        }
        Ok(())
    }

    fn choose(&mut self) -> &'static str {
        let all: u64 = STEPS.iter().map(|(_, often)| often).sum();
        let mut left = self.random.below(all);
        for (step, often) in STEPS {
            if left < often {
                return step;
            }
            left -= often;
        }
        STEPS[0].0
    }

    fn step(&mut self, step: &'static str) -> Result<()> {
        let (files, random) = (&mut self.files, &mut self.random);
        let file = files.one(random);
        match step {
            "write" => files.write(file, random, false),
            "append" => files.append(file, random),
            "direct write" => files.write(file, random, true),
            "mapped write" => files.write_mapped(file, random),
            "read" => files.read(file, random),
            "direct read" => files.read_direct(file, random),
            "read from disk" => files.read_from_disk(file),
            "truncate" => files.truncate(file, random),
            "hole" => files.zero(file, random, true),
            "zeros" => files.zero(file, random, false),
            "sync" => files.sync(file, random),
            "rename" => files.rename(file, random),
            _ => files.remove(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_worked_on_hold_what_they_must_and_a_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::begin(folder.path().to_owned(), 7, false).unwrap();
        work.run(Duration::from_millis(1500)).unwrap();
        assert_eq!(work.done.len(), STEPS.len(), "{:?}", work.done);
        let mut told = Vec::new();
        work.tell(&mut told).unwrap();
        let told = String::from_utf8(told).unwrap();
        for line in told.lines().filter_map(|line| line.strip_prefix("file ")) {
            let mut words = line.split(' ');
            let held = std::fs::read(folder.path().join(words.next().unwrap())).unwrap();
            assert_eq!(words.next().unwrap(), held.len().to_string());
            assert_eq!(words.next().unwrap(), format!("{:016x}", digest(&held)));
        }
        let (name, bytes) = work.files.must_be().find(|(_, bytes)| bytes.len() > 9).unwrap();
        let mut changed = bytes.to_vec();
        changed[9] ^= 1;
        std::fs::write(folder.path().join(&name), changed).unwrap();
        let error = format!("{:#}", work.files.all(false).unwrap_err());
        assert!(error.contains(&name) && error.contains("byte 9"), "{error}");
    }
}
