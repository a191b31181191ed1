//! What the files are that were read: by the blocks of what is in the catalog.

use std::collections::HashMap;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::PAGE_SIZE;
use nephoscope_inventory::{
    CandidateReport, FileReport, FollowedFile, Inventory, LeftOut, Names, ReaderReport, SpaceId, SpaceReport,
};
use nephoscope_recipe::ObjectKind;

use crate::names::CatalogNames;

/// Tells all files that were read, in the order of their paths. What could not be looked up counts as unknown; how often that was.
pub(crate) fn report(
    inventory: &Inventory,
    catalog: &Catalog,
    names: &CatalogNames,
    spaces: &[SpaceReport],
) -> (Vec<FileReport>, u64) {
    let programs: HashMap<SpaceId, &str> = spaces
        .iter()
        .filter_map(|space| Some((space.id, space.program.as_ref()?.path.as_str())))
        .collect();
    let mut errors = 0;
    let mut files: Vec<FileReport> = inventory
        .files
        .read_ones()
        .map(|file| {
            let (known, objects) = objects(file, catalog).unwrap_or_else(|_| {
                errors += 1;
                (0, Vec::new())
            });
            one(file, known, &objects, names, &programs)
        })
        .collect();
    files.sort_by(|a, b| {
        (&a.path, a.disk, a.partition, a.inode).cmp(&(&b.path, b.disk, b.partition, b.inode))
    });
    (files, errors)
}

fn one(
    file: &FollowedFile,
    known: usize,
    objects: &[ObjectId],
    names: &CatalogNames,
    programs: &HashMap<SpaceId, &str>,
) -> FileReport {
    let mut candidates: Vec<CandidateReport> = objects
        .iter()
        .flat_map(|object| names.placements(*object))
        .map(|(_, candidate)| candidate)
        .collect();
    candidates.sort();
    candidates.dedup();
    let verdict = match known {
        0 => "unknown",
        known if known == file.pieces.len() => "known",
        _ => "modified",
    };
    let readers = file.readers.iter().map(|reader| ReaderReport {
        address_space: reader.space,
        program: programs.get(&reader.space).map(|path| (*path).to_owned()),
        first_ns: reader.first_ns,
        bytes: reader
            .pieces
            .iter()
            .map(|(at, len)| u64::from(*len).min(file.about.bytes.saturating_sub(*at)))
            .sum(),
    });
    FileReport {
        path: String::from_utf8_lossy(&file.about.path).into_owned(),
        disk: file.about.disk,
        partition: file.about.partition,
        inode: file.about.inode,
        generation: file.about.generation,
        bytes: file.about.bytes,
        verdict: verdict.to_owned(),
        candidates,
        pieces_read: file.pieces.len() as u64,
        pieces_known: known as u64,
        readers: readers.collect(),
        unattributed: file.unattributed,
    }
}

/// Files in the catalog that have as many of the pieces as any, each where it was read, and how many that is.
fn objects(file: &FollowedFile, catalog: &Catalog) -> Result<(usize, Vec<ObjectId>), ReadError> {
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

/// What is not told of files, by name; nothing where all is.
pub(crate) fn counters(left_out: LeftOut) -> impl Iterator<Item = (String, u64)> {
    let LeftOut {
        no_room,
        of_no_file,
        in_part,
        changed,
    } = left_out;
    let named = [
        ("files_left_out", no_room),
        ("file_pieces_of_no_file", of_no_file),
        ("file_pieces_in_part", in_part),
        ("file_pages_changed", changed),
    ];
    named
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), count))
}
