//! The log: what is to be where, before it is there (`fs/xfs/libxfs/xfs_log_format.h`, `fs/xfs/xfs_log_recover.c`).
//!
//! ```text
//!  record │ header │ operation: transaction, length, flags │ bytes │ operation │ bytes │ …      and from the end back to the first block
//!  transaction = items; item = a region that says what it is, and regions with what is there now
//! ```
//!
//! A transaction counts once its commit operation is there. The first word of every 512 bytes of a record is the number of the turn that the
//! log is in, and the word that belongs there stands in the header: so a record that is not whole is known. The headers are big-endian, the
//! items of whoever wrote them: here little-endian.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::super::Blocks;
use super::super::bytes::{index, u16_le, u32_be, u32_le, u64_be, u64_le};
use super::Superblock;

/// Bytes of a basic block, in which the log is counted.
const BASIC: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// Bytes of a record for which one block of header has the words.
const OF_HEADER: u32 = 32 << 10;
/// The writer's numbers are little-endian (`XLOG_FMT_LINUX_LE`).
const LITTLE: u32 = 1;

/// Bytes of a record (`XLOG_MAX_RECORD_BSIZE`).
const MAX_RECORD: u32 = 256 << 10;
/// Bytes of transactions that have begun: twice what Linux lets one grow to (`XLOG_CIL_BLOCKING_SPACE_LIMIT`).
const MAX_BEGUN_BYTES: usize = 128 << 20;
/// Transactions that have begun: Linux writes few at a time.
const MAX_BEGUN: usize = 64;
/// Records ahead of the one that is waited for, before that is given up: Linux writes eight at a time.
const AHEAD: u32 = 32;

/// Flags of an operation.
mod flag {
    pub(super) const START: u8 = 0x1;
    pub(super) const COMMIT: u8 = 0x2;
    /// The region goes on in the next record.
    pub(super) const CONTINUE: u8 = 0x4;
    /// It began in the record before.
    pub(super) const CONTINUED: u8 = 0x8;
}

/// What an item is about (`XFS_LI_*`).
mod kind {
    pub(super) const INODE: u16 = 0x123b;
    pub(super) const BUFFER: u16 = 0x123c;
    pub(super) const CREATED: u16 = 0x123f;
}

/// A part of a block that is this now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Patch {
    /// Where, in bytes from the beginning of the file system.
    pub(super) at: u64,
    /// What.
    pub(super) bytes: Vec<u8>,
}

/// Something that a transaction says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// These blocks have inodes from now on, of which none is in use: the first, and how many.
    Created(u64, u32),
    /// Metadata is this now.
    Written(Vec<Patch>),
    /// From here on so many bytes are no metadata any more.
    Cancelled(u64, u64),
    /// An inode is this now: its number, the core as it is in memory, and what it has of its contents' fork, if that changed.
    Inode(u64, Vec<u8>, Option<NewFork>),
}

/// The fork of an inode's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NewFork {
    /// As it is on the disk.
    Same(Vec<u8>),
    /// The root of a tree as it is in memory.
    Root(Vec<u8>),
}

/// A transaction that is complete.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Transaction {
    /// Where its first record is: a greater number is a later one.
    pub(super) lsn: u64,
    /// What it says, in its order.
    pub(super) items: Vec<Item>,
}

#[derive(Debug, Default)]
struct Begun {
    lsn: u64,
    regions: Vec<Vec<u8>>,
    bytes: usize,
}

/// Reads the log as it is written.
#[derive(Debug)]
pub(super) struct Log {
    at: u64,
    basics: u64,
    /// Where the next record will be, and in which turn.
    head: u64,
    turn: u32,
    begun: HashMap<u32, Begun>,
    ahead: u32,
    /// A record was there where it was waited for.
    was_right: bool,
    missed: u64,
}

/// A record.
struct Record {
    data: Vec<u8>,
    /// What is behind so many is whatever was in the writer's memory, up to a whole block.
    operations: u32,
    next: u64,
    turn: u32,
    lsn: u64,
}

impl Log {
    /// Finds where a log's next record will be; `None` if there is none within the file system.
    #[must_use]
    pub(super) fn open(of: &Superblock, disk: &impl Blocks) -> Option<Self> {
        let bytes = u64::from(of.log_blocks).checked_mul(of.block_bytes.into())?;
        let at = of.at(of.log_block);
        if of.log_block == 0 || of.log_blocks == 0 || at.checked_add(bytes)? > disk.len() {
            return None;
        }
        let mut log = Self {
            at,
            basics: bytes / BASIC,
            head: 0,
            turn: 1,
            begun: HashMap::new(),
            ahead: 0,
            was_right: false,
            missed: 0,
        };
        (log.head, log.turn) = log.end(disk)?;
        Some(log)
    }

    /// Whether a byte of the disk is in it.
    #[must_use]
    pub(super) fn has(&self, at: u64) -> bool {
        at >= self.at && at - self.at < self.basics.saturating_mul(BASIC)
    }

    /// Transactions, and records, that were not followed.
    #[must_use]
    pub(super) const fn missed(&self) -> u64 {
        self.missed
    }

    /// The turn that a basic block was written in.
    fn turn_of(&self, basic: u64, disk: &impl Blocks) -> Option<u32> {
        let mut bytes = [0; 8];
        disk.read(self.at.checked_add(basic.checked_mul(BASIC)?)?, &mut bytes)
            .ok()?;
        let first = u32_be(&bytes, 0)?;
        if first == MAGIC {
            u32_be(&bytes, 4)
        } else {
            Some(first)
        }
    }

    /// Where the turn ends that the first block was written in (`xlog_find_head`).
    fn end(&self, disk: &impl Blocks) -> Option<(u64, u32)> {
        let first = self.turn_of(0, disk)?;
        let (mut same, mut other) = (0, self.basics);
        if self.turn_of(self.basics.checked_sub(1)?, disk)? == first {
            return Some((0, first.wrapping_add(1)));
        }
        while same + 1 < other {
            let middle = same.midpoint(other);
            if self.turn_of(middle, disk)? == first {
                same = middle;
            } else {
                other = middle;
            }
        }
        Some((other, first))
    }

    /// Something was written to it, from this byte of the disk on. Gives the transactions that are complete now.
    pub(super) fn written(
        &mut self,
        at: u64,
        bytes: &[u8],
        of: &Superblock,
        disk: &impl Blocks,
    ) -> Vec<Transaction> {
        let mut complete = Vec::new();
        loop {
            let (before, head) = (complete.len(), self.head);
            while let Some(record) = self.record(of, disk) {
                (self.ahead, self.was_right) = (0, true);
                (self.head, self.turn) = (record.next, record.turn);
                self.operations(&record, of, &mut complete);
            }
            if head != self.head || complete.len() != before || !self.is_elsewhere(at, bytes) {
                return complete;
            }
            self.begun.clear();
        }
    }

    /// Whether records are written elsewhere than where the next is waited for, and that is where they are waited for from now on: a kernel
    /// that recovers the log goes on where it thinks right.
    fn is_elsewhere(&mut self, at: u64, bytes: &[u8]) -> bool {
        let first = at.saturating_sub(self.at) / BASIC;
        let header = (first..self.basics)
            .zip(bytes.chunks_exact(index(BASIC)))
            .find_map(|(here, bytes)| {
                let lsn = u64_be(bytes, 16)?;
                // What is written over with headers that have nothing is no record.
                let is_record = u32_be(bytes, 0)? == MAGIC && u32_be(bytes, 40)? != 0;
                (is_record && lsn & u64::from(u32::MAX) == here).then_some((here, lsn))
            });
        let Some((here, lsn)) = header else { return false };
        let turn = lsn >> 32;
        let expected = u64::from(self.turn) << 32 | self.head;
        self.ahead += u32::from(lsn > expected);
        let goes_there = lsn < expected || self.ahead > AHEAD;
        if goes_there {
            // Before the first record it was guessed where that would be: Linux begins a new log from its first block again.
            self.missed += u64::from(self.was_right || lsn > expected);
            self.ahead = 0;
            (self.head, self.turn) = (here, u32::try_from(turn).unwrap_or(0));
        }
        goes_there
    }

    /// The next record, if it is whole.
    fn record(&self, of: &Superblock, disk: &impl Blocks) -> Option<Record> {
        let mut header = vec![0; index(BASIC)];
        disk.read(self.at.checked_add(self.head.checked_mul(BASIC)?)?, &mut header)
            .ok()?;
        let word = |at| u32_be(&header, at);
        let lsn = u64::from(self.turn) << 32 | self.head;
        if word(0)? != MAGIC || word(4)? != self.turn || u64_be(&header, 16)? != lsn || word(300)? != LITTLE {
            return None;
        }
        let (len, size) = (word(12)?, word(320)?);
        if len > MAX_RECORD || size > MAX_RECORD || of.has_checksums && header.get(304..320)? != of.uuid {
            return None;
        }
        let headers = if word(8)? >= 2 {
            size.div_ceil(OF_HEADER).max(1)
        } else {
            1
        };
        let data = u64::from(len).div_ceil(BASIC);
        let all = u64::from(headers) + data;
        if all > self.basics {
            return None;
        }
        let mut bytes = vec![0; index(all * BASIC)];
        let until_end = (self.basics - self.head).min(all);
        let (here, from_start) = bytes.split_at_mut(index(until_end * BASIC));
        disk.read(self.at + self.head * BASIC, here).ok()?;
        disk.read(self.at, from_start).ok()?;
        // Each block is of this turn, or of the next behind the end of the log.
        for (number, block) in (0_u64..).zip(bytes.chunks_exact(index(BASIC))).skip(1) {
            let turn = self.turn.wrapping_add(u32::from(number >= until_end));
            if u32_be(block, 0)? != turn {
                return None;
            }
        }
        let (head, data) = bytes.split_at_mut(index(u64::from(headers) * BASIC));
        let in_header = index((OF_HEADER / 512).into());
        for (number, block) in data.chunks_exact_mut(index(BASIC)).enumerate() {
            let (which, word) = (number / in_header, number % in_header);
            let at = if which == 0 { 44 } else { index(BASIC) * which + 4 };
            let own = head.get(at + 4 * word..at + 4 * word + 4)?;
            block.get_mut(..4)?.copy_from_slice(own);
        }
        let mut data = data.to_vec();
        data.truncate(index(len.into()));
        let next = self.head + all;
        let over = next >= self.basics;
        Some(Record {
            data,
            operations: u32_be(head, 40)?,
            next: if over { next - self.basics } else { next },
            turn: self.turn.wrapping_add(u32::from(over)),
            lsn,
        })
    }

    fn operations(&mut self, record: &Record, of: &Superblock, complete: &mut Vec<Transaction>) {
        let mut rest = record.data.as_slice();
        for _ in 0..record.operations {
            let Some((header, behind)) = rest.split_first_chunk::<12>() else {
                return;
            };
            let id = u32_be(header, 0).unwrap_or(0);
            let len = index(u32_be(header, 4).unwrap_or(0).into());
            let flags = header[9];
            let Some((region, behind)) = behind.split_at_checked(len) else {
                return;
            };
            rest = behind;
            if flags & flag::START != 0 {
                self.begin(id, record.lsn);
            }
            if flags & flag::COMMIT != 0 {
                match self.begun.remove(&id) {
                    Some(begun) => complete.push(begun.complete(of)),
                    None => self.missed += 1,
                }
            } else if len > 0 {
                self.region(id, region, flags & flag::CONTINUED != 0);
            } else if flags & (flag::CONTINUE | flag::CONTINUED) == flag::CONTINUE {
                // A region of which nothing fitted into this record begins with nothing.
                self.region(id, region, false);
            }
        }
    }

    fn begin(&mut self, id: u32, lsn: u64) {
        if self.begun.len() >= MAX_BEGUN {
            let oldest = self.begun.iter().min_by_key(|(_, begun)| begun.lsn);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.begun.remove(&oldest);
                self.missed += 1;
            }
        }
        let begun = Begun {
            lsn,
            ..Begun::default()
        };
        self.begun.insert(id, begun);
    }

    fn region(&mut self, id: u32, region: &[u8], continues: bool) {
        let all: usize = self.begun.values().map(|begun| begun.bytes).sum();
        let Entry::Occupied(mut begun) = self.begun.entry(id) else {
            return;
        };
        if all.saturating_add(region.len()) > MAX_BEGUN_BYTES {
            begun.remove();
            self.missed += 1;
            return;
        }
        let begun = begun.get_mut();
        begun.bytes += region.len() + size_of::<Vec<u8>>();
        match begun.regions.last_mut().filter(|_| continues) {
            Some(last) => last.extend_from_slice(region),
            None => begun.regions.push(region.to_vec()),
        }
    }
}

impl Begun {
    /// Its items. The first region says how many there are, which does not matter: each says how many regions it has.
    fn complete(self, of: &Superblock) -> Transaction {
        let mut regions = self.regions.into_iter().skip(1);
        let mut items = Vec::new();
        while let Some(about) = regions.next() {
            let (Some(kind), Some(count)) = (u16_le(&about, 0), u16_le(&about, 2)) else {
                continue;
            };
            let rest: Vec<Vec<u8>> = regions
                .by_ref()
                .take(usize::from(count).saturating_sub(1))
                .collect();
            let item = match kind {
                kind::CREATED => created(&about, of),
                kind::BUFFER => buffer(&about, rest),
                kind::INODE => inode(&about, rest),
                _ => None,
            };
            items.extend(item);
        }
        Transaction { lsn: self.lsn, items }
    }
}

fn created(about: &[u8], of: &Superblock) -> Option<Item> {
    // These are big-endian, as nothing else here (`struct xfs_icreate_log`).
    let first = of.in_group(u32_be(about, 4)?, u32_be(about, 8)?)?;
    Some(Item::Created(first, u32_be(about, 20)?.min(of.group_blocks)))
}

/// A buffer (`struct xfs_buf_log_format`): a bit for each 128 bytes of which there is something.
fn buffer(about: &[u8], regions: Vec<Vec<u8>>) -> Option<Item> {
    /// It has inodes: what is said of it is the list of those that wait to be freed.
    const INODES: u16 = 1;
    const CANCEL: u16 = 2;
    const PIECE: u64 = 128;
    let (flags, basics, number) = (u16_le(about, 4)?, u16_le(about, 6)?, u64_le(about, 8)?);
    let at = number.checked_mul(BASIC)?;
    if flags & CANCEL != 0 {
        return Some(Item::Cancelled(at, u64::from(basics) * BASIC));
    }
    if flags & INODES != 0 {
        return None;
    }
    let words = index(u32_le(about, 16)?.into());
    let map = about.get(20..20_usize.checked_add(words.checked_mul(4)?)?)?;
    let bit = |bit: usize| u32_le(map, bit / 32 * 4).is_some_and(|word| word >> (bit % 32) & 1 != 0);
    let (mut patches, mut next) = (Vec::new(), 0);
    for region in regions {
        while next < words * 32 && !bit(next) {
            next += 1;
        }
        if next >= words * 32 {
            break;
        }
        let pieces = region.len() / index(PIECE);
        let at = at.checked_add(next as u64 * PIECE)?;
        let mut bytes = region;
        bytes.truncate(pieces * index(PIECE));
        patches.push(Patch { at, bytes });
        next += pieces.max(1);
    }
    Some(Item::Written(patches))
}

/// An inode (`struct xfs_inode_log_format`).
fn inode(about: &[u8], regions: Vec<Vec<u8>>) -> Option<Item> {
    /// Its contents; a list of its extents; the root of a tree of them.
    const LOCAL: u32 = 0x2;
    const EXTENTS: u32 = 0x4;
    const ROOT: u32 = 0x8;
    let (fields, number) = (u32_le(about, 4)?, u64_le(about, 16)?);
    let mut regions = regions.into_iter();
    let core = regions.next()?;
    let fork = if fields & (LOCAL | EXTENTS) != 0 {
        Some(NewFork::Same(regions.next()?))
    } else if fields & ROOT != 0 {
        Some(NewFork::Root(regions.next()?))
    } else {
        None
    };
    Some(Item::Inode(number, core, fork))
}

#[cfg(test)]
mod tests;
