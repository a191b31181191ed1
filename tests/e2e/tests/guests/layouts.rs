//! File systems that a guest's kernel writes to, followed by what gets to the disk alone.
//!
//! QEMU writes down all writes in their order (`blklogwrites`); they are done again here, one after the other, and each time that the guest
//! said what it has, that has to be known.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nephoscope_disk::layout::{Blocks, FileSystem};
use nephoscope_e2e::{Guest, Image, Options};
use serde_json::Value;

/// Of the disk; the file system has less, and behind it are marks.
const DISK: u64 = 512 << 20;
const FILE_SYSTEM: u64 = 500 << 20;
const MARKS: u64 = 511 << 20;
const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// Extents that were not written yet, and those that many files have (`linux/fiemap.h`).
const UNWRITTEN: u64 = 0x800;
const SHARED: u64 = 0x2000;

/// What the guest does; after each of them it says what there is.
const ROUNDS: [(&str, &str); 6] = [
    (
        "files and folders",
        "mkdir -p a/b c; for i in $(seq 50); do echo \"<?php echo $i;\" >a/b/f$i.php; done; head -c 3000000 /dev/urandom >c/large",
    ),
    (
        "other names, other contents, no contents",
        "mv a/b c/b; mv c/b/f1.php c/b/f2.php; for i in $(seq 10 20); do echo more >>c/b/f$i.php; done; rm c/b/f3?.php; \
         for i in $(seq 300); do echo $i >a/g$i.py; done; ln c/b/f5.php a/five.php; rm c/b/f5.php",
    ),
    (
        "thousands of files",
        "mkdir many; for i in $(seq 3000); do echo $i >many/a-name-that-is-longer-$i.php; done",
    ),
    (
        "files in pieces",
        "python3 -c \"
import os
for name in ['one', 'two']:
    with open(name + '.py', 'wb') as file:
        for piece in range(600):
            file.seek(piece * 12288)
            file.write(bytes([piece % 251]) * 4096)
            if piece % 50 == 0:
                file.flush()
                os.fsync(file.fileno())
\"",
    ),
    (
        "nothing left of thousands, and others in their place",
        "rm -r many; sync; head -c 30000000 /dev/urandom >c/large; mkdir many; for i in $(seq 200); do echo new $i >many/n$i.sh; done; \
         truncate -s 100000 one.py; fallocate -l 1M c/reserved",
    ),
    (
        "copies that share their blocks, where there are such",
        "cp --reflink=auto two.py three.py; mv c d; mkdir c; mv d/b c/; echo last >c/b/last.php",
    ),
];

struct Disk(File, u64);

impl Blocks for Disk {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }

    fn len(&self) -> u64 {
        self.1
    }
}

/// What was written: where in bytes, and what.
fn writes(log: &File, mut each: impl FnMut(u64, &[u8])) {
    let number = |at: u64| {
        let mut bytes = [0; 8];
        log.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    };
    // What is discarded has no bytes there (`block/blklogwrites.c`).
    const DISCARD: u64 = 4;
    // Behind a sector that says how many there were when that was written last.
    let (mut at, end) = (SECTOR, log.metadata().unwrap().len());
    while at < end {
        let (sector, sectors, flags) = (number(at), number(at + 8), number(at + 16));
        at += SECTOR;
        let mut bytes = vec![0; usize::try_from(sectors * SECTOR).unwrap()];
        if flags & DISCARD == 0 {
            log.read_exact_at(&mut bytes, at).unwrap();
            at += sectors * SECTOR;
        }
        each(sector * SECTOR, &bytes);
    }
}

type Owned = BTreeMap<u64, (u64, u64)>;

/// What a file holds, if that follows from its name ([`ROUNDS`]).
fn holds(path: &str) -> Option<Vec<u8>> {
    let between = |begin: &str, end: &str| path.strip_prefix(begin)?.strip_suffix(end);
    if let Some(number) = between("/a/g", ".py") {
        return Some(format!("{number}\n").into_bytes());
    }
    if let Some(number) = between("/many/n", ".sh") {
        return Some(format!("new {number}\n").into_bytes());
    }
    // In pieces, with holes between them.
    ["/two.py", "/three.py"].contains(&path).then(|| {
        let mut bytes = vec![0; 599 * 12288 + 4096];
        for piece in 0..600 {
            bytes[piece * 12288..][..4096].fill(u8::try_from(piece % 251).unwrap());
        }
        bytes
    })
}

/// What is known is what the guest said: every name, and every block of every file.
fn compare(what: &str, said: &str, files: &FileSystem, disk: &Disk) {
    let (mut expected, mut names) = (Owned::new(), 0);
    for line in said.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let (inode, path) = (value[0].as_u64().unwrap(), value[1].as_str().unwrap());
        let path = if path == "/." { "/" } else { path };
        let found = files
            .path(inode, disk)
            .unwrap()
            .map(|path| String::from_utf8(path).unwrap());
        assert_eq!(found.as_deref(), Some(path), "{what}: inode {inode}");
        names += 1;
        // Folders are read for each; some are enough.
        if names % 10 == 0 || value[2] == false {
            let parts = path.split('/').filter(|part| !part.is_empty());
            let parts: Vec<&[u8]> = parts.map(str::as_bytes).collect();
            assert_eq!(files.find(&parts, disk).unwrap(), Some(inode), "{what}: {path}");
        }
        if let Some(held) = holds(path) {
            let contents = files.contents(inode, FILE_SYSTEM, disk).unwrap().unwrap();
            assert!(contents == held, "{what}: {path} has {} bytes", contents.len());
        }
        if value[2] == true {
            let about = files.file(inode).unwrap();
            assert_eq!(about.bytes, value[3].as_u64().unwrap(), "{what}: {path}");
        }
        for extent in value[4].as_array().unwrap() {
            let [logical, physical, len, flags] = [0, 1, 2, 3].map(|at| extent[at].as_u64().unwrap());
            if flags & SHARED != 0 {
                continue;
            }
            assert_eq!(flags & !(1 | UNWRITTEN), 0, "{what}: {path}: {extent}");
            for block in 0..len / BLOCK {
                expected.insert(physical / BLOCK + block, (inode, logical / BLOCK + block));
            }
        }
    }
    let mut found = Owned::new();
    for block in 0..FILE_SYSTEM / BLOCK {
        if let Some((inode, file_block)) = files.owner(block)
            && files.file(inode).is_some()
            && !files.is_own(inode)
        {
            found.insert(block, (inode, u64::from(file_block)));
        }
    }
    let wrong: Vec<_> = expected
        .iter()
        .filter(|(block, owner)| found.get(block) != Some(owner))
        .map(|(block, owner)| (*block, *owner, found.get(block).copied()))
        .collect();
    assert!(
        wrong.is_empty(),
        "{what}: {} blocks, the first: {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    let more: Vec<_> = found
        .iter()
        .filter(|(block, _)| !expected.contains_key(block))
        .collect();
    assert!(
        more.is_empty(),
        "{what}: {} blocks more: {:?}",
        more.len(),
        &more[..more.len().min(5)]
    );
    println!("{what}: {names} names, {} blocks", expected.len());
}

/// A disk with a file system, and what QEMU writes down of it.
struct Logged {
    kind: &'static str,
    disk: PathBuf,
    /// As it was made.
    copy: PathBuf,
    log: PathBuf,
}

impl Logged {
    fn make(kind: &'static str, folder: &Path, program: &str, options: &[&str], size: &[&str]) -> Self {
        let at = |name: &str| folder.join(format!("{kind}-{name}"));
        let (disk, log, copy) = (at("disk"), at("log"), at("copy"));
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        File::create(&log).unwrap();
        let made = Command::new(program)
            .args(options)
            .arg(&disk)
            .args(size)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([&disk, &copy])
            .status()
            .unwrap();
        assert!(copied.success());
        Self {
            kind,
            disk,
            copy,
            log,
        }
    }

    fn options(&self) -> Vec<String> {
        let (kind, disk, log) = (self.kind, self.disk.display(), self.log.display());
        let node = |text: String| ["-blockdev".to_owned(), text];
        [
            node(format!("driver=file,node-name={kind}-file,filename={disk}")),
            node(format!("driver=raw,node-name={kind}-disk,file={kind}-file")),
            node(format!("driver=file,node-name={kind}-log,filename={log}")),
            node(format!(
                "driver=blklogwrites,node-name={kind},file={kind}-disk,log={kind}-log,log-sector-size=512"
            )),
            [
                "-device".to_owned(),
                format!("virtio-blk-pci,drive={kind},serial={kind}"),
            ],
        ]
        .concat()
    }

    /// Has the guest work on it. What it said after each round.
    fn work(&self, guest: &mut Guest) -> Vec<String> {
        let kind = self.kind;
        guest
            .run_ok(&format!(
                "udevadm settle; mkdir /run/{kind}; mount -t {kind} /dev/disk/by-id/virtio-{kind} /run/{kind}"
            ))
            .unwrap();
        let said = ROUNDS.iter().enumerate().map(|(round, (_, script))| {
            let at = MARKS / SECTOR + round as u64;
            let script = format!(
                "set -e; cd /run/{kind}; {script}; sync; python3 /run/extents.py /run/{kind}; \
                 dd if=/dev/zero of=/dev/disk/by-id/virtio-{kind} bs=512 count=1 seek={at} oflag=direct conv=notrunc status=none"
            );
            guest.run_ok(&script).unwrap()
        });
        let said = said.collect();
        guest.run_ok(&format!("umount /run/{kind}")).unwrap();
        said
    }

    /// Does what was written again, and compares at each mark.
    fn follow(&self, said: &[String]) {
        let file = File::options().read(true).write(true).open(&self.copy).unwrap();
        let disk = Disk(file, DISK);
        let mut files = FileSystem::read(&disk).unwrap();
        let mut compared = 0;
        writes(&File::open(&self.log).unwrap(), |at, bytes| {
            disk.0.write_all_at(bytes, at).unwrap();
            if at >= MARKS {
                let round = usize::try_from((at - MARKS) / SECTOR).unwrap();
                let what = format!("{}, {}", self.kind, ROUNDS[round].0);
                compare(&what, &said[round], &files, &disk);
                compared += 1;
                return;
            }
            files.written(at, bytes, &disk);
        });
        assert_eq!(compared, ROUNDS.len(), "{}", self.kind);
        let unseen = files.unseen();
        assert_eq!((unseen.transactions, unseen.inodes), (0, 0), "{}", self.kind);
    }
}

#[test]
fn file_systems_are_known_as_their_journals_say() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let size = format!("size={FILE_SYSTEM}");
    let xfs = Logged::make(
        "xfs",
        folder.path(),
        "/usr/sbin/mkfs.xfs",
        &["-q", "-f", "-d", &size],
        &[],
    );
    let ext4 = Logged::make(
        "ext4",
        folder.path(),
        "/usr/sbin/mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ],
        &[&(FILE_SYSTEM / BLOCK).to_string()],
    );
    let disks = [xfs, ext4];
    let options = Options {
        plants: false,
        extra: disks.iter().flat_map(Logged::options).collect(),
        ..Options::default()
    };
    let mut guest = Guest::boot_ready(&image, options).unwrap();
    let extents = include_bytes!("../../guest-files/extents.py");
    guest.put("/run/extents.py", extents).unwrap();
    let said = disks.each_ref().map(|disk| disk.work(&mut guest));
    assert_eq!(guest.power_off().unwrap(), 0);
    for (disk, said) in disks.iter().zip(&said) {
        disk.follow(said);
    }
}
