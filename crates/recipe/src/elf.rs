//! User programs and libraries: ELF files whose pages the kernel maps as they are.
//!
//! Position-independent code is mapped straight from the page cache, so what executes equals a 4 KiB block of the file
//! (System V gABI chapter 5, "Program Loading"; `fs/binfmt_elf.c`). A block past the end of the file is filled with
//! zeros; a block that two segments share is mapped twice with the same contents. Text relocations (`DT_TEXTREL`) would
//! change pages in memory; such pages match nothing and are reported as modified.

use std::collections::BTreeSet;

use nephoscope_guest::PAGE_SIZE;
use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use crate::error::RecipeError;
use crate::object::{Facts, FilePage, Load, Object, ObjectKind, Part, PartKind, Placement};
use crate::site::Values;

/// Program headers that are read: real files have a dozen. It stops a file that lists the same segment without end.
pub const MAX_SEGMENTS: usize = 512;
/// How often segments may map each block of a file, on average: real ones share a block where one ends and the next
/// begins. It stops overlapping segments from making gigabytes of a small file.
pub const MAX_BLOCK_USES: u64 = 4;

const PAGE: u64 = PAGE_SIZE as u64;

/// Reads a user ELF file: `ET_EXEC` or `ET_DYN`, 32 or 64 bits, for x86.
///
/// # Errors
/// [`RecipeError`] if it is something else, or its headers cannot be right.
pub fn recognise(file: &[u8]) -> Result<Object, RecipeError> {
    match file.first_chunk::<5>() {
        Some([0x7f, b'E', b'L', b'F', 2]) => read::<elf::FileHeader64<Endianness>>(file),
        Some([0x7f, b'E', b'L', b'F', 1]) => read::<elf::FileHeader32<Endianness>>(file),
        _ => Err(RecipeError::Other {
            expected: "an ELF file",
        }),
    }
}

fn malformed(what: &'static str, at: u64) -> RecipeError {
    RecipeError::Malformed { what, at }
}

fn read<Elf: FileHeader<Endian = Endianness>>(file: &[u8]) -> Result<Object, RecipeError> {
    let header = Elf::parse(file).map_err(|_| malformed("ELF header", 0))?;
    let endian = header.endian().map_err(|_| malformed("ELF header", 5))?;
    let (kind, machine) = (header.e_type(endian), header.e_machine(endian));
    if !matches!(kind, elf::ET_EXEC | elf::ET_DYN) || !matches!(machine, elf::EM_X86_64 | elf::EM_386) {
        return Err(RecipeError::Other {
            expected: "a program or shared library for x86",
        });
    }
    let table = header.e_phoff(endian).into();
    let headers = header
        .program_headers(endian, file)
        .map_err(|_| malformed("program header table", table))?;
    if headers.len() > MAX_SEGMENTS {
        return Err(RecipeError::TooLarge {
            what: "the program header table",
            limit: MAX_SEGMENTS,
        });
    }
    let mut facts = Facts {
        entry: header.e_entry(endian).into(),
        ..Facts::default()
    };
    let mut dynamic = Dynamic::default();
    let mut loads = Vec::new();
    for segment in headers {
        match segment.p_type(endian) {
            elf::PT_LOAD => loads.push(load::<Elf>(segment, endian, file)?),
            elf::PT_INTERP => facts.interpreter = interpreter::<Elf>(segment, endian, file),
            elf::PT_NOTE if facts.build_id.is_none() => {
                facts.build_id = build_id::<Elf>(segment, endian, file)
            }
            elf::PT_DYNAMIC => dynamic = read_dynamic::<Elf>(segment, endian, file),
            _ => {}
        }
    }
    facts.name = dynamic
        .soname
        .and_then(|at| name(file, &loads, dynamic.strings, at));
    let object_kind = classify(kind == elf::ET_EXEC, &dynamic, &facts);
    let (pages, parts) = blocks(file, &loads)?;
    Ok(Object {
        kind: object_kind,
        facts,
        loads,
        pages,
        parts,
    })
}

fn load<Elf: FileHeader<Endian = Endianness>>(
    segment: &Elf::ProgramHeader,
    endian: Endianness,
    file: &[u8],
) -> Result<Load, RecipeError> {
    let flags = segment.p_flags(endian);
    let load = Load {
        va: segment.p_vaddr(endian).into(),
        offset: segment.p_offset(endian).into(),
        file_len: segment.p_filesz(endian).into(),
        mem_len: segment.p_memsz(endian).into(),
        execute: flags.contains(elf::PF_X),
        write: flags.contains(elf::PF_W),
    };
    let end = load
        .offset
        .checked_add(load.file_len)
        .ok_or_else(|| malformed("segment", load.offset))?;
    // The kernel refuses a segment whose address and offset differ within a page, and one that wraps.
    let fits = end <= file.len() as u64 && load.va.checked_add(load.mem_len).is_some();
    if !fits || load.mem_len < load.file_len || (load.file_len > 0 && load.va % PAGE != load.offset % PAGE) {
        return Err(malformed("segment", load.offset));
    }
    Ok(load)
}

fn interpreter<Elf: FileHeader<Endian = Endianness>>(
    segment: &Elf::ProgramHeader,
    endian: Endianness,
    file: &[u8],
) -> Option<String> {
    let bytes = segment.data(endian, file).ok()?;
    text(bytes)
}

/// Text up to a NUL, if it is short and plain.
fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.get(..bytes.len().min(4096))?;
    let end = bytes.iter().position(|b| *b == 0)?;
    String::from_utf8(bytes.get(..end)?.to_vec()).ok()
}

fn build_id<Elf: FileHeader<Endian = Endianness>>(
    segment: &Elf::ProgramHeader,
    endian: Endianness,
    file: &[u8],
) -> Option<Vec<u8>> {
    let mut notes = segment.notes(endian, file).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.name() == elf::ELF_NOTE_GNU
            && note.n_type(endian) == elf::NT_GNU_BUILD_ID
            && note.desc().len() <= 64
        {
            return Some(note.desc().to_vec());
        }
    }
    None
}

/// What is used of the dynamic section.
#[derive(Debug, Default)]
struct Dynamic {
    soname: Option<u64>,
    strings: Option<u64>,
    pie: bool,
    needs: bool,
}

fn read_dynamic<Elf: FileHeader<Endian = Endianness>>(
    segment: &Elf::ProgramHeader,
    endian: Endianness,
    file: &[u8],
) -> Dynamic {
    let mut dynamic = Dynamic::default();
    let Ok(Some(entries)) = segment.dynamic(endian, file) else {
        return dynamic;
    };
    for entry in entries {
        let value: u64 = entry.d_val(endian).into();
        match entry.d_tag(endian) {
            elf::DT_NULL => break,
            elf::DT_SONAME => dynamic.soname = Some(value),
            elf::DT_STRTAB => dynamic.strings = Some(value),
            elf::DT_NEEDED => dynamic.needs = true,
            elf::DT_FLAGS_1 => dynamic.pie = elf::DynamicFlags1(value).contains(elf::DF_1_PIE),
            _ => {}
        }
    }
    dynamic
}

/// A string of the dynamic string table, whose address the loads turn into a file offset.
fn name(file: &[u8], loads: &[Load], strings: Option<u64>, at: u64) -> Option<String> {
    let address = strings?.checked_add(at)?;
    let load = loads
        .iter()
        .find(|l| l.va <= address && address - l.va < l.file_len)?;
    let offset = usize::try_from(load.offset.checked_add(address - load.va)?).ok()?;
    text(file.get(offset..)?)
}

fn classify(exec: bool, dynamic: &Dynamic, facts: &Facts) -> ObjectKind {
    let named = facts.name.as_deref();
    match (exec || dynamic.pie, named) {
        (true, _) => ObjectKind::Executable,
        // A loader stands alone: it needs nobody, has an entry, and its name says what it loads for.
        (false, Some(name)) if !dynamic.needs && facts.entry != 0 && name.starts_with("ld") => {
            ObjectKind::Interpreter
        }
        (false, Some(_)) => ObjectKind::SharedObject,
        // Programs linked before DF_1_PIE existed.
        (false, None) if facts.interpreter.is_some() => ObjectKind::Executable,
        (false, None) => ObjectKind::SharedObject,
    }
}

fn blocks(file: &[u8], loads: &[Load]) -> Result<(Vec<FilePage>, Vec<Part>), RecipeError> {
    let mut pages = BTreeSet::new();
    let mut parts = Vec::new();
    let mut total = 0;
    let own = (file.len() as u64).div_ceil(PAGE) + loads.len() as u64;
    for load in loads.iter().filter(|load| load.file_len > 0) {
        let first = load.offset / PAGE;
        let last = (load.offset + load.file_len).div_ceil(PAGE);
        total += last - first;
        if total > own.saturating_mul(MAX_BLOCK_USES) {
            return Err(RecipeError::TooLarge {
                what: "what the segments map",
                limit: usize::try_from(own.saturating_mul(MAX_BLOCK_USES).saturating_mul(PAGE))
                    .unwrap_or(usize::MAX),
            });
        }
        let start = load.va - load.va % PAGE;
        let mut text = Vec::new();
        for number in first..last {
            let block = block(file, number);
            let va = start.wrapping_add((number - first) * PAGE);
            insert(&mut pages, &block, number, va, load.execute)?;
            if load.write && number + 1 == last && load.mem_len > load.file_len {
                // The kernel clears the rest of the last page for .bss (`padzero`).
                let mut cleared = block;
                let end = usize::try_from((load.offset + load.file_len - 1) % PAGE + 1).unwrap_or(PAGE_SIZE);
                cleared.get_mut(end..).unwrap_or(&mut []).fill(0);
                insert(&mut pages, &cleared, number, va, load.execute)?;
            }
            if load.execute {
                text.extend_from_slice(&block);
            }
        }
        if load.execute {
            parts.push(Part {
                kind: PartKind::UserText,
                name: format!("text+{:#x}", first * PAGE),
                link: start,
                placement: Placement::Aligned(PAGE),
                bytes: text,
                sites: Vec::new(),
                values: Values::default(),
            });
        }
    }
    let pages = pages.into_iter().map(|(number, va, execute, digest)| FilePage {
        digest,
        number,
        va,
        execute,
    });
    Ok((pages.collect(), parts))
}

fn insert(
    pages: &mut BTreeSet<(u32, u64, bool, [u8; 32])>,
    block: &[u8; PAGE_SIZE],
    number: u64,
    va: u64,
    execute: bool,
) -> Result<(), RecipeError> {
    let number = u32::try_from(number).map_err(|_| malformed("segment", number.saturating_mul(PAGE)))?;
    pages.insert((number, va, execute, *blake3::hash(block).as_bytes()));
    Ok(())
}

/// A block of the file as the page cache holds it.
fn block(file: &[u8], number: u64) -> [u8; PAGE_SIZE] {
    let mut block = [0; PAGE_SIZE];
    let start = usize::try_from(number.saturating_mul(PAGE)).unwrap_or(usize::MAX);
    let bytes = file.get(start..).unwrap_or(&[]);
    let len = bytes.len().min(PAGE_SIZE);
    if let (Some(to), Some(from)) = (block.get_mut(..len), bytes.get(..len)) {
        to.copy_from_slice(from);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn system(path: &str) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    fn libc() -> Vec<u8> {
        system("/lib/x86_64-linux-gnu/libc.so.6")
    }

    #[test]
    fn kinds_are_told_by_contents() {
        let kind = |path: &str| recognise(&system(path)).unwrap().kind;
        assert_eq!(kind("/bin/bash"), ObjectKind::Executable);
        assert_eq!(
            kind("/lib/x86_64-linux-gnu/libc.so.6"),
            ObjectKind::SharedObject,
            "it has an interpreter too"
        );
        assert_eq!(kind("/lib64/ld-linux-x86-64.so.2"), ObjectKind::Interpreter);
        assert_eq!(kind("/proc/self/exe"), ObjectKind::Executable);
    }

    #[test]
    fn a_library_has_its_facts_and_every_mapped_block() {
        let file = libc();
        let object = recognise(&file).unwrap();
        assert_eq!(object.facts.name.as_deref(), Some("libc.so.6"));
        assert_eq!(object.facts.build_id.as_ref().map(Vec::len), Some(20));
        let text: u64 = object
            .loads
            .iter()
            .filter(|l| l.execute)
            .map(|l| l.file_len.div_ceil(4096))
            .sum();
        assert_eq!(object.pages.iter().filter(|p| p.execute).count() as u64, text);
        for page in object.pages.iter().filter(|p| !p.execute).take(3) {
            assert_eq!(
                page.digest,
                *blake3::hash(&block(&file, page.number.into())).as_bytes()
            );
        }
        let part = &object.parts[0];
        assert_eq!(part.bytes.len() % 4096, 0);
    }

    /// A file with one segment, and its header's fields to be spoilt.
    fn small(spoil: impl Fn(&mut Vec<u8>)) -> Result<Object, RecipeError> {
        let mut file = vec![0; 0x2345];
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for (at, bytes) in [
            (16, &[2_u8, 0, 62, 0, 1, 0, 0, 0][..]),
            (32, &64_u64.to_le_bytes()),
            (52, &[64, 0, 56, 0, 1, 0]),
            (64, &[1, 0, 0, 0, 5, 0, 0, 0]),
            (72, &0x1000_u64.to_le_bytes()),
            (80, &0x40_1000_u64.to_le_bytes()),
            (96, &0x1345_u64.to_le_bytes()),
            (104, &0x1345_u64.to_le_bytes()),
            (112, &0x1000_u64.to_le_bytes()),
        ] {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        file[0x2344] = 7;
        spoil(&mut file);
        recognise(&file)
    }

    #[test]
    fn the_last_partial_page_is_filled_with_zeros() {
        let object = small(|_| {}).unwrap();
        assert_eq!(
            object.pages.iter().map(|p| (p.number, p.va)).collect::<Vec<_>>(),
            [(1, 0x40_1000), (2, 0x40_2000)]
        );
        let mut last = [0; 4096];
        last[0x344] = 7;
        assert_eq!(object.pages[1].digest, *blake3::hash(&last).as_bytes());
    }

    #[test]
    fn hostile_segments_are_refused() {
        let put = |at: usize, value: u64| {
            move |f: &mut Vec<u8>| f[at..at + 8].copy_from_slice(&value.to_le_bytes())
        };
        assert!(small(put(72, u64::MAX - 5)).is_err(), "offset wraps");
        assert!(small(put(72, 0x1001)).is_err(), "offset and address disagree");
        assert!(small(put(96, 0x9999_9999)).is_err(), "past the end of the file");
        assert!(small(put(80, u64::MAX - 0xfff)).is_err(), "address wraps");
        assert!(small(put(104, 1)).is_err(), "less in memory than in the file");
        assert!(small(put(32, u64::MAX - 3)).is_err(), "header table outside");
    }

    #[test]
    fn max_segments_stops_a_table_without_end() {
        let mut file = vec![0; 64 + 56 * 600];
        file[..64].copy_from_slice(&libc()[..64]);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[56..58].copy_from_slice(&600_u16.to_le_bytes());
        assert!(matches!(recognise(&file), Err(RecipeError::TooLarge { .. })));
    }

    #[test]
    fn max_block_uses_stops_segments_that_multiply_a_file() {
        let mapped = |times: u16| {
            let mut file = vec![0; 100 * 4096];
            file[..64].copy_from_slice(&libc()[..64]);
            file[32..40].copy_from_slice(&64_u64.to_le_bytes());
            file[56..58].copy_from_slice(&times.to_le_bytes());
            let len = file.len() as u64;
            for i in 0..usize::from(times) {
                let at = 64 + 56 * i;
                file[at..at + 8].copy_from_slice(&[1, 0, 0, 0, 4, 0, 0, 0]);
                file[at + 32..at + 40].copy_from_slice(&len.to_le_bytes());
                file[at + 40..at + 48].copy_from_slice(&len.to_le_bytes());
            }
            recognise(&file)
        };
        assert!(mapped(4).is_ok());
        assert!(matches!(mapped(5), Err(RecipeError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn a_mutated_file_is_read_or_refused(changes in proptest::collection::vec((0_usize..2048, any::<u8>()), 1..12)) {
            let mut file = system("/bin/true");
            for (at, byte) in changes {
                file[at] = byte;
            }
            let _ = recognise(&file);
        }
    }
}
