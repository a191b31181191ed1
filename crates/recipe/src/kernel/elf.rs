//! The decompressed kernel as an ELF file: its sections and what surrounds them in its segments.

use object::elf::{PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, elf};

use super::bytes;
use super::image::Section;
use crate::error::RecipeError;

/// What is read of an ELF kernel.
pub(crate) struct KernelElf {
    /// Sections that are loaded and have bytes.
    pub(crate) sections: Vec<Section>,
    /// Loadable segments: (address, bytes).
    segments: Vec<(u64, Vec<u8>)>,
    /// Length of the file up to and including its last structure.
    pub(crate) len: usize,
    /// The entry point.
    pub(crate) entry: u64,
    /// The GNU build ID.
    pub(crate) build_id: Option<Vec<u8>>,
}

/// More sections than any kernel has.
const MAX_SECTIONS: usize = 4096;

fn malformed(what: &'static str, at: u64) -> RecipeError {
    RecipeError::Malformed { what, at }
}

/// What the sections of a file may have together: as many bytes as the file. It stops sections that lie over each other,
/// thousands of which would each be a copy of it.
pub(crate) struct Room(usize);

impl Room {
    pub(crate) fn of(file: &[u8]) -> Self {
        Self(file.len())
    }

    /// Takes the room of one; `at` is where it begins in the file.
    pub(crate) fn take(&mut self, data: &[u8], at: u64) -> Result<(), RecipeError> {
        self.0 = self
            .0
            .checked_sub(data.len())
            .ok_or_else(|| malformed("sections that lie over each other", at))?;
        Ok(())
    }
}

/// Reads a 64-bit little-endian x86 ELF file.
pub(crate) fn read(file: &[u8]) -> Result<KernelElf, RecipeError> {
    let header = elf::FileHeader64::<Endianness>::parse(file).map_err(|_| RecipeError::Other {
        expected: "a 64-bit ELF kernel",
    })?;
    let endian = header.endian().map_err(|_| malformed("the ELF header", 5))?;
    if header.e_machine(endian) != elf::EM_X86_64 || header.e_type(endian) != elf::ET_EXEC {
        return Err(RecipeError::Other {
            expected: "an x86-64 kernel",
        });
    }
    let table = header.e_shoff(endian);
    let sections = header
        .sections(endian, file)
        .map_err(|_| malformed("the section table", table))?;
    if sections.len() > MAX_SECTIONS {
        return Err(malformed("the section table", table));
    }
    let mut end = table.saturating_add(bytes::wide(sections.len()).saturating_mul(64));
    let mut found = Vec::new();
    let mut build_id = None;
    let mut room = Room::of(file);
    for section in sections.iter() {
        let flags = section.sh_flags(endian);
        if section.sh_type(endian) != SHT_NOBITS {
            end = end.max(section.sh_offset(endian).saturating_add(section.sh_size(endian)));
        }
        if flags.0 & SHF_ALLOC.0 == 0 || section.sh_type(endian) == SHT_NOBITS {
            continue;
        }
        let data = section.data(endian, file);
        let data = data.map_err(|_| malformed("a section", section.sh_offset(endian)))?;
        room.take(data, section.sh_offset(endian))?;
        let name = sections.section_name(endian, section).unwrap_or_default();
        if name == b".notes" {
            build_id = note_build_id(data);
        }
        found.push(Section {
            name: String::from_utf8_lossy(name).into_owned(),
            va: section.sh_addr(endian),
            execute: flags.0 & SHF_EXECINSTR.0 != 0,
            raw: data.to_vec(),
            linked: None,
        });
    }
    let programs = header.program_headers(endian, file);
    let programs = programs.map_err(|_| malformed("the program headers", header.e_phoff(endian)))?;
    let mut segments = Vec::new();
    let mut room = Room::of(file);
    for program in programs.iter().filter(|p| p.p_type(endian) == PT_LOAD) {
        let data = program.data(endian, file);
        let data = data.map_err(|()| malformed("a segment", program.p_offset(endian)))?;
        room.take(data, program.p_offset(endian))?;
        segments.push((program.p_vaddr(endian), data.to_vec()));
    }
    let len = bytes::index(end).min(file.len());
    Ok(KernelElf {
        sections: found,
        segments,
        len,
        entry: header.e_entry(endian),
        build_id,
    })
}

impl KernelElf {
    /// Bytes of a segment, whether a section holds them or not.
    pub(crate) fn segment_bytes(&self, va: u64, len: usize) -> Option<&[u8]> {
        self.segments.iter().find_map(|(start, data)| {
            let at = bytes::index(va.checked_sub(*start)?);
            data.get(at..at.checked_add(len)?)
        })
    }
}

/// `NT_GNU_BUILD_ID` in a note section.
pub(crate) fn note_build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0usize;
    loop {
        let name_len = bytes::index(bytes::u32_at(notes, at)?.into());
        let desc_len = bytes::index(bytes::u32_at(notes, at.checked_add(4)?)?.into());
        let kind = bytes::u32_at(notes, at.checked_add(8)?)?;
        let name = at.checked_add(12)?;
        let desc = name.checked_add(name_len)?.checked_next_multiple_of(4)?;
        let end = desc.checked_add(desc_len)?;
        if kind == elf::NT_GNU_BUILD_ID.0 && notes.get(name..name.checked_add(name_len)?)? == b"GNU\0" {
            return notes.get(desc..end).map(<[u8]>::to_vec);
        }
        at = end.checked_next_multiple_of(4)?;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel of these sections (flags, address, offset, size) behind two for their names, over a file of `len` bytes.
    pub(crate) fn kernel(sections: &[(u64, u64, u64, u64)], len: usize) -> Vec<u8> {
        let sections = [&[(0, 0, 0, 0), (0, 0, 0, 1)], sections].concat();
        let mut file = vec![0; len.max(64 + 64 * sections.len())];
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        file[0x28..0x30].copy_from_slice(&64_u64.to_le_bytes());
        file[0x34..0x36].copy_from_slice(&64_u16.to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&u16::try_from(sections.len()).unwrap().to_le_bytes());
        file[0x3e] = 1;
        for (number, (flags, va, offset, size)) in sections.iter().enumerate() {
            let at = 64 + 64 * number;
            file[at + 4] = [0, 3, 1][number.min(2)];
            for (field, word) in [(8, flags), (0x10, va), (0x18, offset), (0x20, size)] {
                file[at + field..at + field + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        file
    }

    #[test]
    fn max_sections_stops_a_table_without_end() {
        let table = |count| kernel(&vec![(2, 0, 0, 0); count], 0);
        assert!(read(&table(MAX_SECTIONS - 2)).is_ok());
        assert!(read(&table(MAX_SECTIONS - 1)).is_err());
    }

    #[test]
    fn sections_that_lie_over_each_other_do_not_multiply_a_kernel() {
        let whole = |count| kernel(&vec![(2, 0, 0, 8192); count], 8192);
        assert!(read(&whole(1)).is_ok());
        assert!(matches!(read(&whole(2)), Err(RecipeError::Malformed { .. })));
    }
}
