//! What is kept of hostile file systems is bounded, and shared blocks are nobody's.

use std::io;

use super::super::super::paths::MAX_PATH;
use super::super::superblock::tests::bytes;
use super::*;

/// All zeros.
struct Zeros;

impl Blocks for Zeros {
    fn read(&self, _: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0);
        Ok(())
    }

    fn len(&self) -> u64 {
        1 << 30
    }
}

fn nothing() -> Files {
    Files::none(Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap())
}

fn add(files: &mut Files, inode: u64, parent: u64, name: &[u8], runs: &[Run]) {
    let slot = files.slot();
    files.slots[slot as usize] = Some(Node {
        inode,
        kind: InodeKind::Directory,
        generation: 0,
        bytes: 4096,
        parent,
        name: name.into(),
        is_short: false,
        runs: runs.into(),
        nodes: Box::default(),
        digest: 0,
    });
    files.by_inode.insert(inode, slot);
}

#[test]
fn max_path_bounds_directories_in_directories_and_a_circle_ends() {
    let mut files = nothing();
    let root = files.superblock.root;
    for number in 0..20 {
        let parent = if number == 0 { root } else { 999 + number };
        add(&mut files, 1000 + number, parent, &[b'x'; 255], &[]);
    }
    let path = |files: &Files, inode| files.path(inode, &Zeros).unwrap().map(|path| path.len());
    assert_eq!(path(&files, 1000), Some(256));
    assert_eq!(path(&files, 1015), Some(16 * 256));
    assert!(16 * 256 <= MAX_PATH && path(&files, 1017).is_none());
    files.forget(1000);
    add(&mut files, 1000, 1019, b"x", &[]);
    assert_eq!(path(&files, 1010), None);
}

/// An inode of a file.
fn inode(number: u64) -> Vec<u8> {
    let mut inode = vec![0; 512];
    inode[..2].copy_from_slice(b"IN");
    (inode[2], inode[4], inode[5]) = (0x81, 3, 2);
    inode[152..160].copy_from_slice(&number.to_be_bytes());
    inode
}

#[test]
fn max_inodes_bounds_what_is_kept_and_the_rest_is_counted() {
    let mut files = nothing();
    assert_eq!(files.room, MAX_INODES);
    files.room = 2;
    for number in 200..205 {
        assert_eq!(files.take(number, &inode(number), &Zeros), number < 202);
    }
    assert_eq!((files.nodes().count(), files.skipped.left_out), (2, 3));
}

#[test]
fn max_directory_blocks_bounds_what_is_read_of_one_directory() {
    let mut files = nothing();
    let run = Run {
        block: 1,
        file_block: 0,
        len: u32::try_from(MAX_DIRECTORY_BLOCKS).unwrap() + 9,
    };
    add(&mut files, 1000, 0, b"x", &[run]);
    let mut reads = 0;
    let counted = files.each_directory_block(1000, &Zeros, |_| reads += 1);
    assert!(counted.is_ok());
    assert_eq!(reads, MAX_DIRECTORY_BLOCKS);
}

#[test]
fn max_chunks_bounds_what_is_read_of_one_group() {
    let chunk = |number: u32| Chunk {
        first: number,
        used: 1,
    };
    let mut kept = Kept {
        chunks: vec![chunk(0); MAX_CHUNKS - 1],
        beyond: 0,
    };
    kept.add(chunk(1));
    kept.add(chunk(2));
    assert_eq!((kept.chunks.len(), kept.beyond), (MAX_CHUNKS, 1));
}

#[test]
fn blocks_that_two_files_have_are_nobodys() {
    let mut files = nothing();
    let run = |block, len| Run {
        block,
        file_block: 0,
        len,
    };
    for (slot, first, len) in [(0, 10, 10), (1, 15, 10)] {
        add(&mut files, 1000 + u64::from(slot), 0, b"", &[]);
        files.own(slot, run(first, len));
    }
    let owner = |block| files.owner(block).map(|(inode, _)| inode);
    assert_eq!([14, 15, 19, 20].map(owner), [Some(1000), None, None, Some(1001)]);
    assert_eq!(files.owner(20), Some((1001, 5)));
    assert_eq!(files.skipped.shared, 5);
}
