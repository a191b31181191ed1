//! Reading everything once, to find every byte that is not as it was written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use crate::error::{OpenError, ReadError};
use crate::manifest::{Entry, Manifest};
use crate::segment::layout::{Kind, VERSION};
use crate::segment::{Segment, record};

/// What [`verify`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// Segments looked at.
    pub segments: u64,
    /// Their bytes, all read.
    pub bytes: u64,
    /// Objects decoded with all their parts.
    pub objects: u64,
    /// What is not as it was written, one line each.
    pub damage: Vec<String>,
    /// Files that no catalog needs: left by an adder that was killed, removed by the next one.
    pub left_over: Vec<String>,
}

impl Report {
    /// Whether every byte is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Verifies the catalog in a directory, also one whose segments do not open.
///
/// # Errors
/// There is no catalog, or its manifest cannot be read, so that nothing says what should be there.
pub fn verify(dir: &Path) -> Result<Report, OpenError> {
    Ok(verify_manifest(dir, &Manifest::read(dir)?))
}

/// Opens a segment and holds it against the manifest.
pub(crate) fn open_entry(dir: &Path, entry: &Entry) -> Result<Segment, OpenError> {
    use crate::segment::read::SegmentError;
    let damaged = |what: &str| OpenError::Damaged {
        dir: dir.to_owned(),
        what: format!("{}: {what}", entry.file()),
    };
    let segment = Segment::open(&Manifest::path(dir, entry)).map_err(|error| match error {
        SegmentError::Io(e) if e.kind() == io::ErrorKind::NotFound => damaged("missing"),
        SegmentError::Io(source) => OpenError::Io {
            dir: dir.to_owned(),
            source,
        },
        SegmentError::Damaged(what) => damaged(what),
        SegmentError::OtherVersion(found) => OpenError::OtherVersion {
            dir: dir.to_owned(),
            found: found.to_string(),
            reads: VERSION,
        },
    })?;
    if segment.len() != entry.len || segment.base() != entry.base || segment.count() != entry.objects {
        return Err(damaged("not the segment that CURRENT names"));
    }
    Ok(segment)
}

pub(crate) fn verify_manifest(dir: &Path, manifest: &Manifest) -> Report {
    let mut report = Report::default();
    for entry in &manifest.entries {
        report.segments += 1;
        let before = report.damage.len();
        match open_entry(dir, entry) {
            Ok(segment) => segment_tables(&segment, &mut report),
            // Whoever reads this has asked for all that is damaged: no advice to ask.
            Err(OpenError::Damaged { what, .. }) => report.damage.push(what),
            Err(error) => report.damage.push(error.to_string()),
        }
        // The digest of the whole file sees what nothing points to, and what all the checks above mean to see.
        match digest(&Manifest::path(dir, entry)) {
            Ok((digest, len)) => {
                report.bytes += len;
                if digest != entry.digest && report.damage.len() == before {
                    report.damage.push(format!(
                        "{}: its bytes are not those that were written",
                        entry.file()
                    ));
                }
            }
            Err(error) => report.damage.push(format!("{}: {error}", entry.file())),
        }
    }
    report.left_over = left_over(dir, manifest);
    report
}

fn segment_tables(segment: &Segment, report: &mut Report) {
    let mut check = |result: Result<(), ReadError>| match result {
        Ok(()) => {}
        Err(ReadError::Damaged { segment, what, at }) => {
            report.damage.push(format!("{segment}: {what} at byte {at}"));
        }
        Err(error) => report.damage.push(error.to_string()),
    };
    for kind in Kind::ALL {
        let table = segment.table(kind);
        for number in 0..table.blocks() {
            check(table.block(number).map(drop));
        }
    }
    for object in segment.base()..segment.base().saturating_add(segment.count()) {
        check(segment.object_at(object).and_then(|at| {
            let record = segment.record(at)?;
            record
                .parts
                .iter()
                .try_for_each(|part| segment.part(at, part).map(drop))
        }));
    }
    let placements = segment.table(Kind::Placements);
    for number in 0..placements.len() {
        let group = placements
            .record(number, record::read_placements)
            .and_then(|(_, at)| segment.group(at));
        check(group.map(drop));
    }
    for number in 0..segment.table(Kind::Sources).len() {
        check(
            segment
                .source(u32::try_from(number).unwrap_or(u32::MAX))
                .map(drop),
        );
    }
    report.objects += u64::from(segment.count());
}

fn digest(path: &Path) -> io::Result<([u8; 32], u64)> {
    let mut file = File::open(path)?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0u64;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((*hash.finalize().as_bytes(), len));
        }
        hash.update(buffer.get(..n).unwrap_or_default());
        len += n as u64;
    }
}

/// Names in the directory that the manifest does not need.
pub(crate) fn left_over(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let wanted: Vec<String> = manifest.entries.iter().map(Entry::file).collect();
    let mut names: Vec<String> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| crate::manifest::is_ours(name) && name != crate::manifest::CURRENT && name != "lock")
        .filter(|name| !wanted.contains(name))
        .collect();
    names.sort();
    names
}
