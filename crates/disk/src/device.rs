//! What a request does.

use std::io;
use std::sync::Arc;

use nephoscope_guest::Gpa;
use nephoscope_wire::Region;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::image::{Image, SECTOR};
use crate::request::{Part, Request, bytes};

/// Bytes of a request that are worked on at once.
const PIECE: usize = 1 << 20;
/// Sectors of one discard or zeroing: it bounds how long a guest has to wait for another request's answer.
pub(crate) const MAX_ZEROED: u32 = 32768;

/// What a disk says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Serial([u8; VIRTIO_BLK_ID_BYTES as usize]);

impl Serial {
    /// The first 20 bytes of a name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut serial = Self::default();
        for (to, from) in serial.0.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        serial
    }
}

/// Bytes that went between the disk and the guest's memory, as they went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer<'a> {
    /// The guest wrote to the disk.
    pub is_write: bool,
    /// The first sector, of 512 bytes.
    pub sector: u64,
    /// Where they are in the guest's memory, in their order: address and length.
    pub frames: &'a [(Gpa, u32)],
    /// What they are.
    pub bytes: &'a [u8],
}

/// Is told of what goes between disk and memory, when it is where it goes and before the guest is answered.
pub trait Transfers: Send + Sync {
    /// Guest RAM is there from now on, and nowhere else.
    fn memory(&self, _regions: &[Region]) {}
    /// Of bytes.
    fn moved(&self, transfer: Transfer<'_>);
    /// These sectors are zeros now, by a discard or a request for zeros.
    fn zeroed(&self, sector: u64, sectors: u64);
}

/// A disk.
pub struct Device {
    image: Arc<Image>,
    serial: Serial,
    transfers: Box<dyn Transfers>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// A request that is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    Failed,
    Unsupported,
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl Device {
    /// A disk with this image.
    #[must_use]
    pub fn new(image: Arc<Image>, serial: Serial, transfers: Box<dyn Transfers>) -> Self {
        Self {
            image,
            serial,
            transfers,
        }
    }

    /// Its image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Guest RAM is there from now on, and nowhere else.
    pub(crate) fn memory(&self, regions: &[Region]) {
        self.transfers.memory(regions);
    }

    /// Does it: the status, and how many bytes of the guest's memory were written but for that.
    pub(crate) fn execute<M: GuestMemory + ?Sized>(&self, memory: &M, request: &Request) -> (u8, u32) {
        let done = match request.kind {
            VIRTIO_BLK_T_IN => self.read(memory, request),
            VIRTIO_BLK_T_OUT => self.write(memory, request).map(|()| 0),
            VIRTIO_BLK_T_FLUSH => self.image.sync().map(|()| 0).map_err(Refused::from),
            VIRTIO_BLK_T_GET_ID => self.name(memory, request),
            VIRTIO_BLK_T_DISCARD => self.zero(memory, request, false).map(|()| 0),
            VIRTIO_BLK_T_WRITE_ZEROES => self.zero(memory, request, true).map(|()| 0),
            _ => Err(Refused::Unsupported),
        };
        let (status, len) = match done {
            Ok(len) => (VIRTIO_BLK_S_OK, len),
            Err(Refused::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refused::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        (u8::try_from(status).unwrap_or(1), len)
    }

    /// Whether so many bytes from this sector on are whole sectors of the disk.
    fn check(&self, sector: u64, len: u64) -> Result<(), Refused> {
        let end = sector.checked_add(len / SECTOR);
        let fits = len.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.image.sectors());
        if fits { Ok(()) } else { Err(Refused::Failed) }
    }

    fn read<M: GuestMemory + ?Sized>(&self, memory: &M, request: &Request) -> Result<u32, Refused> {
        let len = bytes(&request.writable);
        self.check(request.sector, len)?;
        in_pieces(request.sector, &request.writable, |sector, frames, piece| {
            self.image.read(sector, piece)?;
            let mut rest = &piece[..];
            for (at, len) in frames {
                let (now, later) = rest.split_at(rest.len().min(usize::try_from(*len).unwrap_or(usize::MAX)));
                memory
                    .write_slice(now, GuestAddress(at.0))
                    .map_err(|_| Refused::Failed)?;
                rest = later;
            }
            self.transfers.moved(Transfer {
                is_write: false,
                sector,
                frames,
                bytes: piece,
            });
            Ok(())
        })?;
        u32::try_from(len).map_err(|_| Refused::Failed)
    }

    fn write<M: GuestMemory + ?Sized>(&self, memory: &M, request: &Request) -> Result<(), Refused> {
        if self.image.is_read_only() {
            return Err(Refused::Failed);
        }
        self.check(request.sector, bytes(&request.readable))?;
        in_pieces(request.sector, &request.readable, |sector, frames, piece| {
            copy_out(memory, frames, piece)?;
            self.image.write(sector, piece)?;
            self.image.settle()?;
            self.transfers.moved(Transfer {
                is_write: true,
                sector,
                frames,
                bytes: piece,
            });
            Ok(())
        })
    }

    fn name<M: GuestMemory + ?Sized>(&self, memory: &M, request: &Request) -> Result<u32, Refused> {
        let mut rest = &self.serial.0[..];
        for part in &request.writable {
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(part.len).unwrap_or(usize::MAX)));
            memory.write_slice(now, part.at).map_err(|_| Refused::Failed)?;
            rest = later;
        }
        let written = self.serial.0.len() - rest.len();
        u32::try_from(written).map_err(|_| Refused::Failed)
    }

    /// Discards or zeroes (virtio 1.2, 5.2.6: `virtio_blk_discard_write_zeroes`). What is discarded reads as zeros as well.
    fn zero<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        request: &Request,
        may_unmap: bool,
    ) -> Result<(), Refused> {
        if self.image.is_read_only() {
            return Err(Refused::Failed);
        }
        let mut range = [0; 16];
        if bytes(&request.readable) != range.len() as u64 {
            // One range for each request is what the device offers.
            return Err(Refused::Unsupported);
        }
        let frames: Vec<(Gpa, u32)> = request.readable.iter().map(frame).collect();
        copy_out(memory, &frames, &mut range)?;
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&range[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let (sector, sectors, flags) = (u64::from(word(4)) << 32 | u64::from(word(0)), word(8), word(12));
        if flags & !u32::from(may_unmap) != 0 {
            return Err(Refused::Unsupported);
        }
        if sectors > MAX_ZEROED {
            return Err(Refused::Failed);
        }
        self.check(sector, u64::from(sectors) * SECTOR)?;
        self.image.zero(sector, sectors.into())?;
        self.image.settle()?;
        self.transfers.zeroed(sector, sectors.into());
        Ok(())
    }
}

fn frame(part: &Part) -> (Gpa, u32) {
    (Gpa(part.at.0), part.len)
}

/// Copies guest memory, so that nobody changes it any more.
fn copy_out<M: GuestMemory + ?Sized>(
    memory: &M,
    frames: &[(Gpa, u32)],
    into: &mut [u8],
) -> Result<(), Refused> {
    let mut rest = into;
    for (at, len) in frames {
        let len = rest.len().min(usize::try_from(*len).unwrap_or(usize::MAX));
        let (now, later) = rest.split_at_mut(len);
        memory
            .read_slice(now, GuestAddress(at.0))
            .map_err(|_| Refused::Failed)?;
        rest = later;
    }
    Ok(())
}

/// Does something with as many bytes of the parts as fit into a piece, in their order, until all are done.
fn in_pieces(
    mut sector: u64,
    parts: &[Part],
    mut work: impl FnMut(u64, &[(Gpa, u32)], &mut [u8]) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut buffer = Vec::new();
    let mut frames: Vec<(Gpa, u32)> = Vec::new();
    let mut parts = parts.iter().map(frame);
    let mut rest: Option<(Gpa, u32)> = None;
    loop {
        let mut filled: usize = 0;
        frames.clear();
        while filled < PIECE {
            let Some((at, len)) = rest.take().or_else(|| parts.next()) else {
                break;
            };
            let room = u32::try_from(PIECE - filled).unwrap_or(u32::MAX);
            let now = len.min(room);
            frames.push((at, now));
            filled += usize::try_from(now).unwrap_or(PIECE);
            if now < len {
                rest = Some((Gpa(at.0.wrapping_add(now.into())), len - now));
            }
        }
        if filled == 0 {
            return Ok(());
        }
        buffer.resize(filled, 0);
        work(sector, &frames, &mut buffer)?;
        sector = sector.saturating_add(filled as u64 / SECTOR);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::fixture::{Link, Told, header, memory, noise, taken};
    use crate::image::Format;

    #[derive(Clone, Default)]
    struct Noted {
        moved: Arc<Mutex<Vec<Told>>>,
        zeroed: Arc<Mutex<Vec<(u64, u64)>>>,
    }

    impl Transfers for Noted {
        fn moved(&self, of: Transfer<'_>) {
            let told = (of.is_write, of.sector, of.frames.to_vec(), of.bytes.to_vec());
            self.moved.lock().unwrap().push(told);
        }

        fn zeroed(&self, sector: u64, sectors: u64) {
            self.zeroed.lock().unwrap().push((sector, sectors));
        }
    }

    struct Disk {
        device: Device,
        noted: Noted,
        memory: vm_memory::GuestMemoryMmap,
        file: tempfile::NamedTempFile,
    }

    fn disk(contents: &[u8], read_only: bool) -> Disk {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        let image = Image::open(file.path(), Format::Raw, read_only).unwrap();
        let noted = Noted::default();
        let serial = Serial::new("a disk with a name that is long");
        Disk {
            device: Device::new(Arc::new(image), serial, Box::new(noted.clone())),
            noted,
            memory: memory(),
            file,
        }
    }

    const STATUS: u64 = 0x3000;
    const OK: u8 = 0;
    const FAILED: u8 = 1;
    const UNSUPPORTED: u8 = 2;

    impl Disk {
        fn ask(&self, kind: u32, sector: u64, data: &[Link]) -> (u8, u32) {
            header(&self.memory, 0x1000, kind, sector);
            let (reads, writes): (Vec<Link>, Vec<Link>) = data.iter().partition(|link| !link.2);
            let links: Vec<Link> = [(0x1000, 16, false)]
                .into_iter()
                .chain(reads)
                .chain(writes)
                .chain([(STATUS, 1, true)])
                .collect();
            let request = taken(&self.memory, &links).unwrap();
            self.device.execute(&self.memory, &request)
        }

        fn at(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }
    }

    #[test]
    fn what_is_read_is_told_with_its_sectors_and_its_frames() {
        let contents = noise(64 << 10);
        let disk = disk(&contents, true);
        let parts = [(0x40_0000, 700, true), (0x50_0000, 1348, true)];
        assert_eq!(disk.ask(VIRTIO_BLK_T_IN, 3, &parts), (OK, 2048));
        let read = &contents[3 * 512..3 * 512 + 2048];
        assert_eq!([disk.at(0x40_0000, 700), disk.at(0x50_0000, 1348)].concat(), read);
        let frames = vec![(Gpa(0x40_0000), 700), (Gpa(0x50_0000), 1348)];
        assert_eq!(
            *disk.noted.moved.lock().unwrap(),
            [(false, 3, frames, read.to_vec())]
        );
    }

    #[test]
    fn a_large_request_is_told_piece_by_piece_and_all_of_it() {
        let contents = noise(4 << 20);
        let disk = disk(&contents, true);
        let len = u32::try_from(PIECE * 2 + 1024).unwrap();
        assert_eq!(disk.ask(VIRTIO_BLK_T_IN, 1, &[(0x40_0000, len, true)]), (OK, len));
        let told = disk.noted.moved.lock().unwrap();
        assert_eq!(
            told.iter().map(|told| told.3.len()).collect::<Vec<_>>(),
            [PIECE, PIECE, 1024]
        );
        let all: Vec<u8> = told.iter().flat_map(|told| told.3.clone()).collect();
        assert_eq!(all, contents[512..512 + PIECE * 2 + 1024]);
        assert_eq!(told[2].1, 1 + (PIECE as u64) * 2 / 512);
        assert_eq!(told[2].2, [(Gpa(0x40_0000 + 2 * PIECE as u64), 1024)]);
    }

    #[test]
    fn what_is_written_is_in_the_file_and_told() {
        let disk = disk(&vec![0; 64 << 10], false);
        let bytes = noise(1024);
        disk.memory.write_slice(&bytes, GuestAddress(0x40_0000)).unwrap();
        let written = [(0x40_0000, 1024, false)];
        assert_eq!(disk.ask(VIRTIO_BLK_T_OUT, 5, &written), (OK, 0));
        let file = std::fs::read(disk.file.path()).unwrap();
        assert_eq!((&file[5 * 512..7 * 512], file.len()), (&bytes[..], 64 << 10));
        let frames = vec![(Gpa(0x40_0000), 1024)];
        assert_eq!(*disk.noted.moved.lock().unwrap(), [(true, 5, frames, bytes)]);
        assert_eq!(disk.ask(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 0));
    }

    #[test]
    fn nothing_beyond_the_end_and_no_part_of_a_sector_is_touched() {
        let contents = noise(8 << 10);
        let disk = disk(&contents, false);
        for (sector, len) in [
            (16, 512),
            (15, 1024),
            (0, 511),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
        ] {
            for (kind, write) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
                let asked = disk.ask(kind, sector, &[(0x40_0000, len, write)]);
                assert_eq!(asked, (FAILED, 0), "{sector} {len}");
            }
        }
        // Where there is no memory.
        assert_eq!(disk.ask(VIRTIO_BLK_T_IN, 0, &[(1 << 40, 512, true)]).0, FAILED);
        assert_eq!(disk.ask(VIRTIO_BLK_T_OUT, 0, &[(1 << 40, 512, false)]).0, FAILED);
        assert_eq!(std::fs::read(disk.file.path()).unwrap(), contents);
    }

    #[test]
    fn nobody_writes_to_a_disk_that_is_to_be_read() {
        let contents = noise(8 << 10);
        let disk = disk(&contents, true);
        let zeros = [(0x40_0000, 16, false)];
        assert_eq!(
            disk.ask(VIRTIO_BLK_T_OUT, 0, &[(0x40_0000, 512, false)]).0,
            FAILED
        );
        assert_eq!(disk.ask(VIRTIO_BLK_T_DISCARD, 0, &zeros).0, FAILED);
        assert_eq!(disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &zeros).0, FAILED);
        assert_eq!(std::fs::read(disk.file.path()).unwrap(), contents);
    }

    #[test]
    fn zeroed_and_discarded_sectors_read_as_zeros() {
        let contents = noise(64 << 10);
        let disk = disk(&contents, false);
        let range = |sector: u64, sectors: u32, flags: u32| {
            let range = [
                &sector.to_le_bytes()[..],
                &sectors.to_le_bytes(),
                &flags.to_le_bytes(),
            ]
            .concat();
            disk.memory.write_slice(&range, GuestAddress(0x40_0000)).unwrap();
            [(0x40_0000, 16, false)]
        };
        assert_eq!(disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(4, 3, 1)).0, OK);
        assert_eq!(disk.ask(VIRTIO_BLK_T_DISCARD, 0, &range(20, 8, 0)).0, OK);
        assert_eq!(disk.ask(VIRTIO_BLK_T_DISCARD, 0, &range(40, 8, 1)).0, UNSUPPORTED);
        assert_eq!(
            disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(40, 8, 2)).0,
            UNSUPPORTED
        );
        assert_eq!(disk.ask(VIRTIO_BLK_T_DISCARD, 0, &range(127, 2, 0)).0, FAILED);
        let mut expected = contents;
        expected[4 * 512..7 * 512].fill(0);
        expected[20 * 512..28 * 512].fill(0);
        assert_eq!(std::fs::read(disk.file.path()).unwrap(), expected);
        assert_eq!(*disk.noted.zeroed.lock().unwrap(), [(4, 3), (20, 8)]);
    }

    #[test]
    fn max_zeroed_bounds_how_long_one_request_takes() {
        let disk = disk(&vec![1; (MAX_ZEROED as usize + 8) * 512], false);
        let ask = |sectors: u32| {
            let range = [&0_u64.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
            disk.memory.write_slice(&range, GuestAddress(0x40_0000)).unwrap();
            disk.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(0x40_0000, 16, false)])
                .0
        };
        assert_eq!((ask(MAX_ZEROED), ask(MAX_ZEROED + 1)), (OK, FAILED));
    }

    #[test]
    fn it_says_its_name_and_refuses_what_it_does_not_know() {
        let disk = disk(&noise(4096), false);
        let name = [(0x40_0000, 9, true), (0x50_0000, 100, true)];
        assert_eq!(disk.ask(VIRTIO_BLK_T_GET_ID, 0, &name), (OK, 20));
        let said = [disk.at(0x40_0000, 9), disk.at(0x50_0000, 12)].concat();
        assert_eq!(said, b"a disk with a name t\0");
        assert_eq!(disk.ask(99, 0, &[]), (UNSUPPORTED, 0));
    }
}
