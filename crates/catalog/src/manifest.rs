//! `CURRENT`: which segments are the catalog now. The only file that is ever replaced, and by `rename` alone; so a
//! catalog is at every moment the old one or the new one.
//!
//! ```text
//! nephoscope catalog 1
//! segment <BLAKE3 of the file, hex> <its bytes> <first object> <objects>
//! …
//! check <BLAKE3 of the lines above, hex>
//! ```

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::segment::layout::VERSION;

/// The manifest's file name.
pub(crate) const CURRENT: &str = "CURRENT";
const WORDS: &str = "nephoscope catalog";
/// More than a manifest of the largest catalog; stops a wrong file from being read whole.
const MAX_BYTES: u64 = 1 << 20;

/// One segment of the catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) digest: [u8; 32],
    pub(crate) len: u64,
    pub(crate) base: u32,
    pub(crate) objects: u32,
}

impl Entry {
    /// The segment's file name: what is in it, so that equal catalogs are equal directories.
    pub(crate) fn file(&self) -> String {
        let hex = blake3::Hash::from(self.digest).to_hex();
        format!("{}.segment", hex.get(..16).unwrap_or_default())
    }
}

/// The segments in the order of their objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
}

impl Manifest {
    fn text(&self) -> String {
        let mut text = format!("{WORDS} {VERSION}\n");
        for e in &self.entries {
            let digest = blake3::Hash::from(e.digest);
            // Writing to a String does not fail.
            let _ = writeln!(text, "segment {digest} {} {} {}", e.len, e.base, e.objects);
        }
        let check = blake3::hash(text.as_bytes());
        let _ = writeln!(text, "check {check}");
        text
    }

    /// Reads the manifest of a directory.
    pub(crate) fn read(dir: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            dir: dir.to_owned(),
            source,
        };
        let file = match File::open(dir.join(CURRENT)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Self::absent(dir));
            }
            Err(e) => return Err(io(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(io)?;
        Self::parse(&bytes, dir)
    }

    /// Nothing, an empty directory and a file or directory of something else are told apart.
    fn absent(dir: &Path) -> OpenError {
        match std::fs::read_dir(dir) {
            Ok(mut entries) => {
                // What a killed first `add` leaves is ours; anything else is not to be written among.
                let ours = entries.all(|e| e.is_ok_and(|e| is_ours(&e.file_name().to_string_lossy())));
                if ours {
                    OpenError::Missing(dir.to_owned())
                } else {
                    OpenError::NotACatalog(dir.to_owned())
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => OpenError::Missing(dir.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => OpenError::NotACatalog(dir.to_owned()),
            Err(source) => OpenError::Io {
                dir: dir.to_owned(),
                source,
            },
        }
    }

    fn parse(bytes: &[u8], dir: &Path) -> Result<Self, OpenError> {
        let damaged = |what: &str| OpenError::Damaged {
            dir: dir.to_owned(),
            what: format!("{CURRENT}: {what}"),
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("not text"))?;
        // The check before the version: damage to the version's digit must not pass for another version.
        let checked = text
            .rfind("check ")
            .and_then(|at| text.split_at_checked(at))
            .filter(|(above, line)| {
                line.strip_prefix("check ").and_then(|l| l.strip_suffix('\n'))
                    == Some(blake3::hash(above.as_bytes()).to_hex().as_str())
            });
        let Some((above, _)) = checked else {
            let ours = text.starts_with(WORDS) || text.contains("\nsegment ") || text.contains("\ncheck ");
            return Err(if ours {
                damaged("its check fails")
            } else {
                OpenError::NotACatalog(dir.to_owned())
            });
        };
        let mut lines = above.lines();
        let Some(version) = lines.next().and_then(|l| l.strip_prefix(WORDS)).map(str::trim) else {
            return Err(OpenError::NotACatalog(dir.to_owned()));
        };
        if version != VERSION.to_string() {
            return Err(OpenError::OtherVersion {
                dir: dir.to_owned(),
                found: version.to_owned(),
                reads: VERSION,
            });
        }
        let entries = lines
            .map(entry)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| damaged("a line is malformed"))?;
        Ok(Self { entries })
    }

    /// Makes this the catalog: written beside, synced, renamed, and the directory synced.
    pub(crate) fn commit(&self, dir: &Path) -> io::Result<()> {
        let beside = dir.join(format!("{CURRENT}.new"));
        let mut file = File::create(&beside)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, dir.join(CURRENT))?;
        sync_dir(dir)
    }

    /// Where a segment is.
    pub(crate) fn path(dir: &Path, entry: &Entry) -> PathBuf {
        dir.join(entry.file())
    }
}

/// Whether a file name can be that of a catalog's file.
pub(crate) fn is_ours(name: &str) -> bool {
    name == CURRENT
        || name == "CURRENT.new"
        || name == "lock"
        || name
            .strip_suffix(".segment")
            .is_some_and(|stem| stem.bytes().all(|b| b.is_ascii_hexdigit()))
        || name == crate::adder::WORK
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.strip_prefix("segment ")?.split(' ');
    let digest = *blake3::Hash::from_hex(words.next()?).ok()?.as_bytes();
    let entry = Entry {
        digest,
        len: words.next()?.parse().ok()?,
        base: words.next()?.parse().ok()?,
        objects: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(entry)
}

/// Makes renames in a directory last.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_bytes_stops_a_manifest_that_no_catalog_has() {
        let read = |count| {
            let dir = tempfile::tempdir().unwrap();
            let entry = Entry {
                digest: [7; 32],
                len: 1,
                base: 2,
                objects: 3,
            };
            let manifest = Manifest {
                entries: vec![entry; count],
            };
            manifest.commit(dir.path()).unwrap();
            Manifest::read(dir.path()).map(|read| assert_eq!(read, manifest))
        };
        assert!(read(1 << 13).is_ok());
        assert!(matches!(read(1 << 14), Err(OpenError::Damaged { .. })));
    }
}
