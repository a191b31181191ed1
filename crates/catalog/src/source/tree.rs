//! Walking a root.

use std::io;

use crate::limits::MAX_TREE_DEPTH;

use super::root::{Kind, Root};

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Regular files, relative to the root.
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) symlinks: u64,
    pub(crate) devices: u64,
    /// Directories that were not entered: (path, why).
    pub(crate) refused: Vec<(String, String)>,
}

/// File systems that are no files: what the kernel of this machine shows, if a live root is walked.
const SPECIAL: [&[u8]; 4] = [b"proc", b"sys", b"dev", b"run"];

/// All files of a root in order, of at most so many entries of all kinds; with `special`, not entering the root's `/proc`,
/// `/sys`, `/dev` and `/run`.
pub(crate) fn walk(root: &Root, special: bool, max_entries: u64) -> Walk {
    let mut found = Walk::default();
    let mut waiting = vec![(Vec::new(), 0usize)];
    let mut entries = 0u64;
    'walk: while let Some((dir, depth)) = waiting.pop() {
        let names = match root.list(&dir) {
            Ok(names) => names,
            Err(error) => {
                found.refuse(&dir, &error);
                continue;
            }
        };
        for name in names {
            entries += 1;
            if entries > max_entries {
                found.refuse(
                    &dir,
                    &io::Error::other(format!("more than {max_entries} entries")),
                );
                break 'walk;
            }
            if special && dir.is_empty() && SPECIAL.contains(&name.bytes.as_slice()) {
                continue;
            }
            let path = if dir.is_empty() {
                name.bytes
            } else {
                [&dir, b"/".as_slice(), &name.bytes].concat()
            };
            match name.kind {
                Kind::File => found.files.push(path),
                Kind::Symlink => found.symlinks += 1,
                Kind::Other => found.devices += 1,
                Kind::Directory if depth == MAX_TREE_DEPTH => {
                    found.refuse(
                        &path,
                        &io::Error::other(format!("deeper than {MAX_TREE_DEPTH} directories")),
                    );
                }
                Kind::Directory => waiting.push((path, depth + 1)),
            }
        }
    }
    found.files.sort();
    found
}

impl Walk {
    fn refuse(&mut self, path: &[u8], error: &io::Error) {
        self.refused
            .push((format!("/{}", String::from_utf8_lossy(path)), error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_tree_entries_stops_a_tree_that_never_ends_and_what_came_before_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "z", "b/c", "b/d"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = Root::open(folder.path()).unwrap();
        // With the directory there are five.
        let all = walk(&root, false, 5);
        assert_eq!((all.files.len(), all.refused), (4, vec![]));
        let some = walk(&root, false, 4);
        assert_eq!(some.files, [b"a".to_vec(), b"b/c".to_vec(), b"z".to_vec()]);
        assert_eq!(
            some.refused,
            [("/b".to_owned(), "more than 4 entries".to_owned())]
        );
    }
}
