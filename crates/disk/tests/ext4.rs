//! File systems that e2fsprogs makes, read by us and by its `debugfs`.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "test data is small, and a test may fail"
)]

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nephoscope_disk::layout::Blocks;
use nephoscope_disk::layout::ext4::{Contents, Extents, Files, Group, Inode, InodeKind, Skipped, Superblock};

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

/// Files of all sizes and shapes.
fn tree(at: &Path) {
    for (number, size) in [0, 1, 59, 60, 4096, 5000, 70_000, 1_000_000, 20_000_000]
        .into_iter()
        .enumerate()
    {
        fs::write(at.join(format!("f{number}")), vec![number as u8 + 1; size]).unwrap();
    }
    let sparse = File::create(at.join("sparse")).unwrap();
    for hole in 0..700_u64 {
        sparse.write_all_at(&[7; 3000], hole * 100_000).unwrap();
    }
    for directory in 0..30 {
        let directory = at.join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..20 {
            fs::write(directory.join(format!("a name that is longer {file}")), [1; 100]).unwrap();
        }
    }
    std::os::unix::fs::symlink("f1", at.join("short")).unwrap();
    std::os::unix::fs::symlink("x".repeat(100), at.join("long")).unwrap();
}

/// Every inode in use, with its number.
fn inodes(image: &Image, of: &Superblock) -> Vec<(u32, Inode)> {
    let mut found = Vec::new();
    for number in 0..of.groups() {
        let (block, offset) = of.descriptor(number);
        let mut bytes = vec![0; of.descriptor_bytes as usize];
        image.read(of.at(block) + offset as u64, &mut bytes).unwrap();
        let group = Group::parse(&bytes, of).unwrap();
        for index in 0..group.inodes_used {
            let mut bytes = vec![0; of.inode_bytes as usize];
            let at = of.at(group.inode_table) + u64::from(index) * u64::from(of.inode_bytes);
            image.read(at, &mut bytes).unwrap();
            if let Some(inode) = Inode::parse(&bytes) {
                found.push((number as u32 * of.inodes_per_group + index + 1, inode));
            }
        }
    }
    found
}

/// What `debugfs` says of inodes: their contents' blocks and those that lead there.
fn by_debugfs(path: &str, inodes: &[u32]) -> HashMap<u32, BTreeSet<u64>> {
    let mut commands = tempfile::NamedTempFile::new().unwrap();
    for inode in inodes {
        writeln!(commands, "blocks <{inode}>").unwrap();
    }
    let said = run(
        "/usr/sbin/debugfs",
        &["-f", commands.path().to_str().unwrap(), path],
    );
    // It repeats each command, and answers in a line.
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("debugfs:"))
        .collect();
    assert_eq!(lines.len(), inodes.len());
    let blocks = |line: &str| {
        line.split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect()
    };
    inodes
        .iter()
        .copied()
        .zip(lines.into_iter().map(blocks))
        .collect()
}

fn agrees(program: &str, options: &[&str], uses_extents: bool) {
    if !Path::new("/usr/sbin/debugfs").exists() {
        println!("skipped: e2fsprogs is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let contents = folder.path().join("contents");
    fs::create_dir(&contents).unwrap();
    tree(&contents);
    let path = folder.path().join("image");
    let path = path.to_str().unwrap();
    let size = "300m";
    run(
        program,
        &[&["-q", "-d", contents.to_str().unwrap()], options, &[path, size]].concat(),
    );
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let image = Image(file, len);
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes).unwrap();
    let of = Superblock::parse(&bytes, len).unwrap();
    let (mut compared, mut deep, mut nodes) = (0, 0, BTreeSet::new());
    let inodes = inodes(&image, &of);
    let numbers: Vec<u32> = inodes.iter().map(|(number, _)| *number).collect();
    let told = by_debugfs(path, &numbers);
    for (number, inode) in inodes {
        let mut claim = |node| nodes.insert(node);
        let found = match inode.contents {
            Contents::Inline => Extents::default(),
            Contents::Extents(root) => Extents::of_tree(&root, &of, &image, &mut claim).unwrap(),
            Contents::Indirect(map) => {
                let blocks = inode.bytes.div_ceil(of.block_bytes.into());
                Extents::of_blocks(&map, blocks, &of, &image, &mut claim).unwrap()
            }
        };
        assert!(!found.is_cut);
        // Its map is of bad blocks or of those kept for growth, and not what its size says.
        if number < of.first_inode && number != 2 && number != of.journal_inode {
            continue;
        }
        let is_extents = matches!(inode.contents, Contents::Extents(_));
        assert_eq!(
            is_extents,
            uses_extents && inode.contents != Contents::Inline,
            "{number} {inode:?}"
        );
        let data = found
            .extents
            .iter()
            .flat_map(|e| e.block..e.block + u64::from(e.len));
        let all: BTreeSet<u64> = data.chain(found.nodes.iter().copied()).collect();
        // It takes the letters of a short link for blocks.
        let said = match inode.contents {
            Contents::Inline => BTreeSet::new(),
            _ => told[&number].clone(),
        };
        assert_eq!(all, said, "inode {number}: {inode:?}");
        compared += 1;
        deep += usize::from(!found.nodes.is_empty());
        assert_eq!(
            inode.kind == InodeKind::Directory,
            number == 2 || inode.links > 1,
            "{number}"
        );
    }
    assert!(compared > 600 && deep >= 1, "{compared} {deep}");
    every_block_has_its_file_and_its_path(&image, &contents, &of);
}

/// Reads each file block by block through what is said of blocks.
fn every_block_has_its_file_and_its_path(image: &Image, contents: &Path, of: &Superblock) {
    let files = Files::read(image).unwrap();
    assert_eq!(files.skipped(), Skipped::default());
    let mut blocks: HashMap<u32, Vec<(u32, u64)>> = HashMap::new();
    for block in 0..of.blocks {
        if let Some((inode, file_block)) = files.owner(block) {
            blocks.entry(inode).or_default().push((file_block, block));
        }
    }
    let mut names = BTreeSet::new();
    for (inode, node) in files.nodes() {
        let Some(path) = files.path(inode, image).unwrap() else {
            assert_eq!(inode, of.journal_inode, "only the journal has no name");
            continue;
        };
        let path = String::from_utf8(path).unwrap();
        names.insert(path.clone());
        if node.kind != InodeKind::File {
            continue;
        }
        let expected = fs::read(contents.join(&path[1..])).unwrap();
        assert_eq!(node.bytes, expected.len() as u64, "{path}");
        let mut read = vec![0; expected.len().next_multiple_of(of.block_bytes as usize)];
        for (file_block, block) in blocks.get(&inode).into_iter().flatten() {
            let at = *file_block as usize * of.block_bytes as usize;
            // Blocks behind the end are those of files that were made long and cut.
            if let Some(into) = read.get_mut(at..at + of.block_bytes as usize) {
                image.read(of.at(*block), into).unwrap();
            }
        }
        assert!(read[..expected.len()] == expected, "{path}");
    }
    let mut expected: BTreeSet<String> = walk(contents)
        .into_iter()
        .map(|path| format!("/{}", path.strip_prefix(contents).unwrap().display()))
        .collect();
    expected.extend(["/".to_owned(), "/lost+found".to_owned()]);
    assert_eq!(names, expected);
}

fn walk(at: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

#[test]
fn ext4_as_debian_makes_it() {
    agrees("/usr/sbin/mkfs.ext4", &[], true);
}

#[test]
fn ext4_with_small_blocks_old_descriptors_and_no_journal() {
    let options = [
        "-b",
        "1024",
        "-O",
        "^64bit,^has_journal,^metadata_csum",
        "-I",
        "128",
    ];
    agrees("/usr/sbin/mkfs.ext4", &options, true);
}

#[test]
fn ext4_whose_descriptors_lie_in_the_groups() {
    agrees(
        "/usr/sbin/mkfs.ext4",
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
        true,
    );
}

#[test]
fn ext2_and_ext3() {
    agrees("/usr/sbin/mkfs.ext2", &[], false);
    agrees("/usr/sbin/mkfs.ext3", &["-b", "1024"], false);
}
