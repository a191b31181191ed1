//! Places in an image that a loader or the kernel may rewrite, and with what.

use serde::{Deserialize, Serialize};

/// Which mechanism rewrites a site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SiteKind {
    /// `.altinstructions`.
    Alternative,
    /// `.parainstructions`.
    Paravirt,
    /// `.retpoline_sites`.
    Retpoline,
    /// `.return_sites`.
    ReturnThunk,
    /// `.static_call_sites` and the static-call trampolines.
    StaticCall,
    /// `__jump_table`.
    JumpLabel,
    /// `__mcount_loc` and ftrace's own trampolines.
    Ftrace,
    /// `.smp_locks`.
    SmpLock,
    /// `.ibt_endbr_seal`.
    IbtSeal,
    /// KASLR: the image's own relocations.
    Kaslr,
    /// A module's or firmware's relocation.
    Relocation,
}

/// One place: bytes `[at, at + len)` of its part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Offset in the part.
    pub at: u32,
    /// Length in bytes.
    pub len: u16,
    /// Who rewrites it.
    pub kind: SiteKind,
    /// What it may hold besides the part's own bytes.
    pub values: Vec<Value>,
}

/// One legal content of a site.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Value {
    /// `len` bytes, before the fix-ups.
    pub bytes: Vec<u8>,
}
