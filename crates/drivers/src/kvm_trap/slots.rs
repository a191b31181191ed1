//! Where the guest sees its memory, as KVM knows it: whatever the VMM is, and without asking it.

use std::os::fd::OwnedFd;

use nephoscope_guest::Gpa;

use super::KvmTrapError;
use super::device::{self, Slot};
use crate::guest_ram::{Hva, MemoryKind, RamMap, Segment};

/// The memory slots of a watched VM.
#[derive(Debug)]
pub struct KvmSlots {
    watch: OwnedFd,
}

impl KvmSlots {
    pub(super) fn of(watch: OwnedFd) -> Self {
        Self { watch }
    }

    /// As they are now.
    ///
    /// # Errors
    /// If the module refuses.
    pub fn map(&self) -> Result<RamMap, KvmTrapError> {
        Ok(map(&device::slots(&self.watch).map_err(KvmTrapError::Refused)?))
    }
}

/// Slots of one address space do not overlap, by KVM's own rule. Should they, nothing is known.
pub(super) fn map(slots: &[Slot]) -> RamMap {
    let is_one = |slot: &&Slot| {
        let ends = [slot.gpa, slot.hva].map(|at| at.checked_add(slot.bytes));
        slot.bytes > 0 && ends.iter().all(Option::is_some)
    };
    let segments = slots.iter().filter(is_one).map(|slot| Segment {
        gpa: Gpa(slot.gpa),
        hva: Hva(slot.hva),
        size_bytes: slot.bytes,
        kind: if slot.read_only == 0 {
            MemoryKind::Ram
        } else {
            MemoryKind::Rom
        },
    });
    RamMap::of(segments.collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(gpa: u64, bytes: u64, hva: u64, read_only: u32) -> Slot {
        Slot {
            read_only,
            ..Slot::of(gpa, bytes, hva)
        }
    }

    #[test]
    fn slots_in_any_order_are_a_map_both_ways() {
        let map = map(&[
            slot(4 << 30, 1 << 30, 0x7f01_0000_0000, 0),
            slot(0, 0xa_0000, 0x7f00_0000_0000, 0),
            slot(0xfffc_0000, 0x4_0000, 0x7f02_0000_0000, 1),
        ]);
        assert_eq!(map.hva_of(Gpa((4 << 30) + 5)), Some(Hva(0x7f01_0000_0005)));
        assert_eq!(map.gpa_of(Hva(0x7f00_0000_1000)), Some(Gpa(0x1000)));
        assert_eq!(map.hva_of(Gpa(0xa_0000)), None);
        let kinds: Vec<MemoryKind> = map.segments().iter().map(|segment| segment.kind).collect();
        assert_eq!(kinds, [MemoryKind::Ram, MemoryKind::Rom, MemoryKind::Ram]);
    }

    #[test]
    fn what_is_no_memory_is_left_out() {
        assert!(
            map(&[slot(0, 0, 0, 0), slot(u64::MAX, 0x1000, 0, 0)])
                .segments()
                .is_empty()
        );
        let overlapping = [slot(0, 0x2000, 0x1000, 0), slot(0x1000, 0x1000, 0x9000, 0)];
        assert!(map(&overlapping).segments().is_empty());
    }
}
