//! Address spaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use nephoscope_guest::{Gva, PageId, Root};
use serde::{Deserialize, Serialize};

use crate::verdict::Verdict;

/// Names an address space for the length of a watch, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

/// What an address space is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceKind {
    /// A process.
    User,
    /// The kernel, whichever root is loaded.
    Kernel,
    /// Firmware, boot loaders and boot code, before or below the kernel.
    Firmware,
}

/// One address space.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    /// Its number.
    pub id: SpaceId,
    /// The root that it had; 0 for kernel and firmware, which have many.
    pub root: Root,
    /// The driver's number for it, 0 for kernel and firmware.
    pub incarnation: u32,
    /// What it is of.
    pub kind: SpaceKind,
    /// When it first executed.
    pub first_ns: u64,
    /// When it last executed a page for the first time.
    pub last_ns: u64,
    /// When it was seen to have ended.
    pub ended_ns: Option<u64>,
    /// The pages it executed, and where it sees them, as far as that is known.
    pub pages: BTreeMap<PageId, Option<Gva>>,
    /// Pages that it maps and that were looked at to tell versions apart; whether they executed is not known by this.
    pub mapped: BTreeMap<Gva, Arc<Verdict>>,
    /// Goes up with every change, so that what was derived from it can be kept until then.
    pub version: u32,
}

impl AddressSpace {
    /// Whether it was still there when last looked at.
    #[must_use]
    pub fn is_living(&self) -> bool {
        self.ended_ns.is_none()
    }
}
