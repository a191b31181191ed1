//! What a file is, by the pieces of it that were read.
//!
//! ```text
//!  pieces ─► blocks of the catalog, each at its place ─► all of them in one file: known
//!                          │ no
//!                          └─► bytes ─► windows ─► texts that are like it ─► the nearest ─► in which lines they differ
//! ```

use std::collections::HashMap;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::PAGE_SIZE;
use nephoscope_inventory::{FileId, FileVerdict, FollowedFile, ModifiedFile};
use nephoscope_recipe::{ObjectKind, PartKind, windows};

use super::contents::Contents;
use super::lines;

/// Files in the catalog that a file is compared with.
const MAX_COMPARED: usize = 8;
/// Bytes of a file that is compared: as much as the catalog keeps of a text, and what somebody added.
const MAX_TEXT_BYTES: usize = 2 << 20;

/// What a file is.
pub(super) fn of(
    id: FileId,
    file: &FollowedFile,
    catalog: &Catalog,
    contents: &Contents,
) -> Result<FileVerdict, ReadError> {
    let (known, objects) = by_blocks(file, catalog)?;
    if known == file.pieces.len() && known > 0 {
        return Ok(FileVerdict::Known(objects));
    }
    let likely = likely(id, file, &objects, catalog, contents)?;
    let text = Text::of(id, file, objects.first().copied(), catalog, contents)?;
    if let Some((object, theirs)) = nearest(&text, &likely, catalog)? {
        let lines = text.whole.then(|| lines::changed(&text.bytes, &theirs));
        return Ok(FileVerdict::Modified(ModifiedFile {
            nearest: vec![object],
            known: if objects.contains(&object) { known } else { 0 },
            lines,
        }));
    }
    Ok(match known {
        0 => FileVerdict::Unknown,
        known => FileVerdict::Modified(ModifiedFile {
            nearest: objects,
            known,
            lines: None,
        }),
    })
}

/// Files in the catalog that have as many of the pieces as any, each where it was read, and how many that is.
fn by_blocks(file: &FollowedFile, catalog: &Catalog) -> Result<(usize, Vec<ObjectId>), ReadError> {
    let mut has: HashMap<ObjectId, usize> = HashMap::new();
    for (at, digest) in &file.pieces {
        for place in catalog.pages(digest)? {
            let is_there = u64::from(place.number) * PAGE_SIZE as u64 == *at;
            if is_there && catalog.object(place.object)?.kind == ObjectKind::Interpreted {
                *has.entry(place.object).or_default() += 1;
            }
        }
    }
    let most = has.values().copied().max().unwrap_or(0);
    let mut objects: Vec<ObjectId> = has
        .into_iter()
        .filter(|(_, has)| *has == most)
        .map(|(object, _)| object)
        .collect();
    objects.sort_unstable();
    Ok((most, objects))
}

/// Files in the catalog whose text may be like this one's, the likeliest first.
fn likely(
    id: FileId,
    file: &FollowedFile,
    by_blocks: &[ObjectId],
    catalog: &Catalog,
    contents: &Contents,
) -> Result<Vec<ObjectId>, ReadError> {
    let mut votes: HashMap<ObjectId, usize> = by_blocks.iter().map(|object| (*object, 1)).collect();
    for bytes in file.pieces.keys().filter_map(|at| contents.get(id, *at)) {
        for (hash, _) in windows::probes_for(PartKind::Script, &bytes[..]) {
            for place in catalog.windows(hash)? {
                *votes.entry(place.object).or_default() += 1;
            }
        }
    }
    let mut likely: Vec<(usize, ObjectId)> =
        votes.into_iter().map(|(object, votes)| (votes, object)).collect();
    likely.sort_unstable_by_key(|(votes, object)| (std::cmp::Reverse(*votes), *object));
    likely.truncate(MAX_COMPARED);
    Ok(likely.into_iter().map(|(_, object)| object).collect())
}

/// What was read of a file.
struct Text {
    bytes: Vec<u8>,
    /// That is all of it.
    whole: bool,
}

impl Text {
    /// `known` has those pieces whose bytes are not kept.
    fn of(
        id: FileId,
        file: &FollowedFile,
        known: Option<ObjectId>,
        catalog: &Catalog,
        contents: &Contents,
    ) -> Result<Self, ReadError> {
        let known = match known {
            Some(object) => script(catalog, object)?,
            None => None,
        };
        let (mut bytes, mut next, mut whole) = (Vec::new(), 0, true);
        for at in file.pieces.keys() {
            let from = usize::try_from(*at).unwrap_or(usize::MAX);
            let len = usize::try_from(file.about.bytes.saturating_sub(*at)).unwrap_or(usize::MAX);
            let to = from.saturating_add(len.min(PAGE_SIZE));
            let kept = contents
                .get(id, *at)
                .and_then(|page| page.get(..len.min(PAGE_SIZE)));
            let piece = kept.or_else(|| known.as_deref()?.get(from..to));
            if bytes.len() > MAX_TEXT_BYTES {
                whole = false;
                break;
            }
            whole &= *at == next && piece.is_some();
            next = at.saturating_add(PAGE_SIZE as u64);
            bytes.extend_from_slice(piece.unwrap_or_default());
        }
        Ok(Self {
            whole: whole && next >= file.about.bytes,
            bytes,
        })
    }
}

/// The text of a file in the catalog.
fn script(catalog: &Catalog, object: ObjectId) -> Result<Option<Vec<u8>>, ReadError> {
    let info = catalog.object(object)?;
    let is_one = info.kind == ObjectKind::Interpreted && !info.parts.is_empty();
    Ok(if is_one {
        Some(catalog.part(object, 0)?.bytes.clone())
    } else {
        None
    })
}

/// The text that shares most with this one, if that is two thirds of the longer of both; of a text of which not all was read, two
/// thirds of that.
fn nearest(
    text: &Text,
    likely: &[ObjectId],
    catalog: &Catalog,
) -> Result<Option<(ObjectId, Vec<u8>)>, ReadError> {
    let mut best: Option<(usize, ObjectId, Vec<u8>)> = None;
    if text.bytes.is_empty() || text.bytes.contains(&0) {
        return Ok(None);
    }
    for object in likely {
        let Some(theirs) = script(catalog, *object)? else {
            continue;
        };
        let shared = lines::shared(&text.bytes, &theirs);
        let longer = if text.whole {
            text.bytes.len().max(theirs.len())
        } else {
            text.bytes.len()
        };
        let is_near = shared.saturating_mul(3) >= longer.saturating_mul(2);
        if is_near && best.as_ref().is_none_or(|(most, ..)| shared > *most) {
            best = Some((shared, *object, theirs));
        }
    }
    Ok(best.map(|(_, object, theirs)| (object, theirs)))
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::FileSeen;

    use super::*;
    use crate::fixture;

    #[test]
    fn max_text_bytes_bounds_what_is_compared() {
        let (catalog, _) = fixture::catalog(&[("a.php".to_owned(), b"<?php".to_vec())]);
        let of = |len: usize| {
            let mut contents = Contents::default();
            let mut file = FollowedFile {
                former_paths: Vec::new(),
                about: FileSeen {
                    disk: 0,
                    partition: 0,
                    inode: 1,
                    generation: 0,
                    bytes: len as u64,
                    path: Vec::new(),
                },
                pieces: std::collections::BTreeMap::new(),
                rewritten: 0,
                verdict: None,
                readers: Vec::new(),
                unattributed: 0,
            };
            for at in (0..len as u64).step_by(PAGE_SIZE) {
                file.pieces.insert(at, [1; 32]);
                contents.keep(FileId(0), at, fixture::page(b"a line\n"));
            }
            let text = Text::of(FileId(0), &file, None, &catalog, &contents).unwrap();
            (text.bytes.len(), text.whole)
        };
        assert_eq!(of(MAX_TEXT_BYTES), (MAX_TEXT_BYTES, true));
        let (len, whole) = of(MAX_TEXT_BYTES + 9 * PAGE_SIZE);
        assert!(!whole && len <= MAX_TEXT_BYTES + PAGE_SIZE, "{len}");
    }
}
