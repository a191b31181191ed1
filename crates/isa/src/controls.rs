//! Which paging mode a CPU is in.

use std::fmt;
use std::ops::RangeInclusive;

use nephoscope_guest::{Gva, Root};

use crate::facts::{Facts, Feature, SupervisorFetch};
use crate::modes;

/// The registers and CPUID facts of an x86 CPU that decide how it translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86Controls {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER (MSR C000_0080H).
    pub efer: u64,
    /// MAXPHYADDR in bits: CPUID.80000008H:EAX\[7:0\]; 36 where that leaf is missing and PSE-36 is there, else 32.
    pub physical_bits: u8,
    /// CPUID.80000001H:EDX\[26\].
    pub gib_pages: bool,
}

/// A paging mode with everything that its tables' meaning depends on.
#[derive(Clone, Copy)]
pub struct Mode {
    facts: &'static Facts,
    physical_bits: u8,
    no_execute: bool,
    gib_pages: bool,
    global_pages: bool,
    supervisor_fetch: SupervisorFetch,
}

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

impl Mode {
    /// The mode an x86 CPU is in (Intel SDM 3A §4.1.1), or `None` if paging is off and linear addresses are
    /// physical ones.
    #[must_use]
    pub fn x86(controls: &X86Controls) -> Option<Self> {
        let X86Controls {
            cr0,
            cr4,
            efer,
            physical_bits,
            gib_pages,
        } = *controls;
        if cr0 & CR0_PG == 0 {
            return None;
        }
        let facts = match (efer & EFER_LMA != 0, cr4 & CR4_PAE != 0) {
            (true, _) if cr4 & CR4_LA57 != 0 => &modes::X86_64_5_LEVEL,
            (true, _) => &modes::X86_64_4_LEVEL,
            (false, true) => &modes::I386_PAE,
            (false, false) if cr4 & CR4_PSE != 0 => &modes::I386_PSE,
            (false, false) => &modes::I386,
        };
        Some(Self {
            facts,
            physical_bits: physical_bits.clamp(32, 52),
            no_execute: efer & EFER_NXE != 0,
            gib_pages,
            global_pages: cr4 & CR4_PGE != 0,
            supervisor_fetch: if cr4 & CR4_SMEP != 0 {
                SupervisorFetch::NotFromUserPages
            } else {
                SupervisorFetch::Anywhere
            },
        })
    }

    /// Long mode with four levels and all features that change what an entry means: what tables mean to one who does not
    /// need to know more.
    #[must_use]
    pub const fn long() -> Self {
        Self::guess(&modes::X86_64_4_LEVEL)
    }

    const fn guess(facts: &'static Facts) -> Self {
        Self {
            facts,
            physical_bits: 52,
            no_execute: true,
            gib_pages: true,
            global_pages: true,
            supervisor_fetch: SupervisorFetch::Anywhere,
        }
    }

    /// AArch64 stage 1 of EL1&0: 4 KiB granule, 48-bit addresses (TCR_EL1.T0SZ = T1SZ = 16). `physical_bits` is
    /// what TCR_EL1.IPS allows.
    #[must_use]
    pub fn aarch64(physical_bits: u8) -> Self {
        Self {
            facts: &modes::AARCH64_4K_48,
            physical_bits: physical_bits.clamp(32, 48),
            no_execute: true,
            gib_pages: true,
            global_pages: true,
            supervisor_fetch: SupervisorFetch::NotFromUserWritable,
        }
    }

    /// The modes that a guest may be in when its registers are not known, the one of most levels first, with all features that
    /// change what an entry means switched on: execute-disable, 1 GiB pages, addresses of 52 bits.
    ///
    /// Tables of five levels are tables of four too, which map the last level's tables as memory; the other way round, the large
    /// pages of a kernel set bits that are reserved. So the first of these that finds roots is the guest's.
    #[must_use]
    pub const fn guesses() -> [Self; 4] {
        [
            Self::guess(&modes::X86_64_5_LEVEL),
            Self::long(),
            Self::guess(&modes::I386_PAE),
            Self::guess(&modes::I386_PSE),
        ]
    }

    /// The same, with another rule for what the supervisor may execute.
    pub(crate) const fn with_supervisor_fetch(self, supervisor_fetch: SupervisorFetch) -> Self {
        Self {
            supervisor_fetch,
            ..self
        }
    }

    /// The same, with at most so many bits of physical addresses.
    pub(crate) fn with_physical_bits(self, most: u8) -> Self {
        Self {
            physical_bits: self.physical_bits.min(most),
            ..self
        }
    }

    /// The width of most code in this mode, in bits.
    #[must_use]
    pub const fn code_bits(&self) -> u8 {
        if self.facts.spaces.len() > 1 { 64 } else { 32 }
    }

    /// What the mode is called, for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.facts.name
    }

    /// The root that a CR3 or TTBR value names: what it means depends on the mode. A PAE root is aligned to 32 bytes; in long mode these
    /// bits are the PCID (Intel SDM 3A, tables 4-7 and 4-12).
    #[must_use]
    pub const fn root(&self, register: u64) -> Root {
        Root(register & self.facts.root_mask)
    }

    /// The addresses that exist, in ascending intervals: two halves in the 64-bit modes, 4 GiB in the others.
    pub fn spaces(&self) -> impl ExactSizeIterator<Item = RangeInclusive<Gva>> + use<> {
        self.facts
            .spaces
            .iter()
            .map(|&(first, last)| Gva(first)..=Gva(last))
    }

    /// Addresses that are user code's in any case: the lower half. Where a kernel begins is its own choice in a mode without
    /// halves, and above.
    #[must_use]
    pub fn user_half(&self) -> RangeInclusive<Gva> {
        match *self.facts.spaces {
            [(first, last)] => Gva(first)..=Gva(first + (last - first) / 2),
            [(first, last), ..] => Gva(first)..=Gva(last),
            [] => Gva(0)..=Gva(0),
        }
    }

    pub(crate) const fn facts(&self) -> &'static Facts {
        self.facts
    }

    pub(crate) const fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::NoExecute => self.no_execute,
            Feature::GibPages => self.gib_pages,
        }
    }

    pub(crate) const fn global_pages(&self) -> bool {
        self.global_pages
    }

    pub(crate) const fn supervisor_fetch(&self) -> SupervisorFetch {
        self.supervisor_fetch
    }

    /// Whether a physical address is above MAXPHYADDR.
    pub(crate) const fn too_high(&self, address: u64) -> bool {
        address >> self.physical_bits != 0
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mode")
            .field("name", &self.facts.name)
            .field("physical_bits", &self.physical_bits)
            .field("no_execute", &self.no_execute)
            .field("gib_pages", &self.gib_pages)
            .field("global_pages", &self.global_pages)
            .field("supervisor_fetch", &self.supervisor_fetch)
            .finish()
    }
}
