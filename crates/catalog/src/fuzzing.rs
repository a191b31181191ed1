//! Insides that `fuzz` looks into.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::source::deb::{Deb, Entry};
use crate::source::dpkg::{self, Database};
use crate::source::path::{canonical, normalise};
use crate::source::root::Root;
use crate::source::{ar, control, tree};

/// While this is set, every check holds: what lies behind the checks must survive any bytes too.
pub static BELIEVE: AtomicBool = AtomicBool::new(false);

pub(crate) fn holds(bytes: &[u8], place: u64, sum: [u8; 4]) -> bool {
    crate::block::check(bytes, place) == u32::from_le_bytes(sum) || BELIEVE.load(Ordering::Relaxed)
}

/// Reads a package whole; how many members it has.
///
/// # Errors
/// What is wrong with it.
pub fn deb(file: File) -> Result<usize, String> {
    let deb = Deb::open(file)?;
    let mut members = 0;
    deb.each(&mut |entry| {
        members += 1;
        match entry {
            Entry::File { path, len, bytes } => {
                let mut read = Vec::new();
                bytes
                    .take(1 << 16)
                    .read_to_end(&mut read)
                    .map_err(|error| error.to_string())?;
                assert!(read.len() as u64 <= len, "no more than the header says");
                check_path(path);
            }
            Entry::Hardlink { path, target } => {
                check_path(path);
                check_path(target);
            }
            Entry::Symlink | Entry::Device | Entry::Directory => {}
        }
        Ok(())
    })?;
    Ok(members)
}

/// The outer archive alone: its members lie in the file, one after the other.
pub fn archive(file: &File, len: u64) {
    let mut end = 8;
    for member in ar::members(file).unwrap_or_default() {
        assert!(member.at >= end && member.at + member.len <= len);
        end = member.at + member.len;
    }
}

/// A path as packages spell it: absolute, without climbing, the same again when it is normalised again.
pub fn check_path(raw: &[u8]) {
    let Ok(path) = normalise(raw) else { return };
    assert!(path.starts_with('/') && !path.contains('\0'));
    assert!(
        path.split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."))
    );
    if let Ok(again) = normalise(path.as_bytes()) {
        assert_eq!(again, path);
    }
    assert_eq!(canonical(&canonical(&path)), canonical(&path));
}

/// Every package of a control file.
pub fn control(text: &str) {
    for paragraph in control::paragraphs(text) {
        if let Some(package) = paragraph.package() {
            assert!(!package.name.is_empty() && !package.version.is_empty());
        }
    }
}

/// The database of a root, and who owns these paths.
pub fn database(dir: &Path, paths: &[&str]) {
    let Ok(root) = Root::open(dir) else { return };
    let _ = dpkg::is_there(&root);
    let Ok(database) = Database::read(&root) else {
        return;
    };
    for path in paths {
        if let Some(owner) = database.owner(path) {
            assert!(owner.package < database.packages.len());
        }
    }
}

/// Every file of a tree, opened as ingest does.
pub fn walk(dir: &Path) -> usize {
    let Ok(root) = Root::open(dir) else { return 0 };
    let found = tree::walk(&root, true, crate::limits::MAX_TREE_ENTRIES);
    for file in &found.files {
        let _ = root.file(file);
    }
    found.files.len()
}
