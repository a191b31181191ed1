//! What a guest has on its disk: partition tables and file systems, at first and while they are written to.
//!
//! An input is steps that change a small disk, byte by byte or block by block: so that a fuzzer need not carry a whole one around.

use std::cell::RefCell;
use std::io;

use nephoscope_disk::layout::{Blocks, FileSystem, partitions};

use crate::made::ext4::{BLOCK, BLOCKS};
use crate::made::{ext4, xfs};

/// A disk in memory.
pub(crate) struct Disk(pub(crate) RefCell<Vec<u8>>);

impl Blocks for Disk {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.borrow();
        let from = usize::try_from(at).map_err(io::Error::other)?;
        let found = from.checked_add(into.len()).and_then(|end| bytes.get(from..end));
        into.copy_from_slice(found.ok_or_else(|| io::Error::other("beyond the disk"))?);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.borrow().len() as u64
    }
}

impl Disk {
    /// Puts bytes there, as far as the disk goes. How many those were.
    fn put(&self, at: usize, bytes: &[u8]) -> usize {
        let mut all = self.0.borrow_mut();
        let end = at.saturating_add(bytes.len()).min(all.len());
        let Some(to) = all.get_mut(at..end) else {
            return 0;
        };
        to.copy_from_slice(&bytes[..to.len()]);
        to.len()
    }

    fn block(&self, number: usize) -> Vec<u8> {
        self.0.borrow()[number * BLOCK..][..BLOCK].to_vec()
    }
}

/// One step.
pub(crate) enum Step<'a> {
    /// Bytes at a place.
    Put(usize, &'a [u8]),
    /// A block gets what another one holds.
    Copy { from: usize, to: usize },
    /// From here on the disk is in use.
    Begin,
}

/// The first step of an input, and the rest of it.
pub(crate) fn step(input: &[u8]) -> Option<(Step<'_>, &[u8])> {
    let (kind, rest) = input.split_first()?;
    Some(match kind % 4 {
        0 | 1 => {
            let (head, rest) = rest.split_first_chunk::<3>()?;
            let (bytes, rest) = rest.split_at(usize::from(head[2]).min(rest.len()));
            (
                Step::Put(u16::from_le_bytes([head[0], head[1]]).into(), bytes),
                rest,
            )
        }
        2 => {
            let (blocks, rest) = rest.split_first_chunk::<2>()?;
            let [from, to] = blocks.map(|block| usize::from(block) % BLOCKS);
            (Step::Copy { from, to }, rest)
        }
        _ => (Step::Begin, rest),
    })
}

/// Changes a disk until it is in use. What is left of the input.
fn changed<'a>(disk: &Disk, mut input: &'a [u8]) -> &'a [u8] {
    while let Some((step, rest)) = step(input) {
        input = rest;
        match step {
            Step::Put(at, bytes) => {
                disk.put(at, bytes);
            }
            Step::Copy { from, to } => {
                disk.put(to * BLOCK, &disk.block(from));
            }
            Step::Begin => break,
        }
    }
    input
}

/// A table of partitions. A byte in front says whether the checksums of a GUID table are made right.
pub fn tables(input: &[u8]) {
    let Some((how, input)) = input.split_first() else {
        return;
    };
    let disk = Disk(RefCell::new(vec![0; BLOCKS * BLOCK]));
    changed(&disk, input);
    for sector in [512, 4096] {
        if how & 1 != 0 {
            forge(&mut disk.0.borrow_mut(), sector);
        }
    }
    let found = partitions(&disk).expect("memory can be read");
    let len = disk.len();
    for part in &found {
        assert!(part.number > 0 && part.bytes > 0, "{part:?}");
        assert!(
            part.at.checked_add(part.bytes).is_some_and(|end| end <= len),
            "{part:?}"
        );
    }
    assert!(found.len() <= 8192 + 4 * 128, "{}", found.len());
}

/// Makes the checksums of the GUID table right whose header is in this disk's second sector.
fn forge(disk: &mut [u8], sector: usize) {
    let word =
        |disk: &[u8], at: usize| u32::from_le_bytes(disk[sector + at..][..4].try_into().expect("four"));
    if !disk[sector..].starts_with(b"EFI PART") {
        return;
    }
    let len = (word(disk, 0x50) as usize).saturating_mul(word(disk, 0x54) as usize);
    let at = (word(disk, 0x48) as usize).saturating_mul(sector);
    if let Some(table) = at.checked_add(len).and_then(|end| disk.get(at..end)) {
        let sum = crc32fast::hash(table);
        disk[sector + 0x58..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    disk[sector + 0x10..][..4].fill(0);
    let sum = crc32fast::hash(&disk[sector..][..92]);
    disk[sector + 0x10..][..4].copy_from_slice(&sum.to_le_bytes());
}

/// What holds of any file system.
fn check(files: &FileSystem, disk: &Disk) {
    let each = u64::from(files.block_bytes());
    for block in 0..=(BLOCKS * BLOCK) as u64 / each {
        let Some((inode, _)) = files.owner(block) else {
            continue;
        };
        assert!((block + 1) * each <= disk.len(), "{block} is on the disk");
        let _ = files.file(inode);
        if let Ok(Some(path)) = files.path(inode, disk) {
            assert!(path.starts_with(b"/") && path.len() < 8192, "{}", path.len());
        }
    }
    let _ = files.unseen();
}

fn once(disk: Vec<u8>, input: &[u8]) {
    let disk = Disk(RefCell::new(disk));
    changed(&disk, input);
    if let Ok(files) = FileSystem::read(&disk) {
        check(&files, &disk);
    }
}

/// A disk that is written to after it was read.
fn current(disk: Vec<u8>, input: &[u8]) {
    let disk = Disk(RefCell::new(disk));
    let mut input = changed(&disk, input);
    let Ok(mut files) = FileSystem::read(&disk) else {
        return;
    };
    while let Some((step, rest)) = step(input) {
        input = rest;
        let (at, bytes) = match step {
            Step::Put(at, bytes) => (at, bytes.to_vec()),
            Step::Copy { from, to } => (to * BLOCK, disk.block(from)),
            Step::Begin => continue,
        };
        let written = disk.put(at, &bytes);
        for inode in files.written(at as u64, &bytes[..written], &disk) {
            let _ = files.path(inode, &disk);
        }
    }
    check(&files, &disk);
}

/// ext4, read once.
pub fn ext4(input: &[u8]) {
    once(ext4::disk(), input);
}

/// ext4 that is written to, by way of its journal or not.
pub fn ext4_current(input: &[u8]) {
    current(ext4::disk(), input);
}

/// XFS, read once.
pub fn xfs(input: &[u8]) {
    once(xfs::disk(), input);
}

/// XFS that is written to, by way of its log or not.
pub fn xfs_current(input: &[u8]) {
    current(xfs::disk(), input);
}
