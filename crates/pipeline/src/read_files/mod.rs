//! What the files are that were read: by the blocks and texts of what is in the catalog.

mod contents;
mod lines;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, HashMap};

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::PageBytes;
use nephoscope_inventory::{
    CandidateReport, FileDifferenceReport, FileId, FileReport, FileVerdict, FollowedFile, How, Inventory,
    LeftOut, LineReport, ModifiedFile, Names, NearestFileReport, PieceRead, Reader, ReaderReport, SpaceId,
    SpaceReport,
};
use nephoscope_recipe::ObjectKind;

use crate::names::CatalogNames;
use contents::Contents;

/// A file of which nothing was read for so long is looked at: who reads one reads all of it, mostly.
const QUIET_NS: u64 = 60_000_000;
/// A file is looked at so long after something new was read of it, whatever goes on.
const PATIENCE_NS: u64 = 300_000_000;

/// Files that have to be looked at.
#[derive(Debug, Default)]
pub(crate) struct ReadFiles {
    contents: Contents,
    touched: BTreeMap<FileId, Touched>,
}

/// When something of a file was read that was not judged yet.
#[derive(Clone, Copy, Debug)]
struct Touched {
    first_ns: u64,
    last_ns: u64,
}

impl Touched {
    const fn is_due(self, now_ns: u64) -> bool {
        self.last_ns.saturating_add(QUIET_NS) <= now_ns || self.first_ns.saturating_add(PATIENCE_NS) <= now_ns
    }
}

impl ReadFiles {
    /// A piece was read, and held this. Whether the bytes of another one had to go for it.
    pub(crate) fn read(
        &mut self,
        at_ns: u64,
        piece: PieceRead,
        digest: &[u8; 32],
        bytes: PageBytes,
        catalog: &Catalog,
    ) -> Result<bool, ReadError> {
        let touched = self.touched.entry(piece.file).or_insert(Touched {
            first_ns: at_ns,
            last_ns: at_ns,
        });
        touched.last_ns = at_ns;
        for place in catalog.pages(digest)? {
            if catalog.object(place.object)?.kind == ObjectKind::Interpreted {
                return Ok(false);
            }
        }
        Ok(self.contents.keep(piece.file, piece.at, bytes))
    }

    /// Those that will have to be looked at.
    pub(crate) fn touched(&self) -> Vec<FileId> {
        self.touched.keys().copied().collect()
    }

    /// The files that have to be looked at now.
    pub(crate) fn due(&mut self, now_ns: u64) -> Vec<FileId> {
        let due: Vec<FileId> = self
            .touched
            .iter()
            .filter(|(_, touched)| touched.is_due(now_ns))
            .map(|(file, _)| *file)
            .collect();
        for file in &due {
            self.touched.remove(file);
        }
        due
    }

    /// What a file is.
    pub(crate) fn verdict(
        &self,
        file: FileId,
        inventory: &Inventory,
        catalog: &Catalog,
    ) -> Option<Result<FileVerdict, ReadError>> {
        let followed = inventory.files.get(file).filter(|file| !file.pieces.is_empty())?;
        Some(verdict::of(file, followed, catalog, &self.contents))
    }
}

/// Tells all files that were read, in the order of their paths.
pub(crate) fn report(inventory: &Inventory, names: &CatalogNames, spaces: &[SpaceReport]) -> Vec<FileReport> {
    let programs: HashMap<SpaceId, &str> = spaces
        .iter()
        .filter_map(|space| Some((space.id, space.program.as_ref()?.path.as_str())))
        .collect();
    let mut files: Vec<FileReport> = inventory
        .files
        .read_ones()
        .map(|file| {
            one(file, names, |space| {
                let program = programs.get(&space).copied();
                program.or_else(|| inventory.files.program_of_gone(space))
            })
        })
        .collect();
    files.sort_by(|a, b| {
        (&a.path, a.disk, a.partition, a.inode).cmp(&(&b.path, b.disk, b.partition, b.inode))
    });
    files
}

fn one<'a>(
    file: &FollowedFile,
    names: &CatalogNames,
    program: impl Fn(SpaceId) -> Option<&'a str>,
) -> FileReport {
    let (verdict, objects, known, modified) = match file.verdict.as_deref() {
        Some(FileVerdict::Known(objects)) => ("known", objects.as_slice(), file.pieces.len(), None),
        Some(FileVerdict::Modified(modified)) => (
            "modified",
            modified.nearest.as_slice(),
            modified.known,
            Some(modified),
        ),
        Some(FileVerdict::Unknown) | None => ("unknown", [].as_slice(), 0, None),
    };
    let readers = file.readers.iter().map(|reader| ReaderReport {
        address_space: reader.space,
        program: program(reader.space).map(str::to_owned),
        first_ns: reader.first_ns,
        bytes: reader
            .pieces
            .iter()
            .map(|(at, piece)| u64::from(piece.len).min(file.about.bytes.saturating_sub(*at)))
            .sum(),
        how: how(reader).to_owned(),
    });
    FileReport {
        path: String::from_utf8_lossy(&file.about.path).into_owned(),
        former_paths: file
            .former_paths
            .iter()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect(),
        disk: file.about.disk,
        partition: file.about.partition,
        inode: file.about.inode,
        generation: file.about.generation,
        bytes: file.about.bytes,
        verdict: verdict.to_owned(),
        candidates: candidates(objects, names),
        nearest: modified.and_then(|modified| nearest(modified, names)),
        pieces_read: file.pieces.len() as u64,
        pieces_known: known as u64,
        readers: readers.collect(),
        unattributed: file.unattributed,
    }
}

fn how(reader: &Reader) -> &'static str {
    let any = |how| reader.pieces.values().any(|piece| piece.how == how);
    match (any(How::Copied), any(How::Mapped)) {
        (true, false) => "copied",
        (false, true) => "mapped",
        (true, true) => "both",
        (false, false) => "not known",
    }
}

fn candidates(objects: &[ObjectId], names: &CatalogNames) -> Vec<CandidateReport> {
    let mut candidates: Vec<CandidateReport> = objects
        .iter()
        .flat_map(|object| names.placements(*object))
        .map(|(_, candidate)| candidate)
        .collect();
    candidates.sort();
    candidates.dedup();
    candidates
}

/// The file in the catalog that a modified one is like, and in what it differs.
fn nearest(modified: &ModifiedFile, names: &CatalogNames) -> Option<NearestFileReport> {
    let (path, package) = names.placements(*modified.nearest.first()?).into_iter().next()?;
    let difference = modified.lines.as_ref().map(|lines| FileDifferenceReport {
        lines_added: lines.added,
        lines_removed: lines.removed,
        lines: lines
            .first
            .iter()
            .map(|line| LineReport {
                number: line.number,
                added: line.added,
                text: line.text.clone(),
            })
            .collect(),
    });
    Some(NearestFileReport {
        path,
        package,
        difference,
    })
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
