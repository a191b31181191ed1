//! What the server of a disk tells the plugin, and waits for: which memory it has written to.
//!
//! All numbers are little-endian. A message is answered by one byte, 0, when what it asks for was done.
//!
//! ```text
//!  0        4      6      8        12
//!  ┌────────┬──────┬──────┬────────┬────────────────────────┬─────────────┐
//!  │ length │ kind │ 0    │ count  │ count × part or region │ frames …    │
//!  └────────┴──────┴──────┴────────┴────────────────────────┴─────────────┘
//! ```
//!
//! A part is where (u64), how long (u32), and whether accesses are to be told from now on (u32). A region is where and how long, and
//! which file the VMM has mapped there, by its inode, and from which byte on (u64 each). Frames are as in a ring, and go into one as they
//! are.

use std::io::{self, Read, Write};

/// The longest message that is read.
pub const MAX_DISK_MESSAGE: usize = 4 << 20;
const HEADER: usize = 12;
const PART: usize = 16;
const REGION: usize = 32;
const REGIONS: u16 = 1;
const LANDED: u16 = 2;

/// Memory of the guest that was read into, or written from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LandedPart {
    /// Where, for the guest.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Who accesses it from now on is to be told.
    pub follow: bool,
}

/// Guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where, for the guest.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// The file that is mapped there.
    pub inode: u64,
    /// From where on.
    pub offset: u64,
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskMessage {
    /// Guest RAM is there, and nowhere else.
    Regions(Vec<Region>),
    /// The disk has written to this memory, and its request is about to be answered.
    Landed {
        /// Which.
        parts: Vec<LandedPart>,
        /// What it holds now, for the monitor: frames, one after the other.
        frames: Vec<u8>,
    },
}

impl DiskMessage {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, count) = match self {
            Self::Regions(regions) => (REGIONS, regions.len()),
            Self::Landed { parts, .. } => (LANDED, parts.len()),
        };
        let mut bytes = vec![0; HEADER];
        match self {
            Self::Regions(regions) => {
                for region in regions {
                    bytes.extend(
                        [region.gpa, region.len, region.inode, region.offset]
                            .map(u64::to_le_bytes)
                            .concat(),
                    );
                }
            }
            Self::Landed { parts, frames } => {
                for part in parts {
                    bytes.extend(part.gpa.to_le_bytes());
                    bytes.extend([part.len, part.follow.into()].map(u32::to_le_bytes).concat());
                }
                bytes.extend_from_slice(frames);
            }
        }
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let len = number(bytes.len());
        for (to, from) in [(0, &len[..]), (4, &kind.to_le_bytes()), (8, &number(count))] {
            if let Some(field) = bytes.get_mut(to..to + from.len()) {
                field.copy_from_slice(from);
            }
        }
        bytes
    }

    /// Sends it, and waits until it is answered.
    ///
    /// # Errors
    /// If the plugin is gone, or does not do it.
    pub fn ask(&self, stream: &mut (impl Read + Write)) -> io::Result<()> {
        stream.write_all(&self.encode())?;
        let mut answer = [1];
        stream.read_exact(&mut answer)?;
        if answer == [0] {
            Ok(())
        } else {
            Err(io::Error::other("the plugin could not do what was asked of it"))
        }
    }

    /// Receives one.
    ///
    /// # Errors
    /// If the server is gone, or sends something else.
    pub fn receive(stream: &mut impl Read) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        let [l0, l1, l2, l3, k0, k1, _, _, c0, c1, c2, c3] = header;
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let count = usize::try_from(u32::from_le_bytes([c0, c1, c2, c3])).unwrap_or(usize::MAX);
        let rest = len.checked_sub(HEADER).filter(|_| len <= MAX_DISK_MESSAGE);
        let mut body = vec![0; rest.ok_or_else(|| wrong("a length that cannot be"))?];
        stream.read_exact(&mut body)?;
        match u16::from_le_bytes([k0, k1]) {
            REGIONS => {
                let exact = count.checked_mul(REGION) == Some(body.len());
                let regions = exact.then(|| body.chunks_exact(REGION).filter_map(region).collect());
                regions
                    .map(Self::Regions)
                    .ok_or_else(|| wrong("regions that cannot be"))
            }
            LANDED => {
                let end = count.checked_mul(PART).filter(|end| *end <= body.len());
                let frames = end
                    .map(|end| body.split_off(end))
                    .ok_or_else(|| wrong("parts that cannot be"))?;
                let parts = body.chunks_exact(PART).filter_map(part).collect();
                Ok(Self::Landed { parts, frames })
            }
            _ => Err(wrong("a message of an unknown kind")),
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (to, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *to = u64::from_le_bytes(from.try_into().ok()?);
    }
    Some(words)
}

fn region(bytes: &[u8]) -> Option<Region> {
    let [gpa, len, inode, offset] = words(bytes)?;
    Some(Region {
        gpa,
        len,
        inode,
        offset,
    })
}

fn part(bytes: &[u8]) -> Option<LandedPart> {
    let [gpa, last] = words(bytes)?;
    Some(LandedPart {
        gpa,
        len: u32::try_from(last & u64::from(u32::MAX)).ok()?,
        follow: last >> 32 != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn some() -> [DiskMessage; 2] {
        let regions = (0..3).map(|n| Region {
            gpa: n << 32,
            len: 1 << 20,
            inode: 77,
            offset: n << 20,
        });
        let parts = (0..5).map(|n| LandedPart {
            gpa: n << 12,
            len: 4096,
            follow: n % 2 == 0,
        });
        [
            DiskMessage::Regions(regions.collect()),
            DiskMessage::Landed {
                parts: parts.collect(),
                frames: vec![7; 64],
            },
        ]
    }

    #[test]
    fn a_message_is_received_as_it_was_sent() {
        for message in some() {
            let bytes = message.encode();
            assert_eq!(DiskMessage::receive(&mut &bytes[..]).unwrap(), message);
            for len in 0..bytes.len() {
                assert!(DiskMessage::receive(&mut &bytes[..len]).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn who_asks_waits_until_it_is_done() {
        let (mut server, mut plugin) = UnixStream::pair().unwrap();
        let [message, _] = some();
        let asked = std::thread::spawn(move || message.ask(&mut server).is_ok());
        DiskMessage::receive(&mut plugin).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!asked.is_finished());
        plugin.write_all(&[0]).unwrap();
        assert!(asked.join().unwrap());
    }

    #[test]
    fn max_disk_message_bounds_what_a_server_makes_the_plugin_keep() {
        let with = |frames: usize| DiskMessage::Landed {
            parts: Vec::new(),
            frames: vec![0; frames],
        };
        let most = MAX_DISK_MESSAGE - HEADER;
        assert!(DiskMessage::receive(&mut &with(most).encode()[..]).is_ok());
        assert!(DiskMessage::receive(&mut &with(most + 1).encode()[..]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_message_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 12..200), kind in 0_u16..4) {
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[4..6].copy_from_slice(&kind.to_le_bytes());
            let _ = DiskMessage::receive(&mut &bytes[..]);
        }
    }
}
