//! One address through the page tables, for an instruction that crosses into a page.

use nephoscope_guest::{Gpa, PhysicalMemory};

use crate::registers::CpuState;

/// Frame bits of a table entry (Intel SDM 3A, table 4-14 ff.): 51:12.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Present.
const PRESENT: u64 = 1;
/// Page size: the entry is a leaf.
const LEAF: u64 = 1 << 7;

/// Translates a virtual address in long mode or without paging, for an instruction that crosses into a page. Any doubt
/// is `None`: the page is then captured without its frame.
pub(crate) fn walk(
    memory: &impl PhysicalMemory,
    state: CpuState,
    cr3: u64,
    five_levels: bool,
    va: u64,
) -> Option<u64> {
    if !state.paging {
        return Some(va);
    }
    if !state.long {
        return None;
    }
    let levels = if five_levels { 5 } else { 4 };
    let mut frame = cr3 & FRAME;
    for level in (0..levels).rev() {
        let number = va >> (12 + 9 * level) & 511;
        let mut bytes = [0; 8];
        memory.read(Gpa(frame + number * 8), &mut bytes).ok()?;
        let entry = u64::from_le_bytes(bytes);
        if entry & PRESENT == 0 {
            return None;
        }
        // Levels 1 and 2 may be leaves of 2 MiB and 1 GiB, whose low frame bits are flags.
        if level > 0 && entry & LEAF != 0 {
            let within = (1_u64 << (12 + 9 * level)) - 1;
            return (level < 3).then_some((entry & FRAME & !within) | (va & within & FRAME));
        }
        frame = entry & FRAME;
    }
    Some(frame)
}
