//! From paths to units of work.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::limits::MAX_TREE_ENTRIES;
use crate::source::dpkg::{self, Database};
use crate::source::root::Root;
use crate::source::{ar, tree};

use super::AddError;
use super::summary::Tally;

/// Files of a tree that one thread takes at a time.
const FILES_PER_UNIT: usize = 64;

/// Something one thread unpacks.
pub(crate) enum Unit {
    /// A package, and its length.
    Deb(PathBuf, u64),
    /// Some files of a tree.
    Tree(Arc<Tree>, Vec<Vec<u8>>),
    /// One file by itself, its length, and whether the user named it or the directory that it is in.
    File { path: PathBuf, len: u64, named: bool },
}

/// A tree that is being added.
pub(crate) struct Tree {
    pub(crate) root: Root,
    pub(crate) database: Database,
    pub(crate) name: String,
}

/// All the work there is.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) units: Vec<Unit>,
    /// Bytes of packages and files; trees count per file, as a guess of [`FILE_GUESS`].
    pub(crate) total: u64,
}

/// What a file of a tree counts in the progress, whose length is not known before it is opened.
pub(crate) const FILE_GUESS: u64 = 16 << 10;

/// Looks at what each path is.
///
/// # Errors
/// A path does not exist or cannot be read: a mistake in the command, not in an input.
pub(crate) fn plan(paths: &[PathBuf], tally: &mut Tally) -> Result<Plan, AddError> {
    let mut plan = Plan::default();
    for path in paths {
        let input = |source| AddError::Input {
            path: path.clone(),
            source,
        };
        let meta = fs::metadata(path).map_err(input)?;
        if meta.is_dir() {
            plan.directory(path, tally).map_err(input)?;
        } else if meta.is_file() {
            // Whether it can be opened is asked now: what the user named must be readable.
            drop(File::open(path).map_err(input)?);
            plan.file(path.clone(), meta.len(), true);
        } else {
            return Err(input(std::io::Error::other("not a file or directory")));
        }
    }
    Ok(plan)
}

impl Plan {
    fn directory(&mut self, path: &Path, tally: &Tally) -> std::io::Result<()> {
        let root = Root::open(path)?;
        let name = fs::canonicalize(path)?.display().to_string();
        let is_root = dpkg::is_there(&root);
        let walk = tree::walk(&root, is_root, MAX_TREE_ENTRIES);
        for (dir, why) in &walk.refused {
            tally.refuse(&name, dir, why.clone());
        }
        tally.symbolic_links.fetch_add(walk.symlinks, Ordering::Relaxed);
        tally.devices.fetch_add(walk.devices, Ordering::Relaxed);
        if !is_root {
            // Packages and loose files, each for itself.
            use std::os::unix::ffi::OsStrExt as _;
            for file in walk.files {
                let file = path.join(std::ffi::OsStr::from_bytes(&file));
                let len = fs::symlink_metadata(&file).map_or(0, |meta| meta.len());
                self.file(file, len, false);
            }
            return Ok(());
        }
        let database = Database::read(&root)?;
        for (file, why) in &database.refused {
            tally.refuse(&name, file, why.clone());
        }
        let tree = Arc::new(Tree { root, database, name });
        tally
            .packages
            .fetch_add(tree.database.packages.len() as u64, Ordering::Relaxed);
        self.total += walk.files.len() as u64 * FILE_GUESS;
        for files in walk.files.chunks(FILES_PER_UNIT) {
            self.units.push(Unit::Tree(Arc::clone(&tree), files.to_vec()));
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, len: u64, named: bool) {
        self.total += len;
        let is_deb = path.extension().is_some_and(|e| e == "deb") || starts_as_archive(&path);
        self.units.push(if is_deb {
            Unit::Deb(path, len)
        } else {
            Unit::File { path, len, named }
        });
    }
}

fn starts_as_archive(path: &Path) -> bool {
    let mut head = [0; 21];
    File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok()
        && ar::is_archive(&head)
        && head.ends_with(b"debian-binary")
}
