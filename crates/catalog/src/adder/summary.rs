//! What became of the inputs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::limits::MAX_REFUSALS_LISTED;

/// How far the work is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of inputs that are done.
    pub done: u64,
    /// Bytes of all inputs.
    pub total: u64,
    /// The input that is worked on.
    pub input: String,
}

/// Something that was not taken, and why.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Refusal {
    /// The input: a package or a root.
    pub input: String,
    /// The file in it; empty for the whole input.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What was added, skipped and refused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Summary {
    /// Whether the catalog is another one now.
    pub changed: bool,
    /// Packages that were read to their end.
    pub packages: u64,
    /// Regular files seen.
    pub files: u64,
    /// Files that hold code of a known kind.
    pub recognised: u64,
    /// Files that hold no code.
    pub no_code: u64,
    /// Other names of files.
    pub hard_links: u64,
    /// Symbolic links, which name no contents of their own.
    pub symbolic_links: u64,
    /// Devices, pipes and sockets.
    pub devices: u64,
    /// Files of a root that are not as their package brought them, and are kept as files outside any package.
    pub altered: u64,
    /// New file contents.
    pub objects_added: u64,
    /// New placements.
    pub placements_added: u64,
    /// Placements over the bound per file.
    pub placements_left_out: u64,
    /// What was refused; the first thousand.
    pub refused: Vec<Refusal>,
    /// How many were refused.
    pub refused_total: u64,
    /// Bytes unpacked and looked at.
    pub bytes: u64,
}

/// The summary while many threads add to it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) packages: AtomicU64,
    pub(crate) files: AtomicU64,
    pub(crate) recognised: AtomicU64,
    pub(crate) no_code: AtomicU64,
    pub(crate) hard_links: AtomicU64,
    pub(crate) symbolic_links: AtomicU64,
    pub(crate) devices: AtomicU64,
    pub(crate) altered: AtomicU64,
    pub(crate) bytes: AtomicU64,
    refused: Mutex<Vec<Refusal>>,
    refused_total: AtomicU64,
}

/// What the store counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct StoreCounts {
    pub(crate) objects: u64,
    pub(crate) placements: u64,
    pub(crate) placements_left_out: u64,
}

/// Counts one.
pub(crate) fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn refuse(&self, input: &str, path: &str, reason: impl Into<String>) {
        one(&self.refused_total);
        let mut refused = self
            .refused
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if refused.len() < MAX_REFUSALS_LISTED {
            refused.push(Refusal {
                input: input.to_owned(),
                path: path.to_owned(),
                reason: reason.into(),
            });
        }
    }

    pub(crate) fn summary(self, counts: StoreCounts, changed: bool) -> Summary {
        let mut refused = self
            .refused
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        refused.sort();
        Summary {
            changed,
            packages: self.packages.into_inner(),
            files: self.files.into_inner(),
            recognised: self.recognised.into_inner(),
            no_code: self.no_code.into_inner(),
            hard_links: self.hard_links.into_inner(),
            symbolic_links: self.symbolic_links.into_inner(),
            devices: self.devices.into_inner(),
            altered: self.altered.into_inner(),
            objects_added: counts.objects,
            placements_added: counts.placements,
            placements_left_out: counts.placements_left_out,
            refused,
            refused_total: self.refused_total.into_inner(),
            bytes: self.bytes.into_inner(),
        }
    }
}
