//! From finished segments to a new catalog.

use std::fs;
use std::io;
use std::path::Path;

use crate::manifest::{Entry, Manifest, sync_dir};
use crate::segment::merge::merge;
use crate::segment::write::Finished;
use crate::verify::left_over;

use super::WORK;
use super::store::New;

/// Makes the new segments part of the catalog; `false` if there is nothing new.
///
/// Older segments at the end that are not at least twice as large as what follows them are merged with it, so that
/// there are never more segments than the logarithm of the catalog, and every row is rewritten as seldom.
pub(crate) fn commit(dir: &Path, old: &Manifest, new: New, is_new: bool) -> io::Result<bool> {
    if new.written.is_empty() {
        if is_new {
            // A catalog of nothing is a catalog: what was asked for was looked at.
            old.commit(dir)?;
        }
        return Ok(is_new);
    }
    let New {
        segments,
        mut written,
        work,
    } = new;
    let first_written = segments.len().saturating_sub(written.len());
    let mut from = first_written;
    let mut bytes: u64 = written.iter().map(|w| w.len).sum();
    while let Some(entry) = from.checked_sub(1).and_then(|before| old.entries.get(before)) {
        if entry.len >= bytes.saturating_mul(2) {
            break;
        }
        bytes = bytes.saturating_add(entry.len);
        from -= 1;
    }
    let tail = segments.get(from..).unwrap_or_default();
    let finished = match (tail.len(), written.pop()) {
        (1, Some(only)) => only,
        _ => merge(tail, &work.join("merged.segment"))?,
    };
    let mut manifest = Manifest {
        entries: old.entries.iter().take(from).cloned().collect(),
    };
    let entry = entry(&finished);
    fs::rename(&finished.path, dir.join(entry.file()))?;
    sync_dir(dir)?;
    manifest.entries.push(entry);
    manifest.commit(dir)?;
    clean(dir, &manifest)?;
    Ok(true)
}

fn entry(finished: &Finished) -> Entry {
    Entry {
        digest: finished.digest,
        len: finished.len,
        base: finished.base,
        objects: finished.objects,
    }
}

/// Removes what the manifest does not need: segments that were merged, and what a killed adder left.
pub(crate) fn clean(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    for name in left_over(dir, manifest) {
        let path = dir.join(&name);
        if name == WORK {
            fs::remove_dir_all(path)?
        } else {
            fs::remove_file(path)?
        }
    }
    Ok(())
}
