//! What the catalog answers with.

use nephoscope_recipe::{Facts, Load, ObjectKind, PartKind};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// An object of one opened catalog. A catalog keeps the numbers of its objects when more are added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectId(pub u32);

/// One place where a page's bytes stand: block `number` of the file `object`, linked at `va`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageRef {
    /// Which file.
    pub object: ObjectId,
    /// Byte offset in the file / 4096.
    pub number: u32,
    /// The address of the page's first byte as linked.
    pub va: u64,
    /// Whether an executable segment maps it.
    pub execute: bool,
}

/// One place where a content window stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WindowRef {
    /// Which file.
    pub object: ObjectId,
    /// Index among the object's parts.
    pub part: u16,
    /// Byte offset in the part.
    pub offset: u32,
}

/// What was found under a key, at most so many; the rest only counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found<T> {
    /// The places, sorted. Nearly all pages stand in one: no look-up of these asks for memory.
    pub refs: SmallVec<[T; 2]>,
    /// How many more there were when the catalog was made.
    pub left_out: u64,
}

/// One unique file content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// BLAKE3 of the file.
    pub digest: [u8; 32],
    /// The file's length in bytes.
    pub file_len: u64,
    /// What it is.
    pub kind: ObjectKind,
    /// What it says of itself.
    pub facts: Facts,
    /// Where its bytes go in memory (user ELF only).
    pub loads: Vec<Load>,
    /// Its parts without their bytes; [`crate::Catalog::part`] fetches one.
    pub parts: Vec<PartInfo>,
}

/// A part without its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartInfo {
    /// What it is.
    pub kind: PartKind,
    /// A short name for people.
    pub name: String,
    /// The address of byte 0 as linked.
    pub link: u64,
    /// Where it can start.
    pub placement: nephoscope_recipe::Placement,
    /// Bytes.
    pub len: u64,
}

/// A binary package as its control file names it (Debian Policy 5.3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Package {
    /// `Package`.
    pub name: String,
    /// `Version`.
    pub version: String,
    /// `Architecture`.
    pub architecture: String,
    /// `Source`, or the package's own name.
    pub source: String,
    /// The source's version: the one in brackets after `Source`, or the package's own.
    pub source_version: String,
}

/// Where an object stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// The package that brought it, or `None` for a file outside any package.
    pub package: Option<Package>,
    /// Its path, absolute, as the package names it.
    pub path: String,
    /// Which input it was first seen in: a package file's name, a tree, or `file`.
    pub origin: String,
}

/// How much is in a catalog.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Info {
    /// Unique file contents.
    pub objects: u64,
    /// The same by kind.
    pub kinds: Vec<(ObjectKind, u64)>,
    /// Page digests with their places.
    pub pages: u64,
    /// Content windows with their places.
    pub windows: u64,
    /// Places of pages that are only counted, because their digest has too many.
    pub pages_left_out: u64,
    /// The same for windows.
    pub windows_left_out: u64,
    /// Placements.
    pub placements: u64,
    /// Places of files that are only counted, because the file has too many.
    pub placements_left_out: u64,
    /// Distinct packages (name, version, architecture), and inputs of files outside packages.
    pub sources: u64,
    /// Files on disk.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}
