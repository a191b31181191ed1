//! `info ramblock`: where QEMU keeps its blocks of guest memory.
//!
//! ```text
//!               Block Name    PSize              Offset               Used              Total                HVA  RO
//!                   pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007ff87fe00000  rw
//! ```

use super::{Hva, RamMapError};

const COMMAND: &str = "info ramblock";

/// Blocks taken, at most: stops a peer that is no QEMU. 256 DIMMs and the ROMs of 256 devices fit.
const MAX_BLOCKS: usize = 4096;

/// Columns after the name; the page size has two words ("4 KiB").
const COLUMNS: [&str; 5] = ["PSize", "Offset", "Used", "Total", "HVA"];

/// One block of guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamBlock {
    /// The block's name; for a device's memory its path, then a slash, then the region's name.
    pub name: String,
    /// Where it starts in the QEMU process.
    pub hva: Hva,
    /// Bytes in use; the rest up to the block's total is reserved for growth and not mapped.
    pub used_bytes: u64,
}

impl RamBlock {
    /// All blocks that `text`, the output of `info ramblock`, lists.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, RamMapError> {
        let mut lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        let (_, header) = lines.next().ok_or(RamMapError::NoHostAddresses)?;
        let mut words = header.split_whitespace().skip_while(|&word| word != "PSize");
        if !COLUMNS.iter().all(|&column| words.next() == Some(column)) {
            return Err(RamMapError::NoHostAddresses);
        }
        // QEMU has RO after HVA; later columns would be as harmless.
        let further = words.count();
        let mut blocks = Vec::new();
        for (number, line) in lines {
            if blocks.len() == MAX_BLOCKS {
                return Err(RamMapError::TooMany {
                    command: COMMAND,
                    limit: MAX_BLOCKS,
                });
            }
            let malformed = RamMapError::Malformed {
                command: COMMAND,
                line: number + 1,
                expected: "a memory block",
            };
            blocks.push(Self::parse(line, further).ok_or(malformed)?);
        }
        Ok(blocks)
    }

    /// A row, read from its end, because a name may hold anything.
    fn parse(line: &str, further: usize) -> Option<Self> {
        let mut words = line
            .trim_end()
            .rsplit(char::is_whitespace)
            .filter(|word| !word.is_empty())
            .skip(further);
        let hva = hex(words.next()?)?;
        let _total = hex(words.next()?)?;
        let used_bytes = hex(words.next()?)?;
        let _offset = hex(words.next()?)?;
        let (_unit, _size) = (words.next()?, words.next()?);
        let mut name: Vec<_> = words.collect();
        name.reverse();
        let name = name.join(" ");
        hva.checked_add(used_bytes)?;
        (!name.is_empty()).then_some(Self {
            name,
            hva: Hva(hva),
            used_bytes,
        })
    }

    /// Whether a memory region of this name can be in this block. QEMU names the block of a device's region after
    /// the device's path and the region, as `0000:00:02.0/vga.vram` for `vga.vram`.
    pub(super) fn may_hold(&self, region: &str) -> bool {
        self.name
            .strip_suffix(region)
            .is_some_and(|device| device.is_empty() || device.ends_with('/'))
    }
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}
