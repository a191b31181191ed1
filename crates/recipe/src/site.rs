//! Places in an image that a loader or the kernel may rewrite, and with what.
//!
//! A kernel has half a million such places and few distinct ways to rewrite one, so a [`Site`] is three numbers and
//! a kind, and the ways are kept once per part, in [`Values`]. A [`Value`] is a content: fixed bytes, and
//! [`Fix`]es for the fields in it that depend on where things were loaded.
//!
//! ```text
//!  Site { at, len, kind, set } ──► Values.sets[set] = [Value, Value, …]
//!                                   Value { bytes, fixes: [Fix { at, form, to, addend }] }
//!                                   to: Own | Unknown(i) ──► Values.unknowns[i] | OneOf(i) ──► Values.lists[i]
//! ```

use serde::{Deserialize, Serialize};

/// Which mechanism rewrites a site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SiteKind {
    /// `.altinstructions`.
    Alternative,
    /// `.parainstructions`, or an alternative that stands for a direct paravirt call.
    Paravirt,
    /// `.retpoline_sites`.
    Retpoline,
    /// `.return_sites`.
    ReturnThunk,
    /// `.call_sites`, and the padding before functions that call-depth tracking fills.
    CallDepth,
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
    /// `runtime_ptr_*` and `runtime_shift_*`: constants that are computed at boot and written into instructions.
    RuntimeConstant,
    /// KASLR: the image's own relocations.
    Kaslr,
    /// A module's or firmware's relocation.
    Relocation,
    /// An instruction that boot code or firmware completes before it executes it.
    SelfModified,
}

/// One place: bytes `[at, at + len)` of its part. The sites of one part are sorted and do not overlap: where
/// mechanisms nest, one site lists every content that they can produce together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Offset in the part.
    pub at: u32,
    /// Length in bytes.
    pub len: u16,
    /// Who rewrites it. Of nested mechanisms, the first in the order of [`SiteKind`].
    pub kind: SiteKind,
    /// Index in [`Values::sets`]: everything that it may hold.
    pub set: u32,
}

/// One legal content of a site.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Value {
    /// As many bytes as the site, before the fix-ups. Empty: the part's own bytes.
    pub bytes: Vec<u8>,
    /// The fields that depend on addresses.
    pub fixes: Vec<Fix>,
    /// The first byte may be an `int3` for a moment while the rest is already or still this value's
    /// (`text_poke_bp_batch` in `arch/x86/kernel/alternative.c`).
    pub poked: bool,
}

impl Value {
    /// The part's own bytes, as they are.
    #[must_use]
    pub fn own() -> Self {
        Self {
            bytes: Vec::new(),
            fixes: Vec::new(),
            poked: false,
        }
    }

    /// These bytes, whatever the addresses.
    #[must_use]
    pub fn fixed(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            fixes: Vec::new(),
            poked: false,
        }
    }
}

/// A field: `field = field in the bytes + addend + to - (the field's own address, for a pc-relative form)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Fix {
    /// Offset of the field in the value.
    pub at: u16,
    /// Its width and arithmetic.
    pub form: Form,
    /// What it refers to.
    pub to: Target,
    /// Added to it.
    pub addend: i64,
}

/// Width and arithmetic of a field.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// 64 bits, absolute.
    Abs64,
    /// 32 bits, absolute; whether it is sign- or zero-extended is the instruction's business.
    Abs32,
    /// 32 bits, from which the target is subtracted (a per-cpu offset relative to the instruction).
    Negative32,
    /// 32 bits relative to the field's own address.
    Pc32,
    /// 64 bits relative to the field's own address.
    Pc64,
    /// 8 bits, absolute.
    Abs8,
    /// A real-mode segment: 16 bits, the target divided by 16.
    Segment16,
    /// The low 24 bits of [`Form::Pc32`]: a field that is seen half-written.
    Pc24,
}

impl Form {
    /// Width in bytes.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Self::Abs8 => 1,
            Self::Segment16 => 2,
            Self::Pc24 => 3,
            Self::Abs32 | Self::Negative32 | Self::Pc32 => 4,
            Self::Abs64 | Self::Pc64 => 8,
        }
    }

    /// Never: every form has a width.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }
}

/// What a field refers to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Zero: only the addend counts.
    Nothing,
    /// The part itself: the distance from its link address to where it is. With the addend as a link address.
    Own,
    /// `Values::unknowns[i]`, one number for the whole instance.
    Unknown(u16),
    /// Any of the link addresses in `Values::lists[i]`, or a function that the
    /// environment vouches for (`Env::is_function`).
    OneOf(u16),
}

/// A number that is not in the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// How far KASLR moved the kernel: a multiple of 2 MiB below 1 GiB (`arch/x86/boot/compressed/kaslr.c`).
    Slide,
    /// Where a module's section is.
    Section {
        /// Its name.
        name: String,
        /// `sh_addralign`.
        align: u64,
        /// A per-cpu section's base is an offset, not a kernel address.
        per_cpu: bool,
        /// The address that the recipe made up for it.
        link: u64,
        /// Its length.
        len: u64,
    },
    /// A symbol of the kernel or of another module: only the environment can say.
    Symbol(String),
    /// The physical address that the real-mode trampoline was copied to.
    RealModeBase,
    /// A pointer computed at boot (`runtime_ptr_*`).
    RuntimePointer(String),
    /// A shift count computed at boot (`runtime_shift_*`).
    RuntimeShift(String),
    /// How far a piece of firmware that this part refers to was moved.
    Distance(String),
}

/// The list of [`Values::lists`] that has every function that a static call can be pointed at.
pub const FUNCTIONS: u16 = 0;
/// The list of [`Values::lists`] that has every function that a paravirt slot can hold.
pub const PARAVIRT: u16 = 1;

/// What the sites of one part may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Values {
    /// Legal contents of a site, by [`Site::set`].
    pub sets: Vec<Vec<Value>>,
    /// The same table in every part of one object, so that one `Solver` serves the instance.
    pub unknowns: Vec<Unknown>,
    /// The link address that the offsets in `lists` count from.
    pub lists_from: u64,
    /// What a field may refer to, sorted: function starts, mostly.
    pub lists: Vec<Vec<u32>>,
}
