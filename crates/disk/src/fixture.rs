//! Guest memory with a queue in it, and disks of noise.

use nephoscope_guest::Gpa;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::request::{Malformed, Request};

/// A descriptor: address, length, and whether the device writes it.
pub(crate) type Link = (u64, u32, bool);

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap()
}

/// A request's header.
pub(crate) fn header(memory: &GuestMemoryMmap, at: u64, kind: u32, sector: u64) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    memory.write_slice(&header, GuestAddress(at)).unwrap();
}

/// What the device makes of these descriptors.
pub(crate) fn taken(memory: &GuestMemoryMmap, links: &[Link]) -> Result<Request, Malformed> {
    let queue = MockSplitQueue::create(memory, GuestAddress(0x10_0000), 256);
    let last = links.len() - 1;
    let descriptors: Vec<RawDescriptor> = (0..)
        .zip(links)
        .map(|(number, (at, len, write))| {
            let next = if usize::from(number) < last { NEXT } else { 0 };
            let write = if *write { WRITE } else { 0 };
            RawDescriptor::from(Descriptor::new(*at, *len, next | write, number + 1))
        })
        .collect();
    Request::of(queue.build_desc_chain(&descriptors).unwrap())
}

/// Bytes that are alike nowhere.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut seed = 7_u64;
    let next = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_le_bytes()[6]
    };
    (0..len).map(next).collect()
}

/// What was told: whether written, the sector, the frames, the bytes.
pub(crate) type Told = (bool, u64, Vec<(Gpa, u32)>, Vec<u8>);
