//! A system BIOS as it lies in flash: it ends where the CPU starts.

use super::{part, seabios};
use crate::object::Part;
use crate::site::{Unknown, Values};

/// Images are this long, or a multiple.
const GRANULE: usize = 64 << 10;
/// The reset vector is this far from the end.
const RESET: usize = 16;
/// What a reset vector begins with: a jump, far, near or short, maybe after two `nop`s.
const JUMPS: [u8; 3] = [0xea, 0xe9, 0xeb];
/// The end of what real mode reaches, where BIOSes are linked up to.
const REAL_MODE_END: u64 = 0x10_0000;
/// The end of what 32 bits reach, where larger images are.
const END: u64 = 0x1_0000_0000;

/// The parts of a BIOS image; `None` if it is none.
pub(super) fn parts(file: &[u8]) -> Option<Vec<Part>> {
    if file.is_empty() || !file.len().is_multiple_of(GRANULE) {
        return None;
    }
    let mut reset = file.get(file.len().checked_sub(RESET)?..)?;
    while let [0x90, rest @ ..] = reset {
        reset = rest;
    }
    if !JUMPS.contains(reset.first()?) {
        return None;
    }
    let len = u64::try_from(file.len()).ok()?;
    let link = REAL_MODE_END.checked_sub(len).or(END.checked_sub(len))?;
    let base = u32::try_from(link).ok()?;
    let Some(moving) = seabios::moving(file, base) else {
        return Some(vec![part("bios", link, file, Vec::new(), Values::default())]);
    };
    let values = |sets| Values {
        sets,
        unknowns: vec![Unknown::Distance("init".to_owned())],
        ..Values::default()
    };
    let init = file.get(moving.init.clone())?;
    let init_link = link.checked_add(u64::try_from(moving.init.start).ok()?)?;
    let in_place = part(
        "bios",
        link,
        file,
        moving.to_init,
        values(seabios::sets_to_init()),
    );
    let moved = part(
        "init",
        init_link,
        init,
        moving.in_init,
        values(seabios::sets_in_init()),
    );
    Some(vec![in_place, moved])
}
