//! Where guest RAM is in this process.
#![allow(
    unsafe_code,
    reason = "maps guest RAM a second time, and takes it out of the page table"
)]

use std::sync::RwLock;

use nephoscope_guest::PAGE_SIZE;
use nephoscope_wire::Region;

/// Regions that are kept: more than any machine has (QEMU's vhost-user: 509).
const MAX_REGIONS: usize = 512;

/// A piece of RAM that is a shared mapping of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapped {
    gpa: u64,
    len: u64,
    /// Where QEMU has it.
    hva: u64,
    /// Where it can be read without anybody waiting.
    view: u64,
}

impl Mapped {
    /// Whether this is that piece, or our own second mapping of one: a mapping of the same file as QEMU's, and not where the guest's
    /// accesses go.
    fn is(&self, hva: u64, gpa: u64, len: u64) -> bool {
        (self.hva, self.gpa, self.len) == (hva, gpa, len) || hva.wrapping_sub(self.view) < self.len
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Regions(RwLock<Vec<Mapped>>);

impl Regions {
    /// Finds where these are, and gives those that are new: where QEMU has them, and how long they are. A server that lies is not
    /// believed: only shared mappings of files are taken, whose contents no change of a page table touches.
    pub(super) fn set(&self, regions: &[Region]) -> Vec<(u64, u64)> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let Ok(mut known) = self.0.write() else {
            return Vec::new();
        };
        let mut new = Vec::new();
        for region in regions {
            if known.len() == MAX_REGIONS {
                break;
            }
            for (hva, gpa, len) in mappings(&maps, region) {
                if known.iter().any(|known| known.is(hva, gpa, len)) {
                    continue;
                }
                let Some(view) = second(hva, len) else { continue };
                known.push(Mapped { gpa, len, hva, view });
                new.push((hva, len));
            }
        }
        new
    }

    /// Where QEMU has it.
    pub(super) fn hva(&self, gpa: u64) -> Option<u64> {
        let known = self.0.read().ok()?;
        known.iter().rev().find_map(|mapped| {
            let offset = gpa.checked_sub(mapped.gpa)?;
            (offset < mapped.len).then(|| mapped.hva + offset)
        })
    }

    /// The page that QEMU has there: where it is for the guest, and what it holds.
    pub(super) fn page(&self, hva: u64) -> Option<(u64, Box<[u8; PAGE_SIZE]>)> {
        let known = self.0.read().ok()?;
        known.iter().rev().find_map(|mapped| {
            let offset = hva.checked_sub(mapped.hva)?;
            offset
                .checked_add(PAGE_SIZE as u64)
                .filter(|end| *end <= mapped.len)?;
            let mut bytes = Box::new([0; PAGE_SIZE]);
            // SAFETY: within a mapping of this process that is never unmapped; the guest may write meanwhile, to plain bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    (mapped.view + offset) as *const u8,
                    bytes.as_mut_ptr(),
                    PAGE_SIZE,
                );
            }
            Some((mapped.gpa + offset, bytes))
        })
    }
}

/// Takes pages out of this process's page table. They stay in their file.
pub(super) fn take_out(hva: u64, len: u64) {
    // SAFETY: callers give pages of regions, which are shared mappings of files: whoever accesses them gets them from there.
    let _ = unsafe {
        rustix::mm::madvise(
            hva as *mut _,
            usize::try_from(len).unwrap_or(0),
            rustix::mm::Advice::LinuxDontNeed,
        )
    };
}

/// The same memory at another place.
fn second(hva: u64, len: u64) -> Option<u64> {
    let len = usize::try_from(len).ok()?;
    // SAFETY: an old length of 0 makes a second mapping of a shared one (`mremap(2)`), and leaves the first as it is.
    let view = unsafe { rustix::mm::mremap(hva as *mut _, 0, len, rustix::mm::MremapFlags::MAYMOVE) };
    view.ok().map(|view| view as u64)
}

/// Where a region's bytes are mapped, by `/proc/self/maps`: each part with its address, where it is for the guest, and its length.
fn mappings(maps: &str, region: &Region) -> Vec<(u64, u64, u64)> {
    let end = region.offset.saturating_add(region.len);
    let part = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        let (offset, _, inode) = (words.next()?, words.next()?, words.next()?);
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (from, to, offset) = (hex(from)?, hex(to)?, hex(offset)?);
        let is_it =
            permissions.starts_with("rw") && permissions.ends_with('s') && inode.parse() == Ok(region.inode);
        let first = offset.max(region.offset);
        let last = offset.checked_add(to.checked_sub(from)?)?.min(end);
        (is_it && first < last).then(|| {
            (
                from + (first - offset),
                region.gpa.wrapping_add(first - region.offset),
                last - first,
            )
        })
    };
    maps.lines().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use rustix::mm::{MapFlags, ProtFlags, mmap};

    use super::*;

    /// Shared memory of so many pages: where it is, and its inode.
    fn shared(pages: usize) -> (u64, u64) {
        let file = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, (pages * PAGE_SIZE) as u64).unwrap();
        // SAFETY: new memory at a free place.
        let at = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(
                std::ptr::null_mut(),
                pages * PAGE_SIZE,
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )
        };
        (
            at.unwrap() as u64,
            std::fs::File::from(file).metadata().unwrap().ino(),
        )
    }

    #[test]
    fn a_region_is_where_its_file_is_mapped() {
        let (hva, inode) = shared(4);
        let regions = Regions::default();
        let region = Region {
            gpa: 0x10_0000,
            len: 2 * PAGE_SIZE as u64,
            inode,
            offset: PAGE_SIZE as u64,
        };
        let at = hva + PAGE_SIZE as u64;
        assert_eq!(regions.set(&[region]), [(at, region.len)]);
        // A server that was started again says the same, and the second mapping is there by now.
        for _ in 0..3 {
            assert_eq!(regions.set(&[region]), [], "no news");
        }
        assert_eq!(regions.hva(0x10_1000), Some(at + 0x1000));
        assert_eq!((regions.hva(0xf_ffff), regions.hva(0x10_2000)), (None, None));
        // SAFETY: memory of this test alone.
        unsafe { ((at + 0x1000) as *mut u8).write_volatile(7) };
        let (gpa, bytes) = regions.page(at + 0x1000).unwrap();
        assert_eq!((gpa, bytes[0]), (0x10_1000, 7));
        take_out(at, region.len);
        assert_eq!(regions.page(at + 0x1000).unwrap().1[0], 7, "it stays");
        let part = Region {
            gpa: 0x20_0000,
            len: PAGE_SIZE as u64,
            offset: 2 * PAGE_SIZE as u64,
            ..region
        };
        assert_eq!(regions.set(&[part]), [(at + 0x1000, part.len)], "elsewhere too");
    }

    #[test]
    fn what_is_no_shared_mapping_is_not_taken() {
        let maps = "7f0000000000-7f0000004000 rw-p 00000000 00:01 55 /memfd:a\n\
                    7f0000008000-7f000000c000 r--s 00000000 00:01 55 /memfd:a\n\
                    7f0000010000-7f0000014000 rw-s 00001000 00:01 56 /memfd:b\n\
                    7f0000020000-7f0000022000 rw-s 00000000 00:01 55 /memfd:a\n\
                    7f0000022000-7f0000024000 rw-s 00002000 00:01 55 /memfd:a\n";
        let region = Region {
            gpa: 0,
            len: 0x3000,
            inode: 55,
            offset: 0x1000,
        };
        let found = mappings(maps, &region);
        assert_eq!(
            found,
            [(0x7f00_0002_1000, 0, 0x1000), (0x7f00_0002_2000, 0x1000, 0x2000)]
        );
    }

    #[test]
    fn max_regions_bounds_what_servers_make_us_keep() {
        let (_, inode) = shared(MAX_REGIONS + 3);
        let regions: Vec<Region> = (0..MAX_REGIONS as u64 + 3)
            .map(|page| Region {
                gpa: page << 13,
                len: PAGE_SIZE as u64,
                inode,
                offset: page << 12,
            })
            .collect();
        assert_eq!(Regions::default().set(&regions).len(), MAX_REGIONS);
    }
}
