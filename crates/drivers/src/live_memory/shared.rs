//! Memory that a VMM shares: a file or memfd behind it, which is mapped here as well.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nephoscope_guest::Pieces;

use super::maps::Mapping;
use super::populated::{next_in_file, of_file};
use crate::guest_ram::RamMap;
use crate::mapped_file::MappedFile;

/// A part of the VMM's address space.
#[derive(Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
    file: Arc<MappedFile>,
    /// The same, to ask for holes.
    handle: File,
}

/// All parts that are mapped here.
#[derive(Debug, Default)]
pub(super) struct Shared {
    parts: Vec<Part>,
}

impl Shared {
    /// What of the memory in any of `maps` can be mapped, of what a process has. What cannot is read another way, so nothing
    /// here is an error.
    pub(super) fn of<'a>(
        pid: u32,
        mappings: &[Mapping],
        maps: impl Iterator<Item = &'a RamMap> + Clone,
    ) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        for mapping in mappings
            .iter()
            .filter(|mapping| mapping.shared && mapping.has_file())
        {
            let of_guest = maps.clone().flat_map(RamMap::segments).any(|segment| {
                segment.hva < mapping.end && mapping.start.0 < segment.hva.0 + segment.size_bytes
            });
            let Some(file) = of_guest.then(|| open(pid, mapping)).flatten() else {
                continue;
            };
            if let Ok(mapped) = MappedFile::new(&file) {
                parts.push(Part {
                    start: mapping.start.0,
                    end: mapping.end.0,
                    offset: mapping.offset,
                    file: Arc::new(mapped),
                    handle: file,
                });
            }
        }
        Self { parts }
    }

    /// Copies bytes at an address of the VMM's, which are there. `None`: they are not all in one part.
    pub(super) fn read(&self, hva: u64, buf: &mut [u8]) -> Option<()> {
        let part = self.part(hva, hva.checked_add(buf.len() as u64)?)?;
        part.file.read(part.offset + (hva - part.start), buf)
    }

    /// Pieces of stretches that are there.
    pub(super) fn read_each(&self, hva: u64, pieces: &Pieces<'_>, buf: &mut [u8]) -> Option<()> {
        let size = pieces.bytes().max(1);
        let all = pieces.stride.checked_mul((buf.len() / size) as u64)?;
        let part = self.part(hva, hva.checked_add(all)?)?;
        let mut at = part.offset + (hva - part.start);
        for stretch in buf.chunks_exact_mut(size) {
            for (piece, offset) in stretch.chunks_mut(pieces.len.max(1)).zip(pieces.offsets) {
                part.file.read(at + offset, piece)?;
            }
            if let (Some(from), Some(rest)) = (pieces.rest_from, stretch.last_mut()) {
                let len = usize::try_from(pieces.stride.checked_sub(from)?).ok()?;
                *rest = u8::from(part.file.is_anything(at + from, len)?);
            }
            at += pieces.stride;
        }
        Some(())
    }

    /// The same of bytes that may not be there: what is not, reads as zeros, and does not come to be.
    pub(super) fn read_with_holes(&self, hva: u64, buf: &mut [u8]) -> Option<()> {
        let part = self.part(hva, hva.checked_add(buf.len() as u64)?)?;
        let mut at = part.offset + (hva - part.start);
        let mut left = buf;
        while !left.is_empty() {
            let (data, hole) = next_in_file(&part.handle, at)?.unwrap_or((u64::MAX, u64::MAX));
            let zeros = usize::try_from(data.saturating_sub(at)).unwrap_or(usize::MAX);
            let (none, rest) = left.split_at_mut(zeros.min(left.len()));
            none.fill(0);
            let here = usize::try_from(hole.saturating_sub(data)).unwrap_or(usize::MAX);
            let (some, rest) = rest.split_at_mut(here.min(rest.len()));
            part.file.read(data, some)?;
            left = rest;
            at = hole;
        }
        Some(())
    }

    fn part(&self, hva: u64, end: u64) -> Option<&Part> {
        self.parts
            .iter()
            .find(|part| part.start <= hva && end <= part.end)
    }

    /// What there is of `[start, end)` of the VMM's address space. `None`: that is not all in one part, or nobody says.
    pub(super) fn populated(&self, start: u64, end: u64) -> Option<Vec<(u64, u64)>> {
        let part = self.part(start, end)?;
        let to_file = |hva: u64| part.offset + (hva - part.start);
        let to_hva = |at: u64| part.start + (at - part.offset);
        let parts = of_file(&part.handle, to_file(start), to_file(end))?;
        Some(
            parts
                .into_iter()
                .map(|(first, last)| (to_hva(first), to_hva(last)))
                .collect(),
        )
    }

    /// How much of `[start, end)` it is.
    pub(super) fn bytes_of(&self, start: u64, end: u64) -> u64 {
        let parts = self.parts.iter();
        let common = parts.map(|part| part.end.min(end).saturating_sub(part.start.max(start)));
        common.sum()
    }
}

/// The file behind a mapping, by the VMM's own descriptor of it: it may have no name in any directory.
fn open(pid: u32, mapping: &Mapping) -> Option<File> {
    let by_range = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
    if let Ok(file) = File::open(by_range) {
        return Some(file);
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    descriptors.flatten().find_map(|descriptor| {
        let about = std::fs::metadata(descriptor.path()).ok()?;
        let device = about.dev();
        let is_it = mapping.file
            == format!(
                "{:02x}:{:02x} {}",
                rustix::fs::major(device),
                rustix::fs::minor(device),
                about.ino()
            );
        is_it.then(|| File::open(descriptor.path()).ok()).flatten()
    })
}
