//! i386 with PAE: Intel SDM 3A §4.4, tables 4-8 to 4-11.

use super::{ACCESSED, DIRTY, GLOBAL, ISOLATION_IGNORES, PRESENT, PS, READ_WRITE_USER_XD, XD};
use crate::facts::{Denials, Facts, Feature, Field, Level, Meaning, Test, bits};

/// Unlike in the 64-bit modes, bits 62:52 are reserved too.
const TABLE: Meaning = Meaning {
    address: &[Field {
        mask: bits(51, 12),
        left: 0,
    }],
    reserved: bits(62, 52),
    reserved_without: &[(Feature::NoExecute, bits(XD, XD))],
    denies: READ_WRITE_USER_XD,
};

/// The four PDPTEs carry no rights. Table 4-8 reserves their bits 2:1 and 8:5 too, but a CPU looks at those only when
/// it loads them into its registers, with CR3 (§4.4.1), and walks from there whatever memory says later; QEMU's TCG
/// ignores them altogether and even sets bit 5, accessed, in memory. To refuse them would hide what such a guest
/// runs, so they are ignored here.
const PDPT: Level = Level {
    number: 3,
    shift: 30,
    index_bits: 2,
    present: PRESENT,
    leaf: Test::NEVER,
    as_table: Meaning {
        reserved: bits(63, 52),
        reserved_without: &[],
        denies: Denials::NONE,
        ..TABLE
    },
    as_leaf: TABLE,
};

/// PDE: with PS a 2 MiB page, whose bit 12 is PAT and whose bits 20:13 are reserved (table 4-9).
const PD: Level = Level {
    number: 2,
    shift: 21,
    index_bits: 9,
    leaf: Test::set(PS),
    as_table: TABLE,
    as_leaf: Meaning {
        address: &[Field {
            mask: bits(51, 21),
            left: 0,
        }],
        reserved: bits(62, 52) | bits(20, 13),
        ..TABLE
    },
    ..PDPT
};

/// PTE: bit 7 is PAT (table 4-11).
const PT: Level = Level {
    number: 1,
    shift: 12,
    leaf: Test::ALWAYS,
    as_leaf: TABLE,
    ..PD
};

/// Of a PDPTE, bits 2:1 and 8:6 are reserved when it is loaded (and bit 5, which TCG sets in memory).
/// The top table has 4 entries and is aligned to 32 bytes: CR3 bits 31:5 (table 4-7).
pub(crate) static I386_PAE: Facts = Facts {
    name: "i386 with PAE",
    entry_bytes: 8,
    root_mask: bits(31, 5),
    spaces: &[(0, bits(31, 0))],
    levels: &[PDPT, PD, PT],
    accessed: ACCESSED,
    dirty: DIRTY,
    global: GLOBAL,
    reserved_when_loaded: bits(2, 1) | bits(8, 6),
    isolation_ignores: ISOLATION_IGNORES,
};
