//! The map of a live QEMU: names first, then QEMU's word on every range.

use nephoscope_guest::Gpa;

use super::flat_view::FlatRange;
use super::map::{RamMap, WhyLeftOut};
use super::ram_block::RamBlock;
use super::{Hva, RamMapError};
use crate::qmp::Qmp;

impl RamMap {
    /// Asks a QEMU for its memory and for the host address of each range (`gpa2hva`), which also settles what names
    /// leave open (two graphics cards have a region `vga.vram` each). The guest may run; what it changes between
    /// two of the questions is [left out](WhyLeftOut::Moved). Takes one question per range, about 10 on a PC.
    ///
    /// # Errors
    /// [`RamMapError`] if QEMU does not answer, or not in the form that is known.
    pub fn read(qmp: &mut Qmp) -> Result<Self, RamMapError> {
        let blocks = RamBlock::parse_all(&qmp.monitor("info ramblock").map_err(RamMapError::Qmp)?)?;
        let ranges = FlatRange::parse_all(&qmp.monitor("info mtree -f").map_err(RamMapError::Qmp)?)?;
        let mut failed = None;
        let map = Self::build(blocks, ranges, |range, named| match ask(qmp, range.gpa) {
            Ok(told) => settle(named, told),
            Err(error) => {
                failed.get_or_insert(error);
                Err(WhyLeftOut::Moved)
            }
        })?;
        failed.map_or(Ok(map), Err)
    }
}

/// What names say against what QEMU says.
fn settle(named: Result<Hva, WhyLeftOut>, told: Option<Hva>) -> Result<Hva, WhyLeftOut> {
    match (named, told) {
        (Ok(named), Some(told)) if named == told => Ok(told),
        (Err(WhyLeftOut::SeveralBlocks | WhyLeftOut::NoBlock), Some(told)) => Ok(told),
        (Ok(_), _) => Err(WhyLeftOut::Moved),
        (Err(why), _) => Err(why),
    }
}

/// `Host virtual address for 0xc0000 (pc.rom) is 0x7ff87fa00000`, or an error in words.
fn ask(qmp: &mut Qmp, gpa: Gpa) -> Result<Option<Hva>, RamMapError> {
    let answer = qmp.monitor(&format!("gpa2hva {gpa}")).map_err(RamMapError::Qmp)?;
    Ok(answer
        .trim_end()
        .rsplit_once(" is 0x")
        .and_then(|(_, hva)| u64::from_str_radix(hva, 16).ok())
        .map(Hva))
}
