//! x86-64 with 4 and 5 levels: Intel SDM 3A §4.5, tables 4-13 to 4-20; AMD APM 2 §5.3.

use super::{ACCESSED, DIRTY, GLOBAL, ISOLATION_IGNORES, PRESENT, PS, READ_WRITE_USER_XD, XD};
use crate::facts::{Facts, Feature, Field, Level, Meaning, Test, bits};

const NX: &[(Feature, u64)] = &[(Feature::NoExecute, bits(XD, XD))];

/// Bits 51:12 are an address; those from MAXPHYADDR up must be zero, which is checked on the address.
const TABLE: Meaning = Meaning {
    address: &[Field {
        mask: bits(51, 12),
        left: 0,
    }],
    reserved: 0,
    reserved_without: NX,
    denies: READ_WRITE_USER_XD,
};

/// PML5E and PML4E: PS is reserved (tables 4-14 and 4-15).
const UPPER: Level = Level {
    number: 4,
    shift: 39,
    index_bits: 9,
    present: PRESENT,
    leaf: Test::NEVER,
    as_table: Meaning {
        reserved: bits(PS, PS),
        ..TABLE
    },
    as_leaf: TABLE,
};

/// PDPTE: with PS a 1 GiB page, whose bit 12 is PAT and whose bits 29:13 are reserved (table 4-16).
const PDPT: Level = Level {
    number: 3,
    shift: 30,
    leaf: Test::set(PS),
    as_table: TABLE,
    as_leaf: Meaning {
        address: &[Field {
            mask: bits(51, 30),
            left: 0,
        }],
        reserved: bits(29, 13),
        reserved_without: &[
            (Feature::NoExecute, bits(XD, XD)),
            (Feature::GibPages, bits(PS, PS)),
        ],
        ..TABLE
    },
    ..UPPER
};

/// PDE: with PS a 2 MiB page, whose bit 12 is PAT and whose bits 20:13 are reserved (table 4-18).
const PD: Level = Level {
    number: 2,
    shift: 21,
    leaf: Test::set(PS),
    as_table: TABLE,
    as_leaf: Meaning {
        address: &[Field {
            mask: bits(51, 21),
            left: 0,
        }],
        reserved: bits(20, 13),
        ..TABLE
    },
    ..UPPER
};

/// PTE: bit 7 is PAT, not PS (table 4-20).
const PT: Level = Level {
    number: 1,
    shift: 12,
    leaf: Test::ALWAYS,
    as_table: TABLE,
    ..UPPER
};

/// CR4.LA57 = 0.
pub(crate) static X86_64_4_LEVEL: Facts = FOUR;

const FOUR: Facts = Facts {
    name: "x86-64, 4 levels",
    entry_bytes: 8,
    root_mask: bits(51, 12),
    spaces: &[(0, bits(46, 0)), (bits(63, 47), u64::MAX)],
    levels: &[UPPER, PDPT, PD, PT],
    accessed: ACCESSED,
    dirty: DIRTY,
    global: GLOBAL,
    reserved_when_loaded: 0,
    isolation_ignores: ISOLATION_IGNORES,
};

/// CR4.LA57 = 1.
pub(crate) static X86_64_5_LEVEL: Facts = Facts {
    name: "x86-64, 5 levels",
    spaces: &[(0, bits(55, 0)), (bits(63, 56), u64::MAX)],
    levels: &[
        Level {
            number: 5,
            shift: 48,
            ..UPPER
        },
        UPPER,
        PDPT,
        PD,
        PT,
    ],
    ..FOUR
};
