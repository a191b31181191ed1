//! Which packages are installed on a disk, and in which version, as its own package manager says: dpkg's database (`dpkg(1)`, "FILES").
//!
//! The database is the guest's, and may say what it likes: of what is read here it is only concluded that a file is older than the rest of
//! its package.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nephoscope_wire::MAX_WORD_BYTES;

use crate::layout::{About, Blocks, FileSystem};

/// Where it is.
const DATABASE: [&[u8]; 4] = [b"var", b"lib", b"dpkg", b"status"];
/// The longest database that is read: ten times that of a system with all that Debian has on a DVD.
const MAX_DATABASE_BYTES: u64 = 64 << 20;
/// Packages that are remembered: Debian has as many.
const MAX_PACKAGES: usize = 64 << 10;
/// Changes that are told in one go, with a request of the guest's: what is told has to fit into a message.
const MAX_TOLD: usize = 1024;

/// What a package manager says.
#[derive(Debug, Default)]
pub(super) struct Installed {
    /// Which database that is of.
    read: Option<(u64, About)>,
    packages: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What was not told yet.
    changes: VecDeque<Change>,
}

/// What has changed: a package, and the version that is installed now, if one is.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

impl Installed {
    /// Reads the database, if there is another one than before. One that cannot be read, or is too long, is none.
    pub(super) fn look(&mut self, files: &FileSystem, of: &impl Blocks) {
        let inode = files.find(&DATABASE, of).ok().flatten();
        let found = inode.and_then(|inode| Some((inode, files.file(inode)?)));
        if found == self.read {
            return;
        }
        self.read = found;
        let text = found.and_then(|(inode, _)| files.contents(inode, MAX_DATABASE_BYTES, of).ok()?);
        self.are(parse(&text.unwrap_or_default()));
    }

    /// These are installed now.
    fn are(&mut self, now: BTreeMap<Vec<u8>, Vec<u8>>) {
        // What was not told is told as it is now.
        let untold: Vec<Vec<u8>> = self.changes.drain(..).map(|(name, _)| name).collect();
        let gone = self.packages.keys().filter(|name| !now.contains_key(*name));
        let others = now
            .iter()
            .filter(|(name, version)| self.packages.get(*name) != Some(version));
        let names = gone.chain(others.map(|(name, _)| name)).cloned();
        let names: BTreeSet<Vec<u8>> = names.chain(untold).collect();
        let changes = names.into_iter().map(|name| {
            let version = now.get(&name).cloned();
            (name, version)
        });
        self.changes = changes.collect();
        self.packages = now;
    }

    /// What has changed and was not told, some of it.
    pub(super) fn changes(&mut self) -> impl Iterator<Item = Change> {
        let now = self.changes.len().min(MAX_TOLD);
        self.changes.drain(..now)
    }
}

/// Packages whose files are there, and their versions (`deb-control(5)`, and `dpkg(1)`, "PACKAGE STATES").
fn parse(text: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut packages = BTreeMap::new();
    let (mut name, mut version, mut is_there) = (None, None, false);
    // As if an empty line were behind the last.
    for line in text.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        if line.is_empty() {
            if let (Some(name), Some(version), true) = (name.take(), version.take(), is_there)
                && packages.len() < MAX_PACKAGES
            {
                packages.insert(name, version);
            }
            (name, version, is_there) = (None, None, false);
        } else if let Some(value) = line.strip_prefix(b"Package:") {
            name = word(value);
        } else if let Some(value) = line.strip_prefix(b"Version:") {
            version = word(value);
        } else if let Some(value) = line.strip_prefix(b"Status:") {
            let state = value
                .split(u8::is_ascii_whitespace)
                .rfind(|word| !word.is_empty());
            is_there = !matches!(
                state,
                Some(b"not-installed" | b"config-files" | b"half-installed") | None
            );
        }
    }
    packages
}

/// A value that is one word.
fn word(value: &[u8]) -> Option<Vec<u8>> {
    let word = value.trim_ascii();
    let is_one = (1..=MAX_WORD_BYTES).contains(&word.len()) && word.iter().all(u8::is_ascii_graphic);
    is_one.then(|| word.to_vec())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::image::{Format, Image};

    fn stanza(name: &str, status: &str, version: &str) -> String {
        format!(
            "Package: {name}\nStatus: install ok {status}\nArchitecture: all\nVersion: {version}\nDescription: a\n Version: 9\n\n"
        )
    }

    fn parsed(text: &str) -> Vec<(String, String)> {
        let words = |word: Vec<u8>| String::from_utf8(word).unwrap();
        parse(text.as_bytes())
            .into_iter()
            .map(|(name, version)| (words(name), words(version)))
            .collect()
    }

    #[test]
    fn packages_are_those_whose_files_are_there() {
        let text = [
            stanza("a", "installed", "1.0-1"),
            stanza("b", "config-files", "1.0-1"),
            stanza("c", "unpacked", "2:1.0~rc1"),
            stanza("d", "half-installed", "1"),
            "Package: e\nVersion: 1\n\n".to_owned(),
            "Package: f g\nStatus: install ok installed\nVersion: 1\n\n".to_owned(),
            stanza("h", "installed", "7").trim_end().to_owned(),
        ]
        .concat();
        let expected = [("a", "1.0-1"), ("c", "2:1.0~rc1"), ("h", "7")];
        assert_eq!(parsed(&text), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn max_packages_bounds_what_is_remembered_and_max_word_bytes_a_name() {
        let many: String = (0..MAX_PACKAGES + 10)
            .map(|number| stanza(&format!("p{number}"), "installed", "1"))
            .collect();
        assert_eq!(parse(many.as_bytes()).len(), MAX_PACKAGES);
        let long = "x".repeat(MAX_WORD_BYTES + 1);
        assert_eq!(parsed(&stanza(&long, "installed", "1")), []);
        assert_eq!(parsed(&stanza(&long[1..], "installed", "1")).len(), 1);
    }

    fn made(folder: &Path, kind: &str, status: &str) -> Image {
        let (tree, disk) = (folder.join("tree"), folder.join("disk"));
        std::fs::create_dir_all(tree.join("var/lib/dpkg")).unwrap();
        std::fs::write(tree.join("var/lib/dpkg/status"), status).unwrap();
        std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", kind, "-d"])
            .args([&tree, &disk])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Image::open(&disk, Format::Raw, true).unwrap()
    }

    #[test]
    fn a_database_on_a_disk_is_read_and_only_what_changes_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let many: String = (0..2000)
            .map(|number| stanza(&format!("p{number:04}"), "installed", "1.0"))
            .collect();
        let mut installed = Installed::default();
        let image = made(folder.path(), "ext4", &many);
        let files = FileSystem::read(&image).unwrap();
        installed.look(&files, &image);
        let changes: Vec<Change> = installed.changes().collect();
        assert_eq!(changes.len(), MAX_TOLD);
        assert_eq!(changes[7], (b"p0007".to_vec(), Some(b"1.0".to_vec())));
        assert_eq!(installed.changes().count(), 2000 - MAX_TOLD);
        installed.look(&files, &image);
        assert_eq!(installed.changes().count(), 0);
        // Another disk in its place: two packages are others, and one is gone.
        let others =
            many.replacen("Version: 1.0", "Version: 1.1", 2)
                .replacen("Package: p0009", "Package: ", 1);
        let image = made(folder.path(), "ext2", &others);
        installed.look(&FileSystem::read(&image).unwrap(), &image);
        let changes: Vec<Change> = installed.changes().collect();
        let name = |number: &str| number.as_bytes().to_vec();
        let newer = || Some(b"1.1".to_vec());
        let expected = [
            (name("p0000"), newer()),
            (name("p0001"), newer()),
            (name("p0009"), None),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn max_told_bounds_what_is_told_in_one_go_and_what_waits_is_told_as_it_is_then() {
        let of = |from: usize, version: &str| -> BTreeMap<Vec<u8>, Vec<u8>> {
            let numbers = from..2 * MAX_TOLD;
            let package = |number| (format!("p{number:05}").into_bytes(), version.as_bytes().to_vec());
            numbers.map(package).collect()
        };
        let mut installed = Installed::default();
        installed.are(of(0, "1"));
        assert_eq!(installed.changes().count(), MAX_TOLD);
        installed.are(of(MAX_TOLD + 1, "1"));
        let changes: Vec<Change> = installed.changes().chain([]).collect();
        let more: Vec<Change> = installed.changes().collect();
        let gone = |(_, version): &&Change| version.is_none();
        let all = || changes.iter().chain(&more);
        assert_eq!(
            all().filter(gone).count(),
            MAX_TOLD + 1,
            "one of them was never told"
        );
        assert_eq!(all().count(), 2 * MAX_TOLD);
    }

    #[test]
    fn a_database_longer_than_max_database_bytes_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let image = made(folder.path(), "ext4", &stanza("a", "installed", "1"));
        let files = FileSystem::read(&image).unwrap();
        let inode = files.find(&DATABASE, &image).unwrap().unwrap();
        let bytes = files.file(inode).unwrap().bytes;
        assert!(files.contents(inode, bytes, &image).unwrap().is_some());
        assert!(files.contents(inode, bytes - 1, &image).unwrap().is_none());
        assert!(MAX_DATABASE_BYTES > bytes);
    }
}
