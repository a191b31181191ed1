//! Where a guest sees its memory, if only the VMM's process is known.
//!
//! VMMs give a PC its memory from address 0 up to a gap for devices below 4 GiB, and the rest from 4 GiB on. How far it goes
//! below the gap differs: QEMU's `pc` and `q35` (`hw/i386/pc_piix.c`, `pc_q35.c`), Firecracker and Cloud Hypervisor
//! (their `layout.rs`) are tried. Which it is, the guest's own page tables tell: in a wrong one they lead nowhere.

use nephoscope_guest::Gpa;

use super::maps::Mapping;
use crate::guest_ram::{MemoryKind, RamMap, Segment};

/// Less is no memory of a guest that is worth a look.
pub(super) const LEAST: u64 = 16 << 20;
/// Where the gap begins.
const GAPS: [u64; 5] = [0xc000_0000, 0x8000_0000, 0xb000_0000, 0xd000_0000, 0xe000_0000];
const FOUR_GIB: u64 = 4 << 30;

/// The layouts that there may be, the likeliest first.
pub(super) fn guess(mappings: &[Mapping]) -> Vec<RamMap> {
    let memory = mappings
        .iter()
        .filter(|mapping| mapping.writable && mapping.size() >= LEAST)
        .max_by_key(|mapping| mapping.size());
    let Some(memory) = memory else { return Vec::new() };
    let segment = |gpa, from, size_bytes| Segment {
        gpa: Gpa(gpa),
        hva: crate::guest_ram::Hva(memory.start.0 + from),
        size_bytes,
        kind: MemoryKind::Ram,
    };
    let size = memory.size();
    let mut layouts = Vec::new();
    // Firecracker and Cloud Hypervisor map what is above the gap by itself.
    let above = mappings.iter().find(|other| {
        other.writable && other.size() >= LEAST && other.start != memory.start && other.file == memory.file
    });
    for gap in GAPS {
        let segments = if size <= gap {
            let mut segments = vec![segment(0, 0, size)];
            segments.extend(above.filter(|_| size == gap).map(|above| Segment {
                gpa: Gpa(FOUR_GIB),
                hva: above.start,
                size_bytes: above.size(),
                kind: MemoryKind::Ram,
            }));
            segments
        } else {
            vec![segment(0, 0, gap), segment(FOUR_GIB, gap, size - gap)]
        };
        let Ok(map) = RamMap::of(segments) else { continue };
        if !layouts.contains(&map) {
            layouts.push(map);
        }
    }
    layouts
}

#[cfg(test)]
mod tests {
    use super::super::maps::parse;
    use super::*;

    fn layouts(maps: &str) -> Vec<Vec<(u64, u64, u64)>> {
        guess(&parse(maps))
            .iter()
            .map(|map| {
                let segments = map.segments().iter();
                segments
                    .map(|segment| (segment.gpa.0, segment.hva.0, segment.size_bytes))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn a_small_guest_has_one_layout() {
        let maps = "7f0000000000-7f0040000000 rw-p 00000000 00:00 0 \n55d000000000-55d002000000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(layouts(maps), [[(0, 0x7f00_0000_0000, 1 << 30)]]);
    }

    #[test]
    fn a_large_one_goes_on_at_4_gib_behind_one_of_the_gaps() {
        let all = layouts("7f0000000000-7f0100000000 rw-p 00000000 00:00 0 \n");
        assert_eq!(all.len(), GAPS.len());
        for (layout, gap) in all.iter().zip(GAPS) {
            let expected = [
                (0, 0x7f00_0000_0000, gap),
                (FOUR_GIB, 0x7f00_0000_0000 + gap, FOUR_GIB - gap),
            ];
            assert_eq!(layout.as_slice(), expected);
        }
    }

    #[test]
    fn a_process_without_large_memory_has_none() {
        assert!(layouts("55d000000000-55d000100000 rw-p 00000000 00:00 0 [heap]\n").is_empty());
        assert!(layouts("7f0000000000-7f0040000000 r--p 00000000 08:01 7 /usr/lib/large\n").is_empty());
    }
}
