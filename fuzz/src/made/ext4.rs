//! A file system of 64 blocks, with a file of each kind and a journal that has a transaction which is not in place; and steps that change it.

use super::Seed;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 1024;
/// Blocks of the disk.
pub(crate) const BLOCKS: usize = 64;

const TABLE: usize = 5;
const ROOT: usize = 10;
const DIRECTORY: usize = 11;
const NODE: usize = 12;
const INDIRECT: usize = 13;
const JOURNAL: usize = 40;
const JOURNAL_BLOCKS: usize = 16;

/// What every input begins with.
#[must_use]
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = Made(vec![0; BLOCK * BLOCKS]);
    disk.superblock();
    disk.word(2 * BLOCK + 8, TABLE as u32);
    disk.inode(2, 0x41ed, 1024, 3);
    disk.extents(2, 0, &[(0, 1, ROOT)]);
    disk.inode(8, 0x8180, (JOURNAL_BLOCKS * BLOCK) as u32, 1);
    disk.extents(8, 0, &[(0, JOURNAL_BLOCKS, JOURNAL)]);
    disk.inode(12, 0x41ed, 1024, 2);
    disk.extents(12, 0, &[(0, 1, DIRECTORY)]);
    disk.inode(13, 0x81a4, 6 * 1024, 1);
    disk.extents(13, 1, &[(0, 0, NODE)]);
    disk.node(NODE * BLOCK, 0, 84, &[(0, 2, 20), (5, 1, 23)]);
    disk.inode(14, 0x81ed, 13 * 1024, 1);
    for (number, block) in [(0, 24), (1, 25), (12, INDIRECT)] {
        disk.word(at(14) + 0x28 + 4 * number, block as u32);
    }
    disk.word(INDIRECT * BLOCK, 26);
    disk.inode(15, 0xa1ff, 4, 1);
    disk.names(ROOT, &[(2, "."), (2, ".."), (12, "d"), (14, "b.sh"), (15, "l")]);
    disk.names(DIRECTORY, &[(12, "."), (2, ".."), (13, "a.php")]);
    disk.journal();
    disk.0
}

fn at(inode: usize) -> usize {
    TABLE * BLOCK + (inode - 1) * 128
}

struct Made(Vec<u8>);

impl Made {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: usize, word: u32) {
        self.put(at, &word.to_le_bytes());
    }

    fn half(&mut self, at: usize, half: u16) {
        self.put(at, &half.to_le_bytes());
    }

    fn superblock(&mut self) {
        let words = [
            (0, 32),
            (0x4, BLOCKS as u32),
            (0x14, 1),
            (0x20, 8192),
            (0x28, 32),
            (0x4c, 1),
            (0x54, 11),
            // File types, a journal that is needed, extents.
            (0x60, 0x2 | 0x4 | 0x40),
            (0xe0, 8),
        ];
        for (at, word) in words {
            self.word(BLOCK + at, word);
        }
        self.half(BLOCK + 0x38, 0xef53);
        self.half(BLOCK + 0x58, 128);
    }

    fn inode(&mut self, number: usize, mode: u16, size: u32, links: u16) {
        self.half(at(number), mode);
        self.word(at(number) + 4, size);
        self.half(at(number) + 0x1a, links);
        self.word(at(number) + 0x64, number as u32);
    }

    /// The root of a tree in an inode.
    fn extents(&mut self, inode: usize, depth: u16, entries: &[(u32, usize, usize)]) {
        self.word(at(inode) + 0x20, 0x8_0000);
        self.node(at(inode) + 0x28, depth, 4, entries);
    }

    fn node(&mut self, at: usize, depth: u16, most: u16, entries: &[(u32, usize, usize)]) {
        self.half(at, 0xf30a);
        self.half(at + 2, entries.len() as u16);
        self.half(at + 4, most);
        self.half(at + 6, depth);
        for (number, (file_block, len, block)) in entries.iter().enumerate() {
            let at = at + 12 * (number + 1);
            self.word(at, *file_block);
            if depth == 0 {
                self.half(at + 4, *len as u16);
                self.word(at + 8, *block as u32);
            } else {
                self.word(at + 4, *block as u32);
            }
        }
    }

    fn names(&mut self, block: usize, names: &[(u32, &str)]) {
        self.put(block * BLOCK, &directory(names));
    }

    /// Its superblock, and a transaction by which the directory has one more name.
    fn journal(&mut self) {
        self.put(
            JOURNAL * BLOCK,
            &big(&[
                0xc03b_3998,
                4,
                0,
                BLOCK as u32,
                JOURNAL_BLOCKS as u32,
                1,
                1,
                1,
                0,
                0,
                1,
            ]),
        );
        self.put(
            (JOURNAL + 1) * BLOCK,
            &big(&[0xc03b_3998, 1, 1, DIRECTORY as u32, 0xa]),
        );
        self.names(JOURNAL + 2, &[(12, "."), (2, ".."), (13, "a.php"), (14, "c.sh")]);
        self.put((JOURNAL + 3) * BLOCK, &big(&[0xc03b_3998, 2, 1]));
    }
}

fn big(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn directory(names: &[(u32, &str)]) -> Vec<u8> {
    let (mut block, mut left) = (Vec::new(), BLOCK);
    for (number, (inode, name)) in names.iter().enumerate() {
        let least = (8 + name.len()).next_multiple_of(4);
        let len = if number + 1 == names.len() { left } else { least };
        left -= len;
        block.extend(inode.to_le_bytes());
        block.extend((len as u16).to_le_bytes());
        block.extend([name.len() as u8, 1]);
        block.extend(name.as_bytes());
        block.resize(BLOCK - left, 0);
    }
    block
}

pub(crate) fn put(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut step = vec![0];
    step.extend((at as u16).to_le_bytes());
    step.push(bytes.len() as u8);
    step.extend(bytes);
    step
}

pub(crate) const BEGIN: u8 = 3;

pub(crate) fn seeds() -> Vec<Seed> {
    let copy = |from: usize, to: usize| vec![2, from as u8, to as u8];
    let header = |kind: u32| big(&[0xc03b_3998, kind, 2]);
    // A second transaction: the inode table's second block, with another inode in it.
    let transaction = [
        vec![BEGIN],
        copy(TABLE + 1, JOURNAL + 5),
        put((JOURNAL + 5) * BLOCK + 4 * 128, &[0xa4, 0x81]),
        put(
            (JOURNAL + 4) * BLOCK,
            &[header(1), big(&[TABLE as u32 + 1, 0xa])].concat(),
        ),
        put((JOURNAL + 6) * BLOCK, &header(2)),
        copy(JOURNAL + 5, TABLE + 1),
    ];
    let revoked = [
        vec![BEGIN],
        put(
            (JOURNAL + 4) * BLOCK,
            &[header(5), big(&[20, DIRECTORY as u32])].concat(),
        ),
        put((JOURNAL + 5) * BLOCK, &header(2)),
    ];
    let in_place = [
        vec![BEGIN],
        put(at(13) + 4, &[0, 4]),
        put(NODE * BLOCK + 2, &[1]),
        put(DIRECTORY * BLOCK + 24 + 8, b"z"),
    ];
    let seed = |target, name: &str, steps: &[Vec<u8>]| (target, name.to_owned(), steps.concat());
    vec![
        seed("ext4", "whole", &[vec![BEGIN]]),
        seed(
            "ext4",
            "wide",
            &[put(BLOCK + 0x60, &[0xc2]), put(BLOCK + 0xfe, &[64])],
        ),
        seed("ext4", "inline", &[put(at(13) + 0x23, &[0x10])]),
        seed("ext4", "indirect", &[put(at(13) + 0x20, &[0; 4])]),
        seed("ext4-current", "transaction", &transaction),
        seed("ext4-current", "revoked", &revoked),
        seed("ext4-current", "in-place", &in_place),
        ("partitions", "pc".to_owned(), pc()),
        ("partitions", "guid".to_owned(), guid()),
    ]
}

/// A PC's table with a chain of two.
fn pc() -> Vec<u8> {
    let entry = |kind: u8, first: u32, sectors: u32| {
        let words = [first.to_le_bytes(), sectors.to_le_bytes()].concat();
        [&[0, 0, 0, 0, kind, 0, 0, 0][..], &words].concat()
    };
    let table = |sector: usize, entries: &[Vec<u8>]| {
        let at = sector * 512;
        [put(at + 446, &entries.concat()), put(at + 510, &[0x55, 0xaa])].concat()
    };
    [
        vec![0],
        table(0, &[entry(0x83, 1, 10), entry(0x05, 20, 60)]),
        table(20, &[entry(0x83, 1, 5), entry(0x05, 10, 10)]),
        table(30, &[entry(0x82, 1, 5)]),
    ]
    .concat()
}

/// A GUID table with two partitions; whoever reads this makes its checksums.
fn guid() -> Vec<u8> {
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, word) in [
        (8, 0x1_0000_u32),
        (12, 92),
        (0x18, 1),
        (0x48, 2),
        (0x50, 2),
        (0x54, 128),
    ] {
        header[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let entry = |first: u64, last: u64| {
        let mut entry = vec![0x11; 32];
        entry.extend([first.to_le_bytes(), last.to_le_bytes()].concat());
        entry.resize(128, 0);
        entry
    };
    [
        vec![1],
        put(512, &header),
        put(1024, &entry(10, 19)),
        put(1024 + 128, &entry(20, 100)),
    ]
    .concat()
}
