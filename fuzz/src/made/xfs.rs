//! XFS of 64 blocks in one group, with a directory in its inode and one in a block, files with a list of extents and with a tree of them,
//! and a log; and steps that change it.

use super::Seed;
use super::ext4::{BEGIN, BLOCK, BLOCKS, put};

const TREE: usize = 3;
const DIRECTORY: usize = 4;
const LEAF: usize = 5;
/// Blocks of inodes, two in each.
const INODES: usize = 8;
const LOG: usize = 44;
const LOG_BLOCKS: usize = 12;
const INODE: usize = 512;
const ROOT: u64 = 16;

/// What every input begins with.
#[must_use]
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = Made(vec![0; BLOCK * BLOCKS]);
    disk.superblock();
    disk.tree();
    // The root has its names in itself: "d" and "a.php".
    disk.inode(ROOT, 0x41ed, 1, 0);
    let names = [
        &[2, 0][..],
        &16_u32.to_be_bytes(),
        &[1, 0, 0x60, b'd', 2],
        &17_u32.to_be_bytes(),
        &[5, 0, 0x70],
        b"a.php",
        &[1],
        &18_u32.to_be_bytes(),
    ]
    .concat();
    disk.fork(ROOT, &names, names.len() as u64);
    disk.inode(17, 0x41ed, 2, 1);
    disk.fork(17, &extent(0, DIRECTORY as u64, 1), BLOCK as u64);
    disk.names();
    disk.inode(18, 0x81a4, 2, 2);
    disk.fork(
        18,
        &[extent(0, 56, 2), extent(5, 60, 1)].concat(),
        6 * BLOCK as u64,
    );
    // A tree of one level: its root leads to a block with one extent.
    disk.inode(19, 0x81ed, 3, 1);
    let mut root = vec![0; 4 + 21 * 16];
    (root[1], root[3]) = (1, 1);
    root[4 + 21 * 8 + 7] = LEAF as u8;
    disk.fork(19, &root[..INODE - 176], 2 * BLOCK as u64);
    let at = LEAF * BLOCK;
    disk.put(at, b"BMA3");
    disk.half(at + 6, 1);
    disk.long(at + 56, 19);
    disk.put(at + 72, &extent(0, 58, 2));
    disk.log();
    disk.0
}

fn at(inode: u64) -> usize {
    INODES * BLOCK + (inode - ROOT) as usize * INODE
}

/// Of a list or a tree.
fn extent(file_block: u64, block: u64, len: u64) -> Vec<u8> {
    [
        (file_block << 9 | block >> 43).to_be_bytes(),
        (block << 21 | len).to_be_bytes(),
    ]
    .concat()
}

struct Made(Vec<u8>);

impl Made {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: usize, word: u32) {
        self.put(at, &word.to_be_bytes());
    }

    fn half(&mut self, at: usize, half: u16) {
        self.put(at, &half.to_be_bytes());
    }

    fn long(&mut self, at: usize, long: u64) {
        self.put(at, &long.to_be_bytes());
    }

    fn superblock(&mut self) {
        self.put(0, b"XFSB");
        for (at, word) in [
            (4, BLOCK as u32),
            (84, BLOCKS as u32),
            (88, 1),
            (96, LOG_BLOCKS as u32),
            (216, 1),
        ] {
            self.word(at, word);
        }
        for (at, long) in [(8, BLOCKS as u64), (48, LOG as u64), (56, ROOT)] {
            self.long(at, long);
        }
        for (at, half) in [(100, 0xb4a5), (102, 512), (104, INODE as u16)] {
            self.half(at, half);
        }
        for (at, log) in [(120, 10), (122, 9), (123, 1), (124, 6)] {
            self.put(at, &[log]);
        }
    }

    /// The group's header, and a tree with one chunk.
    fn tree(&mut self) {
        let header = 2 * 512;
        self.put(header, b"XAGI");
        self.word(header + 20, TREE as u32);
        self.word(header + 24, 1);
        let tree = TREE * BLOCK;
        self.put(tree, b"IAB3");
        self.half(tree + 6, 1);
        self.word(tree + 56, ROOT as u32);
        self.long(tree + 64, !0xf);
    }

    fn inode(&mut self, number: u64, mode: u16, format: u8, extents: u32) {
        let at = at(number);
        self.put(at, b"IN");
        self.half(at + 2, mode);
        self.put(at + 4, &[3, format]);
        self.word(at + 16, 1);
        self.word(at + 76, extents);
        self.word(at + 92, number as u32);
        self.long(at + 152, number);
    }

    fn fork(&mut self, number: u64, fork: &[u8], size: u64) {
        self.long(at(number) + 56, size);
        self.put(at(number) + 176, fork);
    }

    /// The directory that has a block: "b.sh", and room.
    fn names(&mut self) {
        let at = DIRECTORY * BLOCK;
        self.put(at, b"XDB3");
        self.long(at + 40, 17);
        let entry = |inode: u64, name: &[u8]| {
            let mut entry = [&inode.to_be_bytes()[..], &[name.len() as u8], name, &[1, 0, 0]].concat();
            entry.resize(entry.len().next_multiple_of(8), 0);
            entry
        };
        let entries = [entry(17, b"."), entry(ROOT, b".."), entry(19, b"b.sh")].concat();
        let free = BLOCK - 64 - entries.len() - 8;
        self.put(at + 64, &entries);
        self.half(at + 64 + entries.len(), 0xffff);
        self.half(at + 64 + entries.len() + 2, free as u16);
    }

    /// With one record that says that all is in place.
    fn log(&mut self) {
        let at = LOG * BLOCK;
        self.put(at, &record(0, 1, &operation(9, 0x20, &[0; 8])));
    }
}

fn operation(id: u32, flags: u8, region: &[u8]) -> Vec<u8> {
    let len = region.len() as u32;
    [
        &id.to_be_bytes()[..],
        &len.to_be_bytes(),
        &[0x69, flags, 0, 0],
        region,
    ]
    .concat()
}

/// A record that begins in this basic block of the log.
fn record(basic: u32, turn: u32, operations: &[u8]) -> Vec<u8> {
    let mut data = operations.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    let mut header = vec![0; 512];
    for (at, word) in [
        (0, 0xfeed_babe),
        (4, turn),
        (8, 2),
        (12, operations.len() as u32),
        (16, turn),
        (20, basic),
        (40, 1),
        (300, 1),
        (320, 32 << 10),
    ] {
        header[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
    }
    for (number, block) in data.chunks_exact_mut(512).enumerate() {
        header[44 + 4 * number..][..4].copy_from_slice(&block[..4]);
        block[..4].copy_from_slice(&turn.to_be_bytes());
    }
    [header, data].concat()
}

/// An inode as a transaction has it: a file of one extent.
fn core() -> Vec<u8> {
    let mut core = vec![0; 176];
    core[..6].copy_from_slice(&[0x4e, 0x49, 0xa4, 0x81, 3, 2]);
    (core[16], core[56], core[76], core[92], core[152]) = (1, 9, 1, 77, 20);
    core
}

pub(crate) fn seeds() -> Vec<Seed> {
    // What was put in the log in pieces is a record when the last is there: that is its first.
    let written = |record: &[u8]| {
        let begin = LOG * BLOCK + 1024;
        let mut steps = vec![vec![BEGIN]];
        for (number, piece) in record.chunks(240).enumerate().skip(1) {
            steps.push(put(begin + 240 * number, piece));
        }
        steps.push(put(begin, &record[..240.min(record.len())]));
        steps.concat()
    };
    let transaction = |about: &[u8], regions: &[Vec<u8>]| {
        let mut operations = [
            operation(5, 1, &[]),
            operation(5, 0, &[0; 16]),
            operation(5, 0, about),
        ]
        .concat();
        for region in regions {
            operations.extend(operation(5, 0, region));
        }
        operations.extend(operation(5, 2, &[]));
        written(&record(2, 1, &operations))
    };
    let mut inode = vec![0; 56];
    (inode[0], inode[1], inode[2], inode[4], inode[16]) = (0x3b, 0x12, 3, 5, 20);
    let mut buffer = vec![0; 24];
    (buffer[0], buffer[1], buffer[2], buffer[6]) = (0x3c, 0x12, 2, 2);
    (buffer[8], buffer[16], buffer[20]) = ((DIRECTORY * BLOCK / 512) as u8, 1, 1);
    let created = [
        &[0x3f, 0x12, 1, 0][..],
        &[0, 8, 64, 512, 32, 0].map(u32::to_be_bytes).concat(),
    ]
    .concat();
    let seed = |target, name: &str, bytes: Vec<u8>| (target, name.to_owned(), bytes);
    vec![
        seed("xfs", "whole", vec![BEGIN]),
        seed("xfs", "old", put(101, &[0xa4])),
        seed("xfs", "greater-directories", put(192, &[1])),
        seed(
            "xfs-current",
            "inode",
            transaction(&inode, &[core(), extent(0, 62, 1)]),
        ),
        seed("xfs-current", "buffer", transaction(&buffer, &[vec![1; 128]])),
        seed("xfs-current", "created", transaction(&created, &[])),
        seed(
            "xfs-current",
            "in-place",
            [
                vec![BEGIN],
                put(at(18) + 79, &[1]),
                put(DIRECTORY * BLOCK + 64 + 40, b"z"),
            ]
            .concat(),
        ),
    ]
}
