//! What `ps`, `top`, `findings` and `why` ask a running watch: one JSON object per line, over the watch's own socket.

use nephoscope_finding::Finding;
use nephoscope_inventory::Report;
use serde::{Deserialize, Serialize};

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// The report as of now.
    Report,
    /// Findings with a number above this one. The answer comes at once; ask again to follow.
    Findings {
        /// 0 for all.
        after: u64,
    },
    /// The evidence for a page.
    Page {
        /// Its number, as reports give it.
        page: u64,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To [`Ask::Report`].
    Report {
        /// The report.
        report: Box<Report>,
    },
    /// To [`Ask::Findings`].
    Findings {
        /// In the order of their numbers.
        findings: Vec<Finding>,
    },
    /// To [`Ask::Page`].
    Page {
        /// The evidence.
        page: Box<PageEvidence>,
    },
    /// There is no such thing.
    Nothing {
        /// What was not found, in words.
        why: String,
    },
}

/// Everything known of one page.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PageEvidence {
    /// Its number.
    pub(crate) page: u64,
    /// `identified`, `modified`, `unknown`.
    pub(crate) verdict: String,
    /// First execution, in nanoseconds since the watch began.
    pub(crate) at_ns: u64,
    /// Virtual address where it first ran.
    pub(crate) va: u64,
    /// Guest-physical address, if known.
    pub(crate) gpa: Option<u64>,
    /// How often its frame had been captured before.
    pub(crate) generation: u32,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub(crate) digest: String,
    /// `user` or `supervisor`.
    pub(crate) privilege: String,
    /// Width of the code segment that ran it first, in bits, if that is known.
    #[serde(default)]
    pub(crate) bits: Option<u8>,
    /// The first byte that ran, from the start of the page, if that is known.
    #[serde(default)]
    pub(crate) first: Option<u16>,
    /// Executed bytes: ranges from the start of the page.
    pub(crate) executed: Vec<(u16, u16)>,
    /// Where these bytes stand, or the nearest place for a modified page.
    pub(crate) places: Vec<PlaceEvidence>,
    /// In how many more files they stand, at least.
    #[serde(default)]
    pub(crate) left_out: u64,
    /// Bytes that differ from the file where they may: kind, sites, bytes.
    pub(crate) sites: Vec<(String, u32, u32)>,
    /// Only the executed bytes were compared, because the page holds data too.
    #[serde(default)]
    pub(crate) executed_only: bool,
    /// What differs and may not: offset, before and after in hexadecimal.
    pub(crate) differences: Vec<(u16, String, String)>,
    /// What is known of where an unknown page came from.
    pub(crate) origin: String,
    /// Address spaces that ran it: number and address there.
    pub(crate) spaces: Vec<(u32, Option<u64>)>,
    /// The page's bytes in hexadecimal, if they were kept (modified and unknown pages).
    pub(crate) bytes: Option<String>,
    /// The nearest page's bytes in hexadecimal, for a modified one.
    pub(crate) nearest_bytes: Option<String>,
}

/// One place where a page stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PlaceEvidence {
    /// Path in the package.
    pub(crate) path: String,
    /// Package, if any.
    pub(crate) package: Option<String>,
    /// Source package.
    pub(crate) source: Option<String>,
    /// Version.
    pub(crate) version: Option<String>,
    /// Link address of the page.
    pub(crate) link: u64,
}
