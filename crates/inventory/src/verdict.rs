//! What a code page is, and on what evidence.

use nephoscope_catalog::ObjectId;
use nephoscope_recipe::SiteKind;
use serde::{Deserialize, Serialize};

/// Where a page's bytes stand in a known file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The file.
    pub object: ObjectId,
    /// The part, for images that rewrite or move themselves; `None` for a block of a user ELF file.
    pub part: Option<u16>,
    /// The link address of the page's first byte; for a part that can lie anywhere, its offset in the part.
    pub link: u64,
}

/// A verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// Every byte is what a known file's recipe allows.
    Identified(Identified),
    /// Near a known file's page, but not what its recipe allows.
    Modified(Modified),
    /// Neither.
    Unknown(Unknown),
}

/// Evidence of an identified page.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Identified {
    /// Every place where these bytes stand. More than one until other pages decide.
    pub places: Vec<Place>,
    /// Places beyond those that a lookup returns.
    pub left_out: u64,
    /// Bytes that differ from the file at places where they may: kind, sites, bytes.
    pub sites: Vec<(SiteKind, u32, u32)>,
    /// Only the executed bytes were compared, because the page holds data too (firmware, boot code).
    pub executed_only: bool,
}

/// One run of bytes that is not what it must be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Difference {
    /// From the start of the page.
    pub offset: u16,
    /// The file's bytes.
    pub before: Vec<u8>,
    /// The bytes found.
    pub after: Vec<u8>,
}

/// Evidence of a modified page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Modified {
    /// The nearest page of a known file.
    pub nearest: Place,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// What is known of an unknown page.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Unknown {
    /// One line: where it came from, as far as that was seen.
    pub origin: String,
    /// Laid out as the kernel's own JIT lays out what it makes.
    pub jit: bool,
    /// It may be known yet: code of a file agrees with it as far as that can be told now.
    #[serde(default)]
    pub undecided: bool,
}

impl Verdict {
    /// How many more files a page may be of than are listed, at least.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        match self {
            Self::Identified(found) => found.left_out,
            _ => 0,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Identified(_) => "identified",
            Self::Modified(_) => "modified",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Places that it may be of; for a modified page the nearest one.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        match self {
            Self::Identified(identified) => &identified.places,
            Self::Modified(modified) => std::slice::from_ref(&modified.nearest),
            Self::Unknown(_) => &[],
        }
    }
}
