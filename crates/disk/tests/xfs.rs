//! File systems that xfsprogs makes, read by us and by its `xfs_db`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "test data is small, and a test may fail"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nephoscope_disk::layout::Blocks;
use nephoscope_disk::layout::xfs::{Files, InodeKind, Skipped};

struct Image(File, u64);

impl Blocks for Image {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }

    fn len(&self) -> u64 {
        self.1
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A file system with files of all sizes, a directory of each form, and enough inodes for several chunks, as `mkfs.xfs` reads it.
fn prototype(folder: &Path) -> String {
    let mut text = "/none\n0 0\nd--755 0 0\n".to_owned();
    for (number, size) in [0, 1, 4096, 5000, 70_000, 1_000_000, 20_000_000]
        .into_iter()
        .enumerate()
    {
        let file = folder.join(format!("f{number}"));
        fs::write(&file, vec![number as u8 + 1; size]).unwrap();
        writeln!(text, "f{number} ---644 0 0 {}", file.display()).unwrap();
    }
    let small = folder.join("f1");
    for (directory, files) in [("short", 5), ("block", 60), ("leaf", 400), ("node", 3000)] {
        writeln!(text, "{directory} d--755 0 0").unwrap();
        for file in 0..files {
            writeln!(
                text,
                "a-name-that-is-longer-{file}.php ---644 0 0 {}",
                small.display()
            )
            .unwrap();
        }
        writeln!(
            text,
            "deeper d--755 0 0\nx.py ---644 0 0 {}\n$\n$",
            small.display()
        )
        .unwrap();
    }
    writeln!(text, "link l--777 0 0 f1").unwrap();
    text + "$\n"
}

/// Paths by `xfs_db`, and the inodes.
fn names(image: &str) -> BTreeMap<u64, String> {
    let said = run(
        "/usr/sbin/xfs_db",
        &["-r", "-c", "blockget -n", "-c", "ncheck", image],
    );
    said.lines()
        .filter_map(|line| {
            let (inode, path) = line.trim().split_once(' ')?;
            let path = path.trim().trim_end_matches("/.");
            Some((inode.parse().ok()?, format!("/{path}")))
        })
        .collect()
}

/// What `xfs_db` says of an inode's blocks: file block, packed block, how many.
fn extents(image: &str, inodes: &[u64]) -> BTreeMap<u64, Vec<(u64, u64, u64)>> {
    let mut found = BTreeMap::new();
    for some in inodes.chunks(500) {
        let mut arguments = vec!["-r".to_owned()];
        for inode in some {
            arguments.extend([
                "-c".to_owned(),
                format!("inode {inode}"),
                "-c".to_owned(),
                "bmap -d".to_owned(),
            ]);
            arguments.extend(["-c".to_owned(), format!("echo end {inode}")]);
        }
        arguments.push(image.to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut now = Vec::new();
        for line in run("/usr/sbin/xfs_db", &arguments).lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields.as_slice() {
                ["end", inode] => {
                    found.insert(inode.parse().unwrap(), std::mem::take(&mut now));
                }
                [
                    "data",
                    "offset",
                    offset,
                    "startblock",
                    block,
                    _,
                    "count",
                    count,
                    ..,
                ] => {
                    now.push((
                        offset.parse().unwrap(),
                        block.parse().unwrap(),
                        count.parse().unwrap(),
                    ));
                }
                _ => {}
            }
        }
    }
    found
}

fn agrees(options: &[&str]) {
    if !Path::new("/usr/sbin/xfs_db").exists() {
        println!("skipped: xfsprogs is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, proto) = (folder.path().join("image"), folder.path().join("proto"));
    File::create(&image).unwrap().set_len(320 << 20).unwrap();
    fs::write(&proto, prototype(folder.path())).unwrap();
    let path = image.to_str().unwrap();
    run(
        "/usr/sbin/mkfs.xfs",
        &[options, &["-q", "-f", "-p", proto.to_str().unwrap(), path]].concat(),
    );
    let file = File::open(&image).unwrap();
    let disk = Image(file, 320 << 20);
    let files = Files::read(&disk).unwrap();
    assert_eq!(files.skipped(), Skipped::default());

    let expected = names(path);
    assert!(expected.len() > 3400, "{}", expected.len());
    for (inode, name) in &expected {
        let found = files.path(*inode, &disk).unwrap();
        assert_eq!(found.as_deref(), Some(name.as_bytes()), "{inode}");
    }
    let of = files.superblock();
    let inodes: Vec<u64> = expected.keys().copied().collect();
    let by_xfs_db = extents(path, &inodes);
    let mut blocks = 0;
    for (inode, extents) in by_xfs_db {
        for (offset, packed, count) in extents {
            let first = of.block(packed).unwrap();
            for number in 0..count {
                // Directories have blocks with hashes further out than any file of ours is long.
                let file_block = (offset + number) as u32;
                assert_eq!(files.owner(first + number), Some((inode, file_block)), "{inode}");
                blocks += 1;
            }
        }
    }
    let owned = (0..of.blocks)
        .filter(|block| files.owner(*block).is_some())
        .count();
    // Those of the realtime device's two inodes, which have no name, are none.
    assert_eq!(owned, blocks, "no block more than `xfs_db` names");
    let kinds: BTreeSet<_> = files.nodes().map(|node| node.kind == InodeKind::File).collect();
    assert_eq!(kinds.len(), 2);
}

#[test]
fn every_block_and_every_name_is_what_xfs_db_says() {
    agrees(&[]);
}

#[test]
fn so_it_is_in_version_4_with_blocks_of_1_kib() {
    agrees(&["-m", "crc=0", "-b", "size=1024", "-n", "ftype=0"]);
}

#[test]
fn so_it_is_with_directories_in_greater_blocks() {
    agrees(&["-n", "size=16384", "-i", "size=1024"]);
}
