//! i386 without PAE: Intel SDM 3A §4.3, tables 4-3 to 4-6.

use super::{ACCESSED, DIRTY, GLOBAL, ISOLATION_IGNORES, PRESENT, PS, READ_WRITE_USER};
use crate::facts::{Facts, Field, Level, Meaning, Test, bits};

/// A PDE that names a table and a PTE have no reserved bits.
const TABLE: Meaning = Meaning {
    address: &[Field {
        mask: bits(31, 12),
        left: 0,
    }],
    reserved: 0,
    reserved_without: &[],
    denies: READ_WRITE_USER,
};

/// With PS a 4 MiB page (table 4-4). PSE-36: bits 20:13 are bits 39:32 of the address; those that MAXPHYADDR
/// forbids (all of them on a CPU without PSE-36, whose MAXPHYADDR is 32) and bit 21 are reserved.
const PD: Level = Level {
    number: 2,
    shift: 22,
    index_bits: 10,
    present: PRESENT,
    leaf: Test::set(PS),
    as_table: TABLE,
    as_leaf: Meaning {
        address: &[
            Field {
                mask: bits(31, 22),
                left: 0,
            },
            Field {
                mask: bits(20, 13),
                left: 19,
            },
        ],
        reserved: bits(21, 21),
        ..TABLE
    },
};

/// PTE: bit 7 is PAT (table 4-6).
const PT: Level = Level {
    number: 1,
    shift: 12,
    leaf: Test::ALWAYS,
    as_leaf: TABLE,
    ..PD
};

const BASE: Facts = Facts {
    name: "i386",
    entry_bytes: 4,
    root_mask: bits(31, 12),
    spaces: &[(0, bits(31, 0))],
    // CR4.PSE = 0: PS is ignored (§4.3).
    levels: &[
        Level {
            leaf: Test::NEVER,
            ..PD
        },
        PT,
    ],
    accessed: ACCESSED,
    dirty: DIRTY,
    global: GLOBAL,
    reserved_when_loaded: 0,
    isolation_ignores: ISOLATION_IGNORES,
};

/// CR4.PSE = 0.
pub(crate) static I386: Facts = BASE;

/// CR4.PSE = 1.
pub(crate) static I386_PSE: Facts = Facts {
    name: "i386 with PSE",
    levels: &[PD, PT],
    ..BASE
};
