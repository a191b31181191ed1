//! The files, and what they must hold.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc::O_DIRECT;

use super::Random;

/// How many.
const FILES: usize = 16;
/// None is longer.
const MAX_BYTES: usize = 4 << 20;
/// Nothing longer is read or written at once.
const MAX_STEP: usize = 256 << 10;
/// What access past the cache is aligned to: the blocks of the file system.
const BLOCK: usize = 4096;

/// FNV-1a, 64 bits (RFC 9923).
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Files in one folder, by their numbers.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    must_be: Vec<Vec<u8>>,
}

impl Files {
    /// Empty ones.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn create(folder: PathBuf) -> Result<Self> {
        let files = Self {
            folder,
            must_be: vec![Vec::new(); FILES],
        };
        for number in 0..FILES {
            files.make(number)?;
        }
        Ok(files)
    }

    /// Names, and what the files must hold.
    pub fn must_be(&self) -> impl Iterator<Item = (String, &[u8])> {
        let files = self.must_be.iter().enumerate();
        files.map(|(number, bytes)| (name(number), bytes.as_slice()))
    }

    pub(super) fn one(&self, random: &mut Random) -> usize {
        random.index(self.must_be.len())
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(name(number))
    }

    fn make(&self, number: usize) -> Result<()> {
        let path = self.path(number);
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(())
    }

    fn open(&self, number: usize) -> Result<File> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Past the guest's cache.
    fn open_direct(&self, number: usize) -> Result<File> {
        let path = self.path(number);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(O_DIRECT).open(&path);
        file.with_context(|| format!("cannot open {} for direct access", path.display()))
    }

    /// Where something is done, and how much, within so many bytes.
    fn range(random: &mut Random, within: usize) -> (usize, usize) {
        let from = random.index(within.max(1));
        // Mostly little.
        let most = if random.below(4) == 0 { MAX_STEP } else { 3 * BLOCK };
        let len = 1 + random.index(most);
        (from, len.min(within.saturating_sub(from)))
    }

    fn set(&mut self, number: usize, from: usize, bytes: &[u8]) {
        let held = &mut self.must_be[number];
        let end = from + bytes.len();
        if held.len() < end {
            held.resize(end, 0);
        }
        held[from..end].copy_from_slice(bytes);
    }

    pub(super) fn write(&mut self, number: usize, random: &mut Random, direct: bool) -> Result<()> {
        let (mut from, mut len) = Self::range(random, MAX_BYTES);
        if !direct {
            let bytes = random.bytes(len);
            self.open(number)?.write_all_at(&bytes, from as u64)?;
            self.set(number, from, &bytes);
            return Ok(());
        }
        (from, len) = (from / BLOCK * BLOCK, len.div_ceil(BLOCK) * BLOCK);
        let bytes = random.bytes(len);
        let mut room = Aligned::new(len);
        room.bytes().copy_from_slice(&bytes);
        self.open_direct(number)?
            .write_all_at(room.bytes(), from as u64)?;
        self.set(number, from, &bytes);
        Ok(())
    }

    pub(super) fn append(&mut self, number: usize, random: &mut Random) -> Result<()> {
        let from = self.must_be[number].len();
        let len = (1 + random.index(2 * BLOCK)).min(MAX_BYTES.saturating_sub(from));
        let bytes = random.bytes(len);
        self.open(number)?.write_all_at(&bytes, from as u64)?;
        self.set(number, from, &bytes);
        Ok(())
    }

    #[allow(unsafe_code, reason = "there is no other way to write through a mapping")]
    pub(super) fn write_mapped(&mut self, number: usize, random: &mut Random) -> Result<()> {
        let (from, len) = Self::range(random, self.must_be[number].len());
        if len == 0 {
            return Ok(());
        }
        let file = self.open(number)?;
        // SAFETY: nobody else has these files, so that none gets shorter while it is mapped.
        let mut map = unsafe { MmapMut::map_mut(&file)? };
        let bytes = random.bytes(len);
        map[from..from + len].copy_from_slice(&bytes);
        if random.below(2) == 0 {
            map.flush_range(from, len)?;
        }
        self.set(number, from, &bytes);
        Ok(())
    }

    pub(super) fn read(&self, number: usize, random: &mut Random) -> Result<()> {
        let (from, len) = Self::range(random, self.must_be[number].len());
        let mut bytes = vec![0; len];
        self.open(number)?.read_exact_at(&mut bytes, from as u64)?;
        self.same(number, from, &bytes)
    }

    pub(super) fn read_direct(&self, number: usize, random: &mut Random) -> Result<()> {
        let (from, len) = Self::range(random, self.must_be[number].len());
        let (from, end) = (from / BLOCK * BLOCK, from + len);
        let mut room = Aligned::new((end - from).div_ceil(BLOCK) * BLOCK);
        let file = self.open_direct(number)?;
        let mut got = 0;
        while got < end - from {
            // At the end of the file less comes than was asked for.
            let more = file.read_at(&mut room.bytes()[got..], (from + got) as u64)?;
            ensure!(more > 0, "{} ends at {}", name(number), from + got);
            got += more;
        }
        self.same(number, from, &room.bytes()[..end - from])
    }

    /// What of the file is in the guest's cache is forgotten first.
    pub(super) fn read_from_disk(&self, number: usize) -> Result<()> {
        let file = self.open(number)?;
        file.sync_data()?;
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        self.whole(number)
    }

    pub(super) fn truncate(&mut self, number: usize, random: &mut Random) -> Result<()> {
        let len = random.index(MAX_BYTES);
        self.open(number)?.set_len(len as u64)?;
        self.must_be[number].resize(len, 0);
        Ok(())
    }

    /// As a hole, or as zeros that are there.
    pub(super) fn zero(&mut self, number: usize, random: &mut Random, hole: bool) -> Result<()> {
        let (from, len) = Self::range(random, self.must_be[number].len());
        if len == 0 {
            return Ok(());
        }
        let how = if hole {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        let file = self.open(number)?;
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file.as_fd(), how, i64::try_from(from)?, i64::try_from(len)?)?;
        self.must_be[number][from..from + len].fill(0);
        Ok(())
    }

    pub(super) fn sync(&self, number: usize, random: &mut Random) -> Result<()> {
        let file = self.open(number)?;
        match random.below(2) {
            0 => file.sync_all()?,
            _ => file.sync_data()?,
        }
        Ok(())
    }

    /// Over another one, and the first is there anew.
    pub(super) fn rename(&mut self, number: usize, random: &mut Random) -> Result<()> {
        let over = self.one(random);
        if over == number {
            return Ok(());
        }
        fs::rename(self.path(number), self.path(over))?;
        self.must_be[over] = std::mem::take(&mut self.must_be[number]);
        self.make(number)
    }

    pub(super) fn remove(&mut self, number: usize) -> Result<()> {
        fs::remove_file(self.path(number))?;
        self.must_be[number].clear();
        self.make(number)
    }

    /// Compares every file with what it must be; with all caches of the machine emptied first, where that is wanted.
    ///
    /// # Errors
    /// When one is not.
    pub fn all(&self, from_disk: bool) -> Result<()> {
        if from_disk {
            nix::unistd::sync();
            fs::write("/proc/sys/vm/drop_caches", "3").context("caches cannot be emptied")?;
        }
        (0..self.must_be.len()).try_for_each(|number| self.whole(number))
    }

    fn whole(&self, number: usize) -> Result<()> {
        let held = fs::read(self.path(number))?;
        let wanted = self.must_be[number].len();
        ensure!(
            held.len() == wanted,
            "{} has {} bytes and must have {wanted}",
            name(number),
            held.len()
        );
        self.same(number, 0, &held)
    }

    fn same(&self, number: usize, from: usize, bytes: &[u8]) -> Result<()> {
        let wanted = &self.must_be[number][from..from + bytes.len()];
        let differs = wanted.iter().zip(bytes).position(|(wanted, is)| wanted != is);
        if let Some(at) = differs {
            let many = wanted
                .iter()
                .zip(bytes)
                .filter(|(wanted, is)| wanted != is)
                .count();
            anyhow::bail!(
                "{}: byte {} is {:#04x} and must be {:#04x}, the first of {many} such of {}",
                name(number),
                from + at,
                bytes[at],
                wanted[at],
                bytes.len()
            );
        }
        Ok(())
    }
}

fn name(number: usize) -> String {
    format!("file-{number:02}")
}

/// Memory that direct access takes.
struct Aligned {
    room: Vec<u8>,
    at: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let room = vec![0; len + BLOCK];
        let at = room.as_ptr().align_offset(BLOCK);
        Self { room, at, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.at..self.at + self.len]
    }
}
