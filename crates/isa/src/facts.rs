//! The shape of a paging mode as data. The tables themselves are in `modes/`.

/// A condition on the bits of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    mask: u64,
    value: u64,
}

impl Test {
    /// Holds for every entry.
    pub(crate) const ALWAYS: Self = Self { mask: 0, value: 0 };
    /// Holds for no entry.
    pub(crate) const NEVER: Self = Self { mask: 0, value: 1 };

    /// Holds if this bit is 1.
    pub(crate) const fn set(bit: u8) -> Self {
        Self {
            mask: 1 << bit,
            value: 1 << bit,
        }
    }

    /// Holds if this bit is 0.
    pub(crate) const fn clear(bit: u8) -> Self {
        Self {
            mask: 1 << bit,
            value: 0,
        }
    }

    /// Holds if the bits under `mask` equal `value`.
    pub(crate) const fn bits(mask: u64, value: u64) -> Self {
        Self { mask, value }
    }

    pub(crate) const fn holds(self, entry: u64) -> bool {
        entry & self.mask == self.value
    }
}

/// Bits of an entry that are bits of an address: those under `mask`, moved left by `left`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) mask: u64,
    pub(crate) left: u8,
}

/// What a CPU can have or have switched on, and entries depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Feature {
    /// EFER.NXE: bit 63 denies execution; without it, it is reserved.
    NoExecute,
    /// CPUID.80000001H:EDX\[26\]: 1 GiB pages; without it, PS in a PDPTE is reserved.
    GibPages,
}

/// When an entry takes a right away. An address has the rights that no entry on its way denies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denials {
    pub(crate) write: Test,
    pub(crate) user: Test,
    pub(crate) execute_user: Test,
    pub(crate) execute_supervisor: Test,
}

impl Denials {
    /// Takes nothing away.
    pub(crate) const NONE: Self = Self {
        write: Test::NEVER,
        user: Test::NEVER,
        execute_user: Test::NEVER,
        execute_supervisor: Test::NEVER,
    };
}

/// What an entry means, once it is known whether it is a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meaning {
    /// Where the next table or the mapped memory is.
    pub(crate) address: &'static [Field],
    /// Bits that must be zero.
    pub(crate) reserved: u64,
    /// Bits that must be zero unless the CPU has the feature.
    pub(crate) reserved_without: &'static [(Feature, u64)],
    pub(crate) denies: Denials,
}

/// One level of tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    /// 1 is the last level, whatever the manual calls it.
    pub(crate) number: u8,
    /// The lowest bit of an address that chooses an entry here; an entry spans `1 << shift` bytes.
    pub(crate) shift: u8,
    /// How many bits choose an entry.
    pub(crate) index_bits: u8,
    pub(crate) present: Test,
    /// Whether a present entry maps memory; otherwise it names a table of the next level.
    pub(crate) leaf: Test,
    pub(crate) as_table: Meaning,
    pub(crate) as_leaf: Meaning,
}

/// Who may not fetch instructions from a page although no entry denies it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SupervisorFetch {
    /// Nobody.
    Anywhere,
    /// The supervisor, from user pages (x86 CR4.SMEP, Intel SDM 3A §4.6.1).
    NotFromUserPages,
    /// The supervisor, from pages that users can write (Arm ARM D8.4.2: such a page is treated as PXN).
    NotFromUserWritable,
}

/// A paging mode.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) name: &'static str,
    /// 4 or 8, little-endian.
    pub(crate) entry_bytes: u8,
    /// Bits of the root register that are the address of the top table.
    pub(crate) root_mask: u64,
    /// The addresses that exist, first and last of each interval, ascending.
    pub(crate) spaces: &'static [(u64, u64)],
    /// From the top down; the last level has only leaves.
    pub(crate) levels: &'static [Level],
    pub(crate) accessed: Test,
    pub(crate) dirty: Test,
    pub(crate) global: Test,
    /// Bits of a top-level entry that must be zero when the CPU loads the root, and that it does not look at later.
    pub(crate) reserved_when_loaded: u64,
    /// Bits of a top-level entry in which the two tables of one isolated address space may differ.
    pub(crate) isolation_ignores: u64,
}

/// The bits `high..=low` of an entry.
pub(crate) const fn bits(high: u8, low: u8) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Level {
    /// Which entry an address chooses.
    pub(crate) const fn index(&self, va: u64) -> u64 {
        (va >> self.shift) & (self.entries() - 1)
    }

    /// Entries in a table of this level.
    pub(crate) const fn entries(&self) -> u64 {
        1 << self.index_bits
    }

    /// Bytes that one entry spans.
    pub(crate) const fn span(&self) -> u64 {
        1 << self.shift
    }
}
