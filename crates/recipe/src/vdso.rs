//! The vDSO images inside a kernel, found by their shape and patched by their own alternatives.
//!
//! The kernel keeps each as a page-aligned ELF file in its data (`vdso_image_64` and its siblings,
//! `arch/x86/entry/vdso/vdso2c.h`) and maps those pages into processes.

use crate::kernel::build::{Recipe, Skipped};
use crate::kernel::bytes;
use crate::kernel::elf::Room;
use crate::kernel::image::{Image, Section};
use crate::kernel::tables::{Link, rewrites};
use crate::object::{Part, PartKind, Placement};
use crate::site::{SiteKind, Target};

/// ELF's `ET_DYN`, `EM_386`, `EM_X86_64` and `SHT_NOBITS`.
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const SHT_NOBITS: u32 = 8;
/// A vDSO is a few pages; this bounds what a hostile header claims.
const MAX_VDSO_BYTES: usize = 1 << 20;
/// A kernel has three at most. It stops one whose every page claims to begin another.
const MAX_VDSOS: usize = 16;

/// A vDSO has no names that its tables need.
struct NoNames;

impl Link for NoNames {
    fn address(&self, _name: &str) -> Option<u64> {
        None
    }

    fn target(&self, _name: &str) -> Option<(Target, i64)> {
        None
    }

    fn functions(&self) -> Target {
        Target::Nothing
    }

    fn paravirt(&self) -> Target {
        Target::Nothing
    }

    fn trampolines(&self, _image: &Image) -> Vec<u64> {
        Vec::new()
    }

    fn call_thunk_len(&self, _image: &Image) -> usize {
        0
    }
}

/// Every vDSO in the image's data.
pub(crate) fn find(kernel: &Image) -> Vec<Part> {
    let mut found = Vec::new();
    for section in kernel.sections.iter().filter(|s| !s.execute) {
        // Offset of the section's first whole page.
        let first = bytes::index(section.va.wrapping_neg() & 4095);
        let mut at = first;
        while let Some(rest) = section.raw.get(at..).filter(|r| !r.is_empty()) {
            let rest = rest.get(..rest.len().min(MAX_VDSO_BYTES)).unwrap_or(rest);
            let part = rest
                .starts_with(b"\x7fELF")
                .then(|| Elf::new(rest).and_then(|elf| elf.part()))
                .flatten();
            at = at.saturating_add(part.as_ref().map_or(4096, |part| part.bytes.len().max(4096)));
            found.extend(part);
            if found.len() >= MAX_VDSOS {
                return found;
            }
        }
    }
    found
}

/// An ELF file of either class, by the few fields that are needed.
struct Elf<'a> {
    file: &'a [u8],
    wide: bool,
    machine: u16,
}

impl<'a> Elf<'a> {
    fn new(file: &'a [u8]) -> Option<Self> {
        let wide = match file.get(4)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        let machine = bytes::u16_at(file, 18)?;
        let sound = bytes::u16_at(file, 16)? == ET_DYN && matches!(machine, EM_386 | EM_X86_64);
        sound.then_some(Self { file, wide, machine })
    }

    /// A field whose offset and width depend on the class.
    fn word(&self, base: usize, narrow: usize, wide: usize) -> Option<u64> {
        if self.wide {
            bytes::u64_at(self.file, base.checked_add(wide)?)
        } else {
            bytes::u32_at(self.file, base.checked_add(narrow)?).map(u64::from)
        }
    }

    fn half(&self, narrow: usize, wide: usize) -> Option<usize> {
        bytes::u16_at(self.file, if self.wide { wide } else { narrow }).map(usize::from)
    }

    fn part(&self) -> Option<Part> {
        let sections = self.sections()?;
        let end = sections
            .iter()
            .map(|s| s.va.saturating_add(bytes::wide(s.raw.len())))
            .max()?;
        let table = self.word(0, 0x20, 0x28)?;
        let count = bytes::wide(self.half(0x30, 0x3c)?.checked_mul(self.half(0x2e, 0x3a)?)?);
        let len = bytes::index(end.max(table.checked_add(count)?)).checked_next_multiple_of(4096)?;
        if len > MAX_VDSO_BYTES {
            return None;
        }
        let file = self.file.get(..len)?.to_vec();
        let whole = Section {
            name: "vdso".to_owned(),
            va: 0,
            execute: true,
            raw: file.clone(),
            linked: None,
        };
        let tables = Image::new(sections, Vec::new());
        let (rewrites, _) = rewrites(&tables, &NoNames)?;
        let image = Image::new(vec![whole], Vec::new());
        let moving = SiteKind::Relocation;
        let recipe = Recipe {
            image: &image,
            rewrites,
            moving,
            paravirt: Target::Nothing,
            writers: Default::default(),
        };
        let (sites, values) = recipe.sites(0, len, &mut Skipped::default());
        let name = match (self.wide, self.machine) {
            (true, _) => "vdso64",
            (false, EM_X86_64) => "vdsox32",
            (false, _) => "vdso32",
        };
        let placement = Placement::Aligned(4096);
        Some(Part {
            kind: PartKind::Vdso,
            name: name.to_owned(),
            link: 0,
            placement,
            bytes: file,
            sites,
            values,
        })
    }

    /// Sections with bytes, at their addresses: offsets, as a vDSO is linked at 0.
    fn sections(&self) -> Option<Vec<Section>> {
        let table = bytes::index(self.word(0, 0x20, 0x28)?);
        let size = self.half(0x2e, 0x3a)?;
        let count = self.half(0x30, 0x3c)?.min(256);
        let names_at = self.half(0x32, 0x3e)?.checked_mul(size)?.checked_add(table)?;
        let names = bytes::index(self.word(names_at, 0x10, 0x18)?);
        let mut found = Vec::new();
        let mut room = Room::of(self.file);
        for number in 0..count {
            let at = number.checked_mul(size)?.checked_add(table)?;
            let flags = self.word(at, 8, 8)?;
            let kind = bytes::u32_at(self.file, at.checked_add(4)?)?;
            if flags & 2 == 0 || kind == SHT_NOBITS {
                continue;
            }
            let offset = bytes::index(self.word(at, 0x10, 0x18)?);
            let len = bytes::index(self.word(at, 0x14, 0x20)?);
            let name = names.checked_add(bytes::index(bytes::u32_at(self.file, at)?.into()))?;
            let name = self.file.get(name..)?;
            let name = name.get(..memchr::memchr(0, name.get(..64.min(name.len()))?)?)?;
            let data = self.file.get(offset..offset.checked_add(len)?)?;
            room.take(data, bytes::wide(offset)).ok()?;
            found.push(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                va: self.word(at, 0x0c, 0x10)?,
                execute: flags & 4 != 0,
                raw: data.to_vec(),
                linked: None,
            });
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vDSO of so many bytes: a header, and one section that is not loaded.
    fn vdso(len: usize) -> Vec<u8> {
        let mut file = vec![0; len];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..20].copy_from_slice(&[3, 0, 62, 0]);
        file[0x28..0x30].copy_from_slice(&64_u64.to_le_bytes());
        file[0x3a..0x3e].copy_from_slice(&[64, 0, 1, 0]);
        // Loaded, with all that follows the header.
        file[64 + 4] = 1;
        file[64 + 8] = 2;
        file[64 + 0x20..64 + 0x28].copy_from_slice(&u64::try_from(len).unwrap().to_le_bytes());
        file
    }

    fn in_kernel(bytes: Vec<u8>) -> Vec<Part> {
        let data = Section {
            name: ".data".into(),
            va: 0x1000,
            execute: false,
            raw: bytes,
            linked: None,
        };
        find(&Image::new(vec![data], Vec::new()))
    }

    #[test]
    fn max_vdsos_stops_a_kernel_whose_every_page_begins_one() {
        assert_eq!(in_kernel(vdso(4096)).len(), 1);
        assert_eq!(in_kernel(vdso(4096).repeat(MAX_VDSOS)).len(), MAX_VDSOS);
        assert_eq!(in_kernel(vdso(4096).repeat(MAX_VDSOS + 1)).len(), MAX_VDSOS);
    }

    #[test]
    fn max_vdso_bytes_stops_one_that_claims_to_be_as_long_as_the_kernel() {
        assert_eq!(in_kernel(vdso(MAX_VDSO_BYTES))[0].bytes.len(), MAX_VDSO_BYTES);
        assert_eq!(in_kernel(vdso(MAX_VDSO_BYTES + 4096)), []);
    }

    #[test]
    fn sections_that_lie_over_each_other_do_not_multiply_a_vdso() {
        let mut file = vdso(4096);
        assert_eq!(in_kernel(file.clone()).len(), 1);
        file[0x3c] = 2;
        let header = file[64..128].to_vec();
        file[128..192].copy_from_slice(&header);
        assert_eq!(in_kernel(file), []);
    }
}
