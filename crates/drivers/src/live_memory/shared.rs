//! Memory that a VMM shares: a file or memfd behind it, which is mapped here as well.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::maps::{Mapping, parse};
use crate::guest_ram::RamMap;
use crate::mapped_file::MappedFile;

/// A part of the VMM's address space.
#[derive(Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
    file: Arc<MappedFile>,
}

/// All parts that are mapped here.
#[derive(Debug, Default)]
pub(super) struct Shared {
    parts: Vec<Part>,
}

impl Shared {
    /// What of the memory in `map` can be mapped. What cannot is read another way, so nothing here is an error.
    pub(super) fn of(pid: u32, map: &RamMap) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mut parts: Vec<Part> = Vec::new();
        for mapping in parse(&text)
            .iter()
            .filter(|mapping| mapping.shared && mapping.has_file())
        {
            let of_guest = map.segments().iter().any(|segment| {
                segment.hva < mapping.end && mapping.start.0 < segment.hva.0 + segment.size_bytes
            });
            let Some(file) = of_guest.then(|| open(pid, mapping)).flatten() else {
                continue;
            };
            if let Ok(file) = MappedFile::new(&file) {
                parts.push(Part {
                    start: mapping.start.0,
                    end: mapping.end.0,
                    offset: mapping.offset,
                    file: Arc::new(file),
                });
            }
        }
        Self { parts }
    }

    /// Copies bytes at an address of the VMM's. `None`: they are not all in one part.
    pub(super) fn read(&self, hva: u64, buf: &mut [u8]) -> Option<()> {
        let end = hva.checked_add(buf.len() as u64)?;
        let part = self
            .parts
            .iter()
            .find(|part| part.start <= hva && end <= part.end)?;
        part.file.read(part.offset + (hva - part.start), buf)
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
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
