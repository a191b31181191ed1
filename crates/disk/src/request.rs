//! One request of a virtio block device (virtio 1.2, 5.2.6), out of the guest's descriptors.
//!
//! ```text
//!  readable   │ type u32 │ reserved u32 │ sector u64 │ data to write … │
//!  writable   │ data that is read …                              │ status u8 │
//! ```
//!
//! Where one descriptor ends and the next begins means nothing. The guest may change all of it at any time: the descriptors and
//! the header are read once, and what was read is what counts.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Descriptors of a request: more than any driver that believes `seg_max` needs. It stops a guest that makes a table of 65,535.
const MAX_DESCRIPTORS: usize = 1024;
const HEADER: usize = 16;

/// A part of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) at: GuestAddress,
    pub(crate) len: u32,
}

/// A request as it was when it was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// What the device reads, behind the header.
    pub(crate) readable: Vec<Part>,
    /// What it writes, before the status.
    pub(crate) writable: Vec<Part>,
    pub(crate) status: GuestAddress,
}

/// There is nothing to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    /// The chain ends where it should go on, or has too many links.
    Chain,
    /// Something is to be read after something to be written.
    Order,
    /// No room for a status, or no header.
    Short,
    /// Its header is not in memory.
    Header,
}

/// How many bytes parts have together.
pub(crate) fn bytes(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.len)).sum()
}

impl Request {
    /// Reads it.
    pub(crate) fn of<M>(chain: DescriptorChain<M>) -> Result<Self, Malformed>
    where
        M: Deref + Clone,
        M::Target: GuestMemory,
    {
        let memory = chain.clone();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut count, mut goes_on) = (0, true);
        for descriptor in chain {
            count += 1;
            if count > MAX_DESCRIPTORS {
                return Err(Malformed::Chain);
            }
            goes_on = descriptor.has_next();
            let part = Part {
                at: descriptor.addr(),
                len: descriptor.len(),
            };
            match (descriptor.is_write_only(), writable.is_empty()) {
                (true, _) => writable.push(part),
                (false, true) => readable.push(part),
                (false, false) => return Err(Malformed::Order),
            }
        }
        // The iterator ends without a word where something is wrong.
        if goes_on {
            return Err(Malformed::Chain);
        }
        let status = cut_last(&mut writable).ok_or(Malformed::Short)?;
        let header = take_header(memory.memory(), &mut readable)?;
        let mut kind = [0; 4];
        let mut sector = [0; 8];
        kind.copy_from_slice(&header[..4]);
        sector.copy_from_slice(&header[8..]);
        Ok(Self {
            kind: u32::from_le_bytes(kind),
            sector: u64::from_le_bytes(sector),
            readable,
            writable,
            status,
        })
    }
}

/// Takes the last byte off.
fn cut_last(parts: &mut Vec<Part>) -> Option<GuestAddress> {
    parts.retain(|part| part.len > 0);
    let last = parts.last_mut()?;
    last.len -= 1;
    let at = last.at.0.checked_add(last.len.into())?;
    if last.len == 0 {
        parts.pop();
    }
    Some(GuestAddress(at))
}

/// Takes the header off.
fn take_header<M: GuestMemory + ?Sized>(
    memory: &M,
    parts: &mut Vec<Part>,
) -> Result<[u8; HEADER], Malformed> {
    let mut header = [0; HEADER];
    let mut rest = &mut header[..];
    for part in parts.iter_mut() {
        let len = rest.len().min(usize::try_from(part.len).unwrap_or(usize::MAX));
        let (now, later) = rest.split_at_mut(len);
        memory.read_slice(now, part.at).map_err(|_| Malformed::Header)?;
        let taken = u32::try_from(len).map_err(|_| Malformed::Header)?;
        part.at = GuestAddress(part.at.0.checked_add(len as u64).ok_or(Malformed::Header)?);
        part.len -= taken;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    if !rest.is_empty() {
        return Err(Malformed::Short);
    }
    parts.retain(|part| part.len > 0);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{header, memory, taken};

    fn part(at: u64, len: u32) -> Part {
        Part {
            at: GuestAddress(at),
            len,
        }
    }

    #[test]
    fn a_request_is_its_header_its_data_and_its_status() {
        let memory = memory();
        header(&memory, 0x1000, 1, 77);
        let request = taken(
            &memory,
            &[(0x1000, 16, false), (0x2000, 512, false), (0x3000, 1, true)],
        )
        .unwrap();
        let expected = Request {
            kind: 1,
            sector: 77,
            readable: vec![part(0x2000, 512)],
            writable: Vec::new(),
            status: GuestAddress(0x3000),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn what_has_no_answer_is_malformed() {
        let memory = memory();
        header(&memory, 0x1000, 0, 0);
        let status = (0x3000, 1, true);
        let read = (0x1000, 16, false);
        let cases: [(&[_], Malformed); 5] = [
            (&[read], Malformed::Short),
            (&[read, (0x3000, 0, true)], Malformed::Short),
            (&[(0x1000, 15, false), status], Malformed::Short),
            (&[read, status, (0x2000, 512, false)], Malformed::Order),
            (&[(1 << 40, 16, false), status], Malformed::Header),
        ];
        for (links, malformed) in cases {
            assert_eq!(taken(&memory, links), Err(malformed), "{links:?}");
        }
    }

    #[test]
    fn a_chain_that_goes_on_for_ever_or_nowhere_is_malformed() {
        use virtio_queue::desc::{RawDescriptor, split::Descriptor};
        use virtio_queue::mock::MockSplitQueue;

        let memory = memory();
        for next in [0, 300] {
            let queue = MockSplitQueue::create(&memory, GuestAddress(0x10_0000), 256);
            let circle = RawDescriptor::from(Descriptor::new(0x1000, 16, 1, next));
            queue.desc_table().store(0, circle).unwrap();
            queue.avail().ring().ref_at(0).unwrap().store(0);
            queue.avail().idx().store(1);
            let mut asked: virtio_queue::Queue = queue.create_queue().unwrap();
            let chain = virtio_queue::QueueOwnedT::iter(&mut asked, &memory)
                .unwrap()
                .next()
                .unwrap();
            assert_eq!(Request::of(chain), Err(Malformed::Chain));
        }
    }

    proptest! {
        /// However the guest cuts it, a request is what its bytes say.
        #[test]
        fn where_descriptors_end_means_nothing(cuts in prop::collection::vec(0_u32..540, 0..6), tail in 0_u32..512) {
            let memory = memory();
            header(&memory, 0x1000, 5, 9);
            let cut = |from: u64, len: u32, write: bool, cuts: &[u32]| {
                let mut ends: Vec<u32> = cuts.iter().copied().filter(|cut| *cut < len).collect();
                ends.extend([len]);
                ends.sort_unstable();
                let mut at = 0;
                let mut links = Vec::new();
                for end in ends {
                    links.push((from + u64::from(at), end - at, write));
                    at = end;
                }
                links
            };
            let mut links = cut(0x1000, 16 + 512, false, &cuts);
            links.extend(cut(0x8000, tail + 1, true, &cuts));
            let request = taken(&memory, &links).unwrap();
            prop_assert_eq!((request.kind, request.sector), (5, 9));
            prop_assert_eq!((bytes(&request.readable), bytes(&request.writable)), (512, tail.into()));
            prop_assert_eq!(request.status, GuestAddress(0x8000 + u64::from(tail)));
            prop_assert!(request.readable.iter().chain(&request.writable).all(|part| part.len > 0));
            let first = request.readable.first().map(|part| part.at.0);
            prop_assert_eq!(first, Some(0x1010));
        }
    }

    #[test]
    fn max_descriptors_bounds_a_table_of_a_guests_own() {
        use virtio_queue::desc::{RawDescriptor, split::Descriptor};
        use virtio_queue::mock::MockSplitQueue;

        let memory = memory();
        header(&memory, 0x1000, 0, 0);
        let with = |count: u16| {
            let (table, last) = (0x20_0000, count - 1);
            for number in 0..count {
                let descriptor = match number {
                    0 => Descriptor::new(0x1000, 16, 1, 1),
                    _ if number == last => Descriptor::new(0x3000, 1, 2, 0),
                    _ => Descriptor::new(0x2000, 1, 3, number + 1),
                };
                let at = GuestAddress(table + 16 * u64::from(number));
                memory.write_obj(RawDescriptor::from(descriptor), at).unwrap();
            }
            let queue = MockSplitQueue::create(&memory, GuestAddress(0x10_0000), 256);
            let indirect = RawDescriptor::from(Descriptor::new(table, 16 * u32::from(count), 4, 0));
            Request::of(queue.build_desc_chain(&[indirect]).unwrap())
        };
        let most = u16::try_from(MAX_DESCRIPTORS).unwrap();
        assert_eq!(bytes(&with(most).unwrap().writable), u64::from(most) - 2);
        assert_eq!(with(most + 1), Err(Malformed::Chain));
    }
}
