//! `info mtree -f`: which guest-physical addresses are memory.
//!
//! ```text
//! FlatView #2
//!  AS "memory", root: system
//!  AS "cpu-memory-0", root: system
//!  Root memory region: system
//!   0000000000000000-00000000000bffff (prio 0, ram): pc.ram
//!   00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000
//!   00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
//! ```
//!
//! The offset is left out where it is 0. Under KVM, " KVM" follows, once for each address space of the view.

use nephoscope_guest::Gpa;

use super::RamMapError;

const COMMAND: &str = "info mtree -f";

/// Memory ranges taken, at most: stops a peer that is no QEMU, and a guest that makes its machine map ever more.
const MAX_RANGES: usize = 4096;

/// What answers at an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryKind {
    /// Memory that the guest writes.
    Ram,
    /// Memory that the guest only reads there; the same bytes may be writable elsewhere.
    Rom,
}

/// A range of guest-physical addresses that is memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlatRange {
    /// Its first address.
    pub gpa: Gpa,
    /// Its length.
    pub size_bytes: u64,
    /// What it is.
    pub kind: MemoryKind,
    /// The name of the memory region there; not always the name of a block.
    pub region: String,
    /// Where in the region it starts.
    pub offset_bytes: u64,
}

impl FlatRange {
    /// The memory ranges of the system's flat view in `text`, the output of `info mtree -f`, as printed: ascending.
    /// Devices are left out, and so is device memory that can be read directly ("ramd", a passed-through BAR): it
    /// has side effects.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, RamMapError> {
        let mut ranges = Vec::new();
        let (mut seen, mut inside) = (false, false);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.starts_with("FlatView #") {
                if seen {
                    break;
                }
                inside = false;
            } else if line.trim_start().starts_with("AS \"") {
                inside |= is_system(line);
                seen |= inside;
            } else if inside && line.starts_with("  ") {
                if line.trim_start().starts_with("No rendered") {
                    continue;
                }
                let expected = "a range of addresses";
                let malformed = RamMapError::Malformed {
                    command: COMMAND,
                    line: number + 1,
                    expected,
                };
                let Some(range) = parse(line).ok_or(malformed)? else {
                    continue;
                };
                if ranges.len() == MAX_RANGES {
                    return Err(RamMapError::TooMany {
                        command: COMMAND,
                        limit: MAX_RANGES,
                    });
                }
                ranges.push(range);
            }
        }
        if seen {
            Ok(ranges)
        } else {
            Err(RamMapError::NoFlatView)
        }
    }
}

/// QEMU 11 prints the path of an address space where it has one; the root is "system" either way. (Under system
/// management an x86 CPU sees another view, whose root is "memory".)
fn is_system(line: &str) -> bool {
    line.contains("AS \"memory\",") || line.ends_with(", root: system")
}

/// `None` for a line of another form, `Some(None)` for a range that is no memory.
fn parse(line: &str) -> Option<Option<FlatRange>> {
    let (addresses, rest) = line.trim_start().split_once(" (prio ")?;
    let (first, last) = addresses.split_once('-')?;
    let (first, last) = (hex(first)?, hex(last)?);
    let (header, mut name) = rest.split_once("): ")?;
    let (_prio, kind) = header.split_once(", ")?;
    let kind = match kind.strip_prefix("nv-").unwrap_or(kind) {
        "ram" => MemoryKind::Ram,
        "rom" | "romd" => MemoryKind::Rom,
        _ => return Some(None),
    };
    while let Some(shorter) = name.strip_suffix(" KVM") {
        name = shorter;
    }
    let (region, offset_bytes) = match name.rsplit_once(" @") {
        Some((region, offset)) => (region, hex(offset)?),
        None => (name, 0),
    };
    let size_bytes = last.checked_sub(first)?.checked_add(1)?;
    if region.is_empty() {
        return None;
    }
    Some(Some(FlatRange {
        gpa: Gpa(first),
        size_bytes,
        kind,
        region: region.to_owned(),
        offset_bytes,
    }))
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}
