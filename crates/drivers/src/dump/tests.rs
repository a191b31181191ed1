//! Files made by hand after the formats' descriptions; a dump of a real guest is read in `tests/e2e`.

use std::io::Write;

use super::*;

fn opened(bytes: &[u8]) -> Result<Dump, DumpError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Dump::of(MappedFile::new(&file).unwrap())
}

fn read(dump: &Dump, at: u64, len: usize) -> Result<Vec<u8>, u64> {
    let mut buf = vec![0xee; len];
    dump.read(Gpa(at), &mut buf)
        .map(|()| buf)
        .map_err(|fault| fault.at.0)
}

/// A range of a LiME image.
fn lime(first: u64, bytes: &[u8]) -> Vec<u8> {
    let last = first + bytes.len() as u64 - 1;
    [
        b"EMiL".as_slice(),
        &1_u32.to_le_bytes(),
        &first.to_le_bytes(),
        &last.to_le_bytes(),
        &[0; 8],
        bytes,
    ]
    .concat()
}

/// A segment of a 64-bit core: kind, place in the file, address, bytes in the file and in memory.
type Segment = (u32, u64, u64, u64, u64);

/// The headers of a 64-bit core.
fn core(machine: u16, segments: &[Segment]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [4_u16, machine] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1_u32.to_le_bytes());
    for word in [0_u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    let count = u16::try_from(segments.len()).unwrap();
    for half in [64_u16, 56, count, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for (kind, at, gpa, len, memory) in segments {
        for half in [*kind, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for word in [*at, 0, *gpa, *len, *memory, 0] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// A note of QEMU's for one CPU.
fn note(cr0: u64, cr3: u64, cr4: u64) -> Vec<u8> {
    let mut state = vec![0_u8; 8 + 18 * 8 + 10 * 24];
    state[..4].copy_from_slice(&1_u32.to_le_bytes());
    for control in [cr0, 0, 0, cr3, cr4] {
        state.extend(control.to_le_bytes());
    }
    state.extend([0; 8]);
    let mut bytes = Vec::new();
    for word in [5, u32::try_from(state.len()).unwrap(), 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"QEMU\0\0\0\0");
    bytes.extend(state);
    bytes
}

#[test]
fn a_raw_image_is_memory_from_address_0_on() {
    let mut bytes = vec![0; 2 * PAGE_SIZE];
    bytes[PAGE_SIZE - 2..PAGE_SIZE + 2].copy_from_slice(b"abcd");
    let dump = opened(&bytes).unwrap();
    assert_eq!(dump.format(), DumpFormat::Raw);
    assert_eq!(
        dump.ranges().collect::<Vec<_>>(),
        [(Gpa(0), 2 * PAGE_SIZE as u64)]
    );
    assert_eq!(read(&dump, PAGE_SIZE as u64 - 2, 4).unwrap(), b"abcd");
    assert_eq!(
        read(&dump, 2 * PAGE_SIZE as u64 - 1, 2),
        Err(2 * PAGE_SIZE as u64)
    );
    assert_eq!(opened(&bytes[1..]).unwrap_err(), DumpError::NoFormat(8191));
    assert_eq!(opened(&[]).unwrap_err(), DumpError::Nothing);
}

#[test]
fn ranges_of_a_lime_image_are_where_their_headers_say() {
    let image = [
        lime(0x10_0000, b"high"),
        lime(0x1000, b"low."),
        lime(0x1004, b"next"),
    ]
    .concat();
    let dump = opened(&image).unwrap();
    assert_eq!(dump.format(), DumpFormat::Lime);
    assert_eq!(read(&dump, 0x1002, 4).unwrap(), b"w.ne");
    assert_eq!(read(&dump, 0x10_0000, 4).unwrap(), b"high");
    assert_eq!(read(&dump, 0x1006, 4), Err(0x1008));
    assert_eq!(read(&dump, 0xfff, 1), Err(0xfff));
}

#[test]
fn a_lime_image_that_is_not_one_says_where() {
    let good = lime(0x1000, b"1234");
    let cut = opened(&good[..34]).unwrap_err();
    assert!(
        matches!(
            cut,
            DumpError::CutShort {
                at: 32,
                len: 4,
                file_bytes: 34,
                ..
            }
        ),
        "{cut}"
    );
    let after = |more: &[u8]| opened(&[&good, more].concat()).unwrap_err();
    assert!(matches!(after(b"x"), DumpError::Malformed { at: 36, .. }));
    assert!(matches!(after(&[0; 32]), DumpError::Malformed { at: 36, .. }));
    let mut other = good.clone();
    other[4] = 2;
    assert!(matches!(after(&other), DumpError::Malformed { at: 36, .. }));
    let mut backwards = good.clone();
    backwards[16..24].copy_from_slice(&0_u64.to_le_bytes());
    assert!(matches!(
        opened(&backwards),
        Err(DumpError::Malformed { at: 0, .. })
    ));
    assert_eq!(after(&good), DumpError::Overlap { gpa: Gpa(0x1000) });
}

#[test]
fn an_elf_core_has_memory_registers_and_zeros_that_are_not_in_the_file() {
    let notes = [note(1, 0x1000, 3), note(2, 0x2000, 4)].concat();
    let len = notes.len() as u64;
    let at = 64 + 3 * 56;
    let segments = [
        (4, at, 0, len, len),
        (1, at + len, 0x10_0000, 4, 8),
        (1, at + len + 4, 0, 4, 4),
    ];
    let file = [core(62, &segments), notes, b"highlow.".to_vec()].concat();
    let dump = opened(&file).unwrap();
    assert_eq!(dump.format(), DumpFormat::Elf(Machine::X86_64));
    assert_eq!(read(&dump, 0x10_0000, 8).unwrap(), b"high\0\0\0\0");
    assert_eq!(read(&dump, 0x10_0006, 2).unwrap(), [0, 0]);
    assert_eq!(read(&dump, 0, 4).unwrap(), b"low.");
    assert_eq!(read(&dump, 0x10_0004, 8), Err(0x10_0008));
    let registers: Vec<_> = dump
        .cpus()
        .iter()
        .map(|cpu| (cpu.cr0, cpu.cr3, cpu.cr4))
        .collect();
    assert_eq!(registers, [(1, 0x1000, 3), (2, 0x2000, 4)]);
}

#[test]
fn a_core_that_is_cut_short_at_any_byte_is_an_error_and_no_panic() {
    let notes = note(1, 0x1000, 3);
    let len = notes.len() as u64;
    let segments = [(4, 64 + 112, 0, len, len), (1, 64 + 112 + len, 0x1000, 4, 4)];
    let file = [core(62, &segments), notes, b"1234".to_vec()].concat();
    assert!(opened(&file).is_ok());
    for end in 4..file.len() {
        assert!(opened(&file[..end]).is_err(), "{end}");
    }
}

#[test]
fn an_elf_file_that_is_no_core_says_so() {
    let mut file = core(62, &[]);
    assert_eq!(opened(&file).unwrap_err(), DumpError::Nothing);
    file[16] = 2;
    assert!(matches!(opened(&file), Err(DumpError::Malformed { at: 16, .. })));
    file[4] = 7;
    assert!(matches!(opened(&file), Err(DumpError::Malformed { at: 4, .. })));
}

#[test]
fn max_pieces_bounds_the_ranges_of_a_dump() {
    let image = |count: usize| {
        (0..count as u64)
            .flat_map(|number| lime(number * 16, b"x"))
            .collect::<Vec<_>>()
    };
    let most = opened(&image(pieces::MAX_PIECES)).unwrap();
    assert_eq!(most.ranges().count(), pieces::MAX_PIECES);
    assert_eq!(
        opened(&image(pieces::MAX_PIECES + 1)).unwrap_err(),
        DumpError::TooMany
    );
    let mut many = core(62, &[]);
    many[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
    many[40..48].copy_from_slice(&64_u64.to_le_bytes());
    let mut section = [0; 64];
    section[44..48].copy_from_slice(&u32::try_from(pieces::MAX_PIECES + 1).unwrap().to_le_bytes());
    many.extend(section);
    assert_eq!(opened(&many).unwrap_err(), DumpError::TooMany);
}

#[test]
fn max_cpus_and_max_notes_bound_what_is_kept_of_registers() {
    let one = note(1, 2, 3);
    let count = elf::MAX_CPUS + 4;
    let notes = one.repeat(count);
    let len = notes.len() as u64;
    let at = 64 + 112;
    let segments = [(4, at, 0, len, len), (1, at + len, 0, 4, 4)];
    let file = [core(62, &segments), notes, b"1234".to_vec()].concat();
    let dump = opened(&file).unwrap();
    let within = usize::try_from(elf::MAX_NOTES).unwrap() / one.len();
    assert_eq!(dump.cpus().len(), within.min(elf::MAX_CPUS));

    // The same notes, listed again and again: what is read of them all together has the bound.
    let len = elf::MAX_NOTES / 4;
    let mut segments = vec![(4, 0, 0, len, len); 40];
    segments.push((1, 0, 0, 4, 4));
    let headers = core(62, &segments).len() as u64;
    let mut segments = vec![(4, headers, 0, len, len); 40];
    segments.push((1, headers, 0, 4, 4));
    let mut notes = one.repeat(usize::try_from(len).unwrap() / one.len());
    let each = notes.len() / one.len();
    notes.resize(usize::try_from(len).unwrap(), 0);
    let dump = opened(&[core(62, &segments), notes].concat()).unwrap();
    assert_eq!(dump.cpus().len(), (4 * each).min(elf::MAX_CPUS));
}

#[test]
fn a_32_bit_core_has_its_fields_elsewhere() {
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(52 + 32, 0);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(16, &4_u16.to_le_bytes());
    put(18, &3_u16.to_le_bytes());
    put(28, &52_u32.to_le_bytes());
    put(42, &32_u16.to_le_bytes());
    put(44, &1_u16.to_le_bytes());
    // ELF-32 `Elf32_Phdr`: type, offset, vaddr, paddr, filesz, memsz, flags, align.
    for (number, word) in [1_u32, 84, 0, 0x1000, 4, 8].into_iter().enumerate() {
        put(52 + number * 4, &word.to_le_bytes());
    }
    bytes.extend(b"text");
    let dump = opened(&bytes).unwrap();
    assert_eq!(dump.format(), DumpFormat::Elf(Machine::I386));
    assert_eq!(read(&dump, 0x1000, 8).unwrap(), b"text\0\0\0\0");
    assert_eq!(read(&dump, 0x1004, 8), Err(0x1008));
}

#[test]
fn zeros_that_a_file_does_not_have_are_not_looked_through() {
    let at = 64 + 2 * 56;
    let (long, tail) = (1 << 50, 1_u64 << 51);
    let segments = [(1, at, 0x1000, 4, long), (1, at + 4, tail, 4, 4)];
    let file = [core(62, &segments), b"headtail".to_vec()].concat();
    let dump = opened(&file).unwrap();
    let next = |from, end| dump.next_data(Gpa(from), Gpa(end)).map(|(a, b)| (a.0, b.0));
    assert_eq!(next(0, u64::MAX), Some((0x1000, 0x1004)));
    assert_eq!(next(0x1002, 0x1003), Some((0x1002, 0x1003)));
    assert_eq!(next(0x1004, u64::MAX), Some((tail, tail + 4)));
    assert_eq!(next(0x1004, tail), None);
    assert_eq!(next(tail + 4, u64::MAX), None);
    assert_eq!(read(&dump, long, 8).unwrap(), [0; 8]);
}

#[test]
fn a_file_of_which_the_same_bytes_are_listed_again_and_again_is_refused() {
    let at = 64 + 40 * 56;
    let segments: Vec<_> = (0..40).map(|number| (1, at, number << 30, 4096, 4096)).collect();
    let file = [core(62, &segments), vec![0; 4096]].concat();
    assert!(
        matches!(opened(&file), Err(DumpError::Malformed { what, .. }) if what.contains("another range's"))
    );
}
