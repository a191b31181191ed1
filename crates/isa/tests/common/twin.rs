//! A walker that is unrolled by hand, level after level: what the real one is compared with, in tests and under the
//! fuzzer (`fuzz/src/walk.rs`).
#![allow(
    clippy::expect_used,
    reason = "a test helper, outside of what clippy takes for a test"
)]

use nephoscope_guest::{Gpa, PhysicalMemory};
use nephoscope_isa::{Mode, X86Controls};

const PG: u64 = 1 << 31;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const LA57: u64 = 1 << 12;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

/// Address, size, writable, user, executable by users.
pub(crate) type Mapping = (u64, u64, bool, bool, bool);

/// The twin.
#[derive(Clone, Copy)]
pub(crate) struct Twin<'a> {
    pub(crate) memory: &'a dyn PhysicalMemory,
    pub(crate) physical_bits: u32,
    pub(crate) nxe: bool,
}

impl Twin<'_> {
    fn read8(&self, at: u64) -> Option<u64> {
        let mut raw = [0; 8];
        self.memory.read(Gpa(at), &mut raw).ok()?;
        Some(u64::from_le_bytes(raw))
    }

    fn read4(&self, at: u64) -> Option<u64> {
        let mut raw = [0; 4];
        self.memory.read(Gpa(at), &mut raw).ok()?;
        Some(u64::from(u32::from_le_bytes(raw)))
    }

    /// A present 8-byte entry without the reserved bits that all levels share.
    fn entry(&self, at: u64) -> Option<u64> {
        let entry = self.read8(at)?;
        let present = entry % 2 == 1;
        let high = entry % (1 << 52) >= 1 << self.physical_bits;
        let nx_reserved = entry >> 63 == 1 && !self.nxe;
        (present && !high && !nx_reserved).then_some(entry)
    }

    fn five(&self, root: u64, va: u64) -> Option<Mapping> {
        let sign = va >> 56;
        if sign != 0 && sign != 0xff {
            return None;
        }
        let top = self.entry(root + 8 * (va >> 48 & 511))?;
        if top >> 7 & 1 == 1 {
            return None;
        }
        let (address, size, w, u, x) = self.below_five(top & 0xf_ffff_ffff_f000, va)?;
        Some((
            address,
            size,
            w && top >> 1 & 1 == 1,
            u && top >> 2 & 1 == 1,
            x && top >> 2 & 1 == 1 && top >> 63 == 0,
        ))
    }

    fn four(&self, root: u64, va: u64) -> Option<Mapping> {
        let sign = va >> 47;
        if sign != 0 && sign != 0x1_ffff {
            None
        } else {
            self.below_five(root, va)
        }
    }

    fn below_five(&self, root: u64, va: u64) -> Option<Mapping> {
        let e4 = self.entry(root + 8 * (va >> 39 & 511))?;
        if e4 >> 7 & 1 == 1 {
            return None;
        }
        let e3 = self.entry((e4 & 0xf_ffff_ffff_f000) + 8 * (va >> 30 & 511))?;
        let w = e4 >> 1 & e3 >> 1 & 1 == 1;
        let u = e4 >> 2 & e3 >> 2 & 1 == 1;
        let x = (e4 | e3) >> 63 == 0;
        if e3 >> 7 & 1 == 1 {
            let address = (e3 & 0xf_ffff_c000_0000) + va % (1 << 30);
            return (e3 & 0x3fff_e000 == 0).then_some((address, 1 << 30, w, u, u && x));
        }
        let e2 = self.entry((e3 & 0xf_ffff_ffff_f000) + 8 * (va >> 21 & 511))?;
        let w = w && e2 >> 1 & 1 == 1;
        let u = u && e2 >> 2 & 1 == 1;
        let x = x && e2 >> 63 == 0;
        if e2 >> 7 & 1 == 1 {
            let address = (e2 & 0xf_ffff_ffe0_0000) + va % (1 << 21);
            return (e2 & 0x1f_e000 == 0).then_some((address, 1 << 21, w, u, u && x));
        }
        let e1 = self.entry((e2 & 0xf_ffff_ffff_f000) + 8 * (va >> 12 & 511))?;
        let w = w && e1 >> 1 & 1 == 1;
        let u = u && e1 >> 2 & 1 == 1;
        let x = x && e1 >> 63 == 0;
        Some(((e1 & 0xf_ffff_ffff_f000) + va % 4096, 4096, w, u, u && x))
    }

    fn pae(&self, root: u64, va: u64) -> Option<Mapping> {
        if va >> 32 != 0 {
            return None;
        }
        let e3 = self.read8(root + 8 * (va >> 30))?;
        if e3 & 1 == 0 || e3 >> self.physical_bits != 0 {
            return None;
        }
        let e2 = self.entry((e3 & 0xf_ffff_ffff_f000) + 8 * (va >> 21 & 511))?;
        if e2 >> 52 & 0x7ff != 0 {
            return None;
        }
        let (w, u, x) = (e2 >> 1 & 1 == 1, e2 >> 2 & 1 == 1, e2 >> 63 == 0);
        if e2 >> 7 & 1 == 1 {
            let address = (e2 & 0xf_ffff_ffe0_0000) + va % (1 << 21);
            return (e2 & 0x1f_e000 == 0).then_some((address, 1 << 21, w, u, u && x));
        }
        let e1 = self.entry((e2 & 0xf_ffff_ffff_f000) + 8 * (va >> 12 & 511))?;
        if e1 >> 52 & 0x7ff != 0 {
            return None;
        }
        let (w, u, x) = (w && e1 >> 1 & 1 == 1, u && e1 >> 2 & 1 == 1, x && e1 >> 63 == 0);
        Some(((e1 & 0xf_ffff_ffff_f000) + va % 4096, 4096, w, u, u && x))
    }

    fn classic(&self, root: u64, va: u64) -> Option<Mapping> {
        if va >> 32 != 0 {
            return None;
        }
        let pde = self.read4(root + 4 * (va >> 22))?;
        if pde & 1 == 0 {
            return None;
        }
        let (w, u) = (pde >> 1 & 1 == 1, pde >> 2 & 1 == 1);
        if pde >> 7 & 1 == 1 {
            let address = ((pde >> 13 & 0xff) << 32) + (pde & 0xffc0_0000) + va % (1 << 22);
            let fine = pde >> 21 & 1 == 0 && address >> self.physical_bits == 0;
            return fine.then_some((address, 1 << 22, w, u, u));
        }
        let pte = self.read4((pde & 0xffff_f000) + 4 * (va >> 12 & 1023))?;
        let (w, u) = (w && pte >> 1 & 1 == 1, u && pte >> 2 & 1 == 1);
        (pte & 1 == 1).then_some(((pte & 0xffff_f000) + va % 4096, 4096, w, u, u))
    }
}

impl Twin<'_> {
    fn aarch64(&self, root: u64, va: u64) -> Option<Mapping> {
        if va >> 48 != 0 && va >> 48 != 0xffff {
            return None;
        }
        let low = |address: u64| (address >> self.physical_bits == 0).then_some(address);
        let d0 = self.read8(root + 8 * (va >> 39 & 511))?;
        if d0 & 3 != 3 {
            return None;
        }
        let d1 = self.read8(low(d0 & 0xffff_ffff_f000)? + 8 * (va >> 30 & 511))?;
        if d1 & 1 == 0 {
            return None;
        }
        if d1 & 2 == 0 {
            let base = low(d1 & 0xffff_c000_0000)?;
            return Some(Self::aarch64_leaf(base + va % (1 << 30), 1 << 30, d0, d1));
        }
        let d2 = self.read8(low(d1 & 0xffff_ffff_f000)? + 8 * (va >> 21 & 511))?;
        if d2 & 1 == 0 {
            return None;
        }
        if d2 & 2 == 0 {
            let base = low(d2 & 0xffff_ffe0_0000)?;
            return Some(Self::aarch64_leaf(base + va % (1 << 21), 1 << 21, d0 | d1, d2));
        }
        let d3 = self.read8(low(d2 & 0xffff_ffff_f000)? + 8 * (va >> 12 & 511))?;
        if d3 & 3 != 3 {
            return None;
        }
        let base = low(d3 & 0xffff_ffff_f000)?;
        Some(Self::aarch64_leaf(base + va % 4096, 4096, d0 | d1 | d2, d3))
    }

    /// `tables` is the OR of the table descriptors, whose bits only take rights away.
    fn aarch64_leaf(address: u64, size: u64, tables: u64, leaf: u64) -> Mapping {
        let w = tables >> 62 & 1 == 0 && leaf >> 7 & 1 == 0;
        let u = tables >> 61 & 1 == 0 && leaf >> 6 & 1 == 1;
        let x = tables >> 60 & 1 == 0 && leaf >> 54 & 1 == 0;
        (address, size, w, u, u && x)
    }
}

/// MAXPHYADDR of the modes here.
pub(crate) const PHYSICAL_BITS: u8 = 36;
/// The root that everything hangs from.
pub(crate) const ROOT: u64 = 0x1000;

/// A paging mode.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Five,
    Four,
    Pae,
    Classic,
    Aarch64,
}

impl Kind {
    pub(crate) fn mode(self, nxe: bool) -> Mode {
        let (cr4, lma) = match self {
            Self::Five => (PAE | LA57, LMA),
            Self::Four => (PAE, LMA),
            Self::Pae => (PAE, 0),
            Self::Classic => (PSE, 0),
            Self::Aarch64 => return Mode::aarch64(PHYSICAL_BITS),
        };
        let efer = lma | if nxe { NXE } else { 0 };
        let controls = X86Controls {
            cr0: PG,
            cr4: cr4 | PGE,
            efer,
            physical_bits: PHYSICAL_BITS,
            gib_pages: true,
        };
        Mode::x86(&controls).expect("paging is on")
    }

    pub(crate) fn translate(self, twin: &Twin<'_>, va: u64) -> Option<Mapping> {
        match self {
            Self::Five => twin.five(ROOT, va),
            Self::Four => twin.four(ROOT, va),
            Self::Pae => twin.pae(ROOT, va),
            Self::Classic => twin.classic(ROOT, va),
            Self::Aarch64 => twin.aarch64(ROOT, va),
        }
    }

    /// Every address that is made of these slots on each level.
    pub(crate) fn probes(self) -> Vec<u64> {
        let levels: &[(u32, &[u64])] = match self {
            Self::Five => &[(48, SLOTS), (39, SLOTS), (30, SLOTS), (21, SLOTS), (12, SLOTS)],
            Self::Four | Self::Aarch64 => &[(39, SLOTS), (30, SLOTS), (21, SLOTS), (12, SLOTS)],
            Self::Pae => &[(30, &[0, 1]), (21, SLOTS), (12, SLOTS)],
            Self::Classic => &[(22, SLOTS_4), (12, SLOTS_4)],
        };
        let mut probes = vec![0];
        for (shift, slots) in levels {
            probes = probes
                .iter()
                .flat_map(|va| slots.iter().map(move |slot| va | slot << shift))
                .collect();
        }
        let sign = match self {
            Self::Five => 56,
            Self::Four => 47,
            Self::Pae | Self::Classic => return probes,
            Self::Aarch64 => {
                let high: Vec<_> = probes.iter().map(|va| va | 0xffff << 48).collect();
                return [probes, high].concat();
            }
        };
        probes
            .into_iter()
            .map(|va| {
                if va >> sign & 1 == 1 {
                    va | u64::MAX << sign
                } else {
                    va
                }
            })
            .collect()
    }
}

/// 8-byte slots that are filled, and the 4-byte slots that they cover.
pub(crate) const SLOTS: &[u64] = &[0, 1, 511];
const SLOTS_4: &[u64] = &[0, 1, 2, 3, 1022, 1023];
