//! AArch64, stage 1 of EL1&0 with the 4 KiB granule and 48-bit addresses: Arm ARM DDI 0487, D8.3 and D8.4.

use crate::facts::{Denials, Facts, Field, Level, Meaning, Test, bits};

/// Table descriptors (D8.3.1): APTable\[1\] (bit 62) denies writes, APTable\[0\] (61) denies EL0, UXNTable (60) and
/// PXNTable (59) deny execution, all of them for everything below. Unused bits are ignored, not reserved.
const TABLE: Meaning = Meaning {
    address: &[Field {
        mask: bits(47, 12),
        left: 0,
    }],
    reserved: 0,
    reserved_without: &[],
    denies: Denials {
        write: Test::set(62),
        user: Test::set(61),
        execute_user: Test::set(60),
        execute_supervisor: Test::set(59),
    },
};

/// Block and page descriptors (D8.3.2): AP\[2\] (bit 7) denies writes, AP\[1\] (6) allows EL0, UXN (54) and PXN (53)
/// deny execution.
const PAGE: Meaning = Meaning {
    denies: Denials {
        write: Test::set(7),
        user: Test::clear(6),
        execute_user: Test::set(54),
        execute_supervisor: Test::set(53),
    },
    ..TABLE
};

/// Bits 1:0: 3 is a table or (at level 3) a page, 1 is a block where there are blocks, anything else is invalid.
const TABLE_OR_PAGE: Test = Test::bits(bits(1, 0), 3);

/// Level 0 has no blocks in this granule.
const L0: Level = Level {
    number: 4,
    shift: 39,
    index_bits: 9,
    present: TABLE_OR_PAGE,
    leaf: Test::NEVER,
    as_table: TABLE,
    as_leaf: PAGE,
};

const L1: Level = Level {
    number: 3,
    shift: 30,
    present: Test::set(0),
    leaf: Test::clear(1),
    as_leaf: Meaning {
        address: &[Field {
            mask: bits(47, 30),
            left: 0,
        }],
        ..PAGE
    },
    ..L0
};

const L2: Level = Level {
    number: 2,
    shift: 21,
    as_leaf: Meaning {
        address: &[Field {
            mask: bits(47, 21),
            left: 0,
        }],
        ..PAGE
    },
    ..L1
};

const L3: Level = Level {
    number: 1,
    shift: 12,
    present: TABLE_OR_PAGE,
    leaf: Test::ALWAYS,
    as_leaf: PAGE,
    ..L0
};

/// TTBR0_EL1 serves the lower space, TTBR1_EL1 the upper one; whoever walks chooses the root by bit 55. Bits 63:48
/// of a TTBR are the ASID, bit 0 is CnP.
pub(crate) static AARCH64_4K_48: Facts = Facts {
    name: "AArch64, 4 KiB granule, 48 bits",
    entry_bytes: 8,
    root_mask: bits(47, 12),
    spaces: &[(0, bits(47, 0)), (bits(63, 48), u64::MAX)],
    levels: &[L0, L1, L2, L3],
    // AF.
    accessed: Test::set(10),
    // DBM (bit 51) with AP[2] clear: "writable-dirty" (D8.4.6). Without hardware management it is never true.
    dirty: Test::bits(bits(51, 51) | bits(7, 7), bits(51, 51)),
    // nG.
    global: Test::clear(11),
    reserved_when_loaded: 0,
    isolation_ignores: bits(60, 59),
};
