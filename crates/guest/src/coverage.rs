//! What the monitor can vouch for, interval by interval.

use serde::{Deserialize, Serialize};

/// How much of the executed code was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeCoverage {
    /// Every executed page was captured.
    Complete,
    /// Pages were looked at from time to time.
    Sampled,
    /// Nothing can be said.
    Blind,
}

/// How surely executions are attributed to address spaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribution {
    /// Every first execution of a page by an address space is named.
    Complete,
    /// The first address space is named, others from time to time.
    Sampled,
    /// Executions cannot be attributed.
    Blind,
}

/// What can be vouched for at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Coverage {
    /// Of code.
    pub code: CodeCoverage,
    /// Of attribution to address spaces.
    pub attribution: Attribution,
}

impl Coverage {
    /// Everything was seen.
    pub const COMPLETE: Self = Self {
        code: CodeCoverage::Complete,
        attribution: Attribution::Complete,
    };
    /// Nothing was seen.
    pub const BLIND: Self = Self {
        code: CodeCoverage::Blind,
        attribution: Attribution::Blind,
    };
}

/// Why a driver could not see, or not all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GapReason {
    /// No monitor was attached.
    Detached,
    /// A ring stayed full past the bound; frames were dropped.
    RingFull,
    /// The driver ran out of marks, so that executions by further address spaces are not attributed.
    MarksExhausted,
    /// A root changed by a way that gives no event; what ran around it is not attributed exactly.
    RootChangedUnseen,
    /// The bytes of a code page could not be read.
    PageUnreadable,
    /// The bytes of a code page could be read, but not the frame they lie in.
    FrameUnknown,
    /// The driver itself failed inside a callback and went on.
    DriverFault,
    /// The VMM ended without saying so.
    DriverLost,
    /// The monitor did not keep up and dropped what it held back.
    MonitorOverrun,
    /// An address space executed a page whose contents never came.
    PageMissing,
    /// The VM was migrated: it runs elsewhere, under another watch.
    Migrated,
    /// The guest's page tables could not be read, so that ends of address spaces and mapped pages are unknown.
    MemoryUnreadable,
    /// Memory was looked at from time to time; what ran in between and was gone again is not known.
    LookedAtTimes,
    /// The driver names the first address space that runs a page; others are found by looking at page tables now and then.
    AttributionSampled,
    /// Address spaces came and went faster than they were looked at: some, by an estimate, were seen never.
    AddressSpacesMissed,
    /// Devices could write to code that was captured before, and nobody would tell.
    DeviceWritesUnseen,
    /// The guest ran guests of its own, whose code is not seen.
    NestedGuestUnseen,
}
