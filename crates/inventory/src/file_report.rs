//! What a report says of files that interpreters read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::{CandidateReport, is_zero};
use crate::space::SpaceId;

/// A file that was read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileReport {
    /// Where its file system has it; empty if it has no name.
    pub path: String,
    /// The names that it had before, the oldest first: it may have been read under any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_paths: Vec<String>,
    /// The disk, counted from 0 as the VM is started with them.
    pub disk: u16,
    /// The partition, 0 if the disk has none.
    pub partition: u16,
    /// Its inode.
    pub inode: u64,
    /// Tells it from the one that had its inode before.
    pub generation: u32,
    /// Bytes of it.
    pub bytes: u64,
    /// `known` if all that was read of it is of a file in the catalog, `modified` if it is like one, else `unknown`.
    pub verdict: String,
    /// What it may be of; if it is modified, what it is like.
    pub candidates: Vec<CandidateReport>,
    /// The file that it is like, if it is modified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestFileReport>,
    /// Its pieces that were read, 4 KiB each or less.
    pub pieces_read: u64,
    /// Those of them that are of one of the candidates.
    pub pieces_known: u64,
    /// Who read it.
    pub readers: Vec<ReaderReport>,
    /// Accesses of which it is not known whose they are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unattributed: u64,
}

/// A file in the catalog that another one is like.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NearestFileReport {
    /// Where the package has it.
    pub path: String,
    /// Which.
    #[serde(flatten)]
    pub package: CandidateReport,
    /// In what they differ; `null` if it is not text, or not all of it was read.
    pub difference: Option<FileDifferenceReport>,
}

/// In what two texts differ.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileDifferenceReport {
    /// Lines that the file in the catalog has not.
    pub lines_added: u64,
    /// Lines that only the file in the catalog has.
    pub lines_removed: u64,
    /// The first of them.
    pub lines: Vec<LineReport>,
}

/// A line that only one of two texts has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LineReport {
    /// Counted from 1, in the text that has it.
    pub number: u64,
    /// The file in the catalog has it not.
    pub added: bool,
    /// Its beginning.
    pub text: String,
}

/// Who read a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReaderReport {
    /// The address space.
    pub address_space: SpaceId,
    /// The program in it; `null` if none was identified.
    pub program: Option<String>,
    /// When it read it for the first time, in nanoseconds since the watch began.
    pub first_ns: u64,
    /// How many bytes of it, each counted once.
    pub bytes: u64,
    /// `copied` (`read(2)` and its like), `mapped` (`mmap(2)`) or `both`; `not known` if the reader was gone before it was looked.
    pub how: String,
}

/// What the watch of files can vouch for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FileCoverage {
    /// Nothing is known to be missing.
    pub complete: bool,
    /// What is missing, and how much of it.
    pub missing: BTreeMap<String, u64>,
}
