//! A file system that is written to by way of its journal, which `debugfs` writes, and followed meanwhile.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "test data is small, and a test may fail"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nephoscope_disk::layout::Blocks;
use nephoscope_disk::layout::ext4::{Current, Files, InodeKind, Missed};

const BLOCK: usize = 4096;

struct Image(File, u64);

impl Image {
    fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self(file, len)
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.0.read_exact_at(&mut bytes, number * BLOCK as u64).unwrap();
        bytes
    }
}

impl Blocks for Image {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }

    fn len(&self) -> u64 {
        self.1
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

fn debugfs(image: &Path, commands: &[String]) {
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), commands.join("\n") + "\n").unwrap();
    run(
        "/usr/sbin/debugfs",
        &[
            "-w",
            "-f",
            script.path().to_str().unwrap(),
            image.to_str().unwrap(),
        ],
    );
}

/// Blocks that are others in the second image.
fn difference(before: &Image, after: &Image) -> Vec<u64> {
    (0..before.1 / BLOCK as u64)
        .filter(|block| before.block(*block) != after.block(*block))
        .collect()
}

type Told = BTreeMap<u32, (bool, u32, u64, Option<Vec<u8>>, Vec<(u64, u32)>)>;

/// All that is said of files.
fn told(files: &Files, path: impl Fn(u32) -> Option<Vec<u8>>) -> Told {
    let mut blocks: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
    for block in 0..files.superblock().blocks {
        if let Some((inode, file_block)) = files.owner(block) {
            blocks.entry(inode).or_default().push((block, file_block));
        }
    }
    files
        .nodes()
        .filter(|(inode, _)| *inode != files.superblock().journal_inode)
        .map(|(inode, node)| {
            let is_file = node.kind == InodeKind::File;
            let blocks = blocks.remove(&inode).unwrap_or_default();
            (inode, (is_file, node.generation, node.bytes, path(inode), blocks))
        })
        .collect()
}

fn of_image(image: &Image) -> Told {
    let files = Files::read(image).unwrap();
    told(&files, |inode| files.path(inode, image).unwrap())
}

fn of_current(current: &Current, image: &Image) -> Told {
    told(current.files(), |inode| current.path(inode, image).unwrap())
}

/// What is done to the file system, one transaction after the other.
fn changes(folder: &Path) -> Vec<Vec<String>> {
    let file = |name: &str, bytes: usize| {
        let path = folder.join(name);
        fs::write(&path, vec![name.as_bytes()[0]; bytes]).unwrap();
        path.display().to_string()
    };
    let (small, large) = (file("s", 5000), file("l", 9_000_000));
    vec![
        vec![format!("write {small} /new.php")],
        vec!["ln /new.php /d1/other.php".into(), "unlink /new.php".into()],
        vec!["rm /d2/f3".into(), format!("write {large} /large.jar")],
        vec!["mkdir /d9".into(), format!("write {small} /d9/deep.py")],
        vec!["rm /large.jar".into(), format!("write {small} /again.php")],
    ]
}

fn follows(options: &[&str], journal: &str) {
    if !Path::new("/usr/sbin/debugfs").exists() {
        println!("skipped: e2fsprogs is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let contents = at("contents");
    for directory in 0..4 {
        fs::create_dir_all(contents.join(format!("d{directory}"))).unwrap();
        for file in 0..9 {
            fs::write(
                contents.join(format!("d{directory}/f{file}")),
                vec![7; 3000 * file],
            )
            .unwrap();
        }
    }
    let first = at("0");
    let fixed = ["-q", "-b", "4096", "-d", contents.to_str().unwrap()];
    run(
        "/usr/sbin/mkfs.ext4",
        &[&fixed, options, &[first.to_str().unwrap(), "96m"]].concat(),
    );

    // Each as it is in the end, without a journal.
    let mut states: Vec<PathBuf> = vec![first.clone()];
    let (mut data, mut transactions) = (Vec::new(), Vec::new());
    for (number, commands) in changes(folder.path()).iter().enumerate() {
        let (before, after) = (states[number].clone(), at(&format!("{}", number + 1)));
        fs::copy(&before, &after).unwrap();
        debugfs(&after, commands);
        let (before, image) = (Image::open(&before), Image::open(&after));
        let files = Files::read(&image).unwrap();
        let is_data = |block: &u64| {
            let owner = files.owner(*block).and_then(|(inode, _)| files.node(inode));
            owner.is_some_and(|node| node.kind == InodeKind::File)
        };
        let (own, metadata): (Vec<u64>, Vec<u64>) =
            difference(&before, &image).into_iter().partition(is_data);
        assert!(!metadata.is_empty());
        data.extend(own.iter().map(|block| (number, *block, image.block(*block))));
        let bytes: Vec<u8> = metadata.iter().flat_map(|block| image.block(*block)).collect();
        let blocks = at(&format!("{number}.blocks"));
        fs::write(&blocks, bytes).unwrap();
        let list: Vec<String> = metadata.iter().map(u64::to_string).collect();
        transactions.push(format!("jw -b {} {}", list.join(","), blocks.display()));
        states.push(after);
    }

    // By way of the journal.
    let live = at("live");
    fs::copy(&first, &live).unwrap();
    let journaled = at("journaled");
    fs::copy(&first, &journaled).unwrap();
    let session = [vec![format!("jo {journal}")], transactions, vec!["jc".to_owned()]].concat();
    debugfs(&journaled, &session);
    let (live, journaled) = (Image::open(&live), Image::open(&journaled));
    let mut current = Current::read(&live).unwrap();
    assert_eq!(of_current(&current, &live), of_image(&Image::open(&first)));
    let mut seen = 0;
    let write = |current: &mut Current, block: u64, bytes: &[u8]| {
        live.0.write_all_at(bytes, block * BLOCK as u64).unwrap();
        current.written(block, bytes, &live)
    };
    // Data is written before the transaction that says whose it is.
    let write_data = |current: &mut Current, of: usize| {
        for (_, block, bytes) in data.iter().filter(|(transaction, ..)| *transaction == of) {
            assert!(write(current, *block, bytes).is_empty(), "data is nobody's news");
        }
    };
    write_data(&mut current, 0);
    for block in difference(&Image::open(&first), &journaled) {
        if write(&mut current, block, &journaled.block(block)).is_empty() {
            continue;
        }
        seen += 1;
        let expected = of_image(&Image::open(&states[seen]));
        assert!(
            of_current(&current, &live) == expected,
            "after transaction {seen}"
        );
        write_data(&mut current, seen);
    }
    assert_eq!((seen, current.missed()), (states.len() - 1, Missed::default()));

    // Who comes now finds the same, and nothing changes when all gets to its place.
    let last = Image::open(states.last().unwrap());
    let expected = of_image(&last);
    assert!(
        of_current(&Current::read(&live).unwrap(), &live) == expected,
        "read anew"
    );
    for block in difference(&live, &last) {
        let is_journal = current
            .files()
            .owner(block)
            .is_some_and(|(inode, _)| inode == current.files().superblock().journal_inode);
        if !is_journal {
            write(&mut current, block, &last.block(block));
        }
    }
    assert!(of_current(&current, &live) == expected, "in place");
}

#[test]
fn a_journal_as_debian_makes_it() {
    follows(&[], "-c -v 3");
}

#[test]
fn a_journal_without_checksums_and_with_numbers_of_32_bits() {
    follows(&["-O", "^64bit,^metadata_csum"], "");
}

#[test]
fn without_a_journal_what_is_written_is_there_at_once() {
    if !Path::new("/usr/sbin/debugfs").exists() {
        println!("skipped: e2fsprogs is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (live, after) = (folder.path().join("live"), folder.path().join("after"));
    let path = live.to_str().unwrap();
    run(
        "/usr/sbin/mkfs.ext4",
        &["-q", "-b", "4096", "-O", "^has_journal", path, "64m"],
    );
    fs::copy(&live, &after).unwrap();
    let script = folder.path().join("s");
    fs::write(&script, vec![b's'; 9000]).unwrap();
    debugfs(
        &after,
        &[
            "mkdir /d".to_owned(),
            format!("write {} /d/s.sh", script.display()),
        ],
    );
    let (live, after) = (Image::open(&live), Image::open(&after));
    let mut current = Current::read(&live).unwrap();
    // An inode may be there before the directory that says what it is called, and after it.
    for _ in 0..2 {
        for block in difference(&live, &after) {
            let bytes = after.block(block);
            live.0.write_all_at(&bytes, block * BLOCK as u64).unwrap();
            current.written(block, &bytes, &live);
        }
        for block in 0..live.1 / BLOCK as u64 {
            current.written(block, &live.block(block), &live);
        }
    }
    assert!(of_current(&current, &live) == of_image(&after));
}
