//! Guest-physical memory as the VMM has it mapped.
#![allow(unsafe_code, reason = "reads guest RAM through the VMM's own mapping")]

use std::sync::RwLock;

use nephoscope_guest::{Gpa, MemoryFault, PAGE_SIZE, PhysicalMemory};
use nephoscope_wire::RamRange;

/// RAM, as the monitor described it. Empty until then.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    ranges: RwLock<Vec<RamRange>>,
}

/// The most ranges that are kept: more than any machine has blocks of RAM.
pub(crate) const MAX_RANGES: usize = 64;

impl Memory {
    /// Takes the ranges that really are readable mappings of this process; the others are dropped and counted.
    pub(crate) fn set(&self, ranges: &[RamRange]) -> usize {
        let mapped = readable_mappings();
        let good: Vec<RamRange> = ranges
            .iter()
            .filter(|range| {
                let end = range.hva.checked_add(range.len);
                range.len > 0
                    && range.gpa.checked_add(range.len).is_some()
                    && mapped
                        .iter()
                        .any(|(from, to)| *from <= range.hva && end.is_some_and(|end| end <= *to))
            })
            .copied()
            .take(MAX_RANGES)
            .collect();
        let dropped = ranges.len() - good.len();
        if let Ok(mut current) = self.ranges.write() {
            *current = good;
        }
        dropped
    }

    /// The host address of a guest-physical one, if `len` bytes from it are in one range.
    pub(crate) fn host(&self, at: Gpa, len: usize) -> Option<u64> {
        let ranges = self.ranges.read().ok()?;
        ranges.iter().find_map(|range| {
            let offset = at.0.checked_sub(range.gpa)?;
            (offset.checked_add(len as u64)? <= range.len).then(|| range.hva + offset)
        })
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let host = self.host(at, buf.len()).ok_or(MemoryFault { at })?;
        copy_host(host, buf);
        Ok(())
    }
}

/// Copies the page at a host address that QEMU or a checked range gave.
pub(crate) fn copy_page(host: u64, page: &mut [u8; PAGE_SIZE]) {
    copy_host(host, page);
}

/// Whether the page at such an address holds these bytes now.
pub(crate) fn page_equals(host: u64, bytes: &[u8; PAGE_SIZE]) -> bool {
    // SAFETY: as for `copy_host`; `memcmp` reads plain bytes and nothing else. What the guest writes meanwhile is seen or not.
    unsafe { libc::memcmp(host as *const libc::c_void, bytes.as_ptr().cast(), PAGE_SIZE) == 0 }
}

fn copy_host(host: u64, buf: &mut [u8]) {
    // SAFETY: the callers' addresses lie in guest RAM or ROM: `qemu_plugin_insn_haddr` of an instruction being
    // translated, rounded down to its page (QEMU's RAM blocks are page-aligned), or a range that was checked against
    // this process's mappings when it was set and belongs to RAM that exists as long as the machine. The guest may
    // write meanwhile, in this process too, which no type can express here: the copy is of plain bytes, any of which
    // is valid, and goes through volatile-free memcpy exactly as QEMU's own reads of guest memory do.
    unsafe { std::ptr::copy_nonoverlapping(host as *const u8, buf.as_mut_ptr(), buf.len()) };
}

/// This process's readable mappings, neighbours joined.
fn readable_mappings() -> Vec<(u64, u64)> {
    let Ok(text) = std::fs::read_to_string("/proc/self/maps") else {
        return Vec::new();
    };
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(permissions)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((from, to)) = range.split_once('-') else {
            continue;
        };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else {
            continue;
        };
        if !permissions.starts_with('r') {
            continue;
        }
        match joined.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => joined.push((from, to)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_not_mapped_here_are_dropped() {
        let real = vec![7_u8; 3 * PAGE_SIZE];
        let memory = Memory::default();
        let good = RamRange {
            gpa: 0x1000,
            len: 2 * PAGE_SIZE as u64,
            hva: real.as_ptr() as u64,
        };
        let bad = RamRange {
            gpa: 0x10_0000,
            len: 4096,
            hva: 8,
        };
        let wraps = RamRange {
            gpa: u64::MAX,
            len: 4096,
            hva: real.as_ptr() as u64,
        };
        assert_eq!(memory.set(&[good, bad, wraps]), 2);
        let mut buf = [0; 16];
        memory.read(Gpa(0x1ff8), &mut buf).unwrap();
        assert_eq!(buf, [7; 16]);
        assert!(memory.read(Gpa(0x2ff8), &mut buf).is_err(), "past the end");
        assert!(memory.read(Gpa(0x0ff8), &mut buf).is_err(), "before the start");
    }

    #[test]
    fn max_ranges_bounds_what_a_monitor_makes_us_keep() {
        let real = vec![7_u8; PAGE_SIZE];
        let range = RamRange {
            gpa: 0,
            len: PAGE_SIZE as u64,
            hva: real.as_ptr() as u64,
        };
        let memory = Memory::default();
        assert_eq!(memory.set(&[range; MAX_RANGES]), 0);
        assert_eq!(memory.set(&[range; MAX_RANGES + 3]), 3);
    }
}
