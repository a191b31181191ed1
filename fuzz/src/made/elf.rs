//! ELF files, made field by field.

use super::Seed;

/// A section of a file that is made.
#[derive(Clone, Default)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) va: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) link: u32,
    pub(crate) info: u32,
    pub(crate) align: u64,
}

/// A segment: type, flags, address, offset, length in the file, and in memory.
pub(crate) type Segment = (u32, u32, u64, u64, u64, u64);

/// A 64-bit file: header, segments, sections (the section names' own last), section table.
pub(crate) fn file(
    kind: u16,
    entry: u64,
    segments: &[Segment],
    sections: &[Section],
    shift: usize,
) -> Vec<u8> {
    let mut out = vec![0; 64 + 56 * segments.len()];
    let mut names = vec![0];
    let mut headers = vec![[0_u8; 64].to_vec()];
    let name_of = |names: &mut Vec<u8>, name: &str| {
        let at = names.len() as u32;
        names.extend(name.as_bytes());
        names.push(0);
        at
    };
    let put = |name: u32, section: &Section, at: usize, headers: &mut Vec<Vec<u8>>| {
        let mut header = Vec::new();
        header.extend(name.to_le_bytes());
        header.extend(section.kind.to_le_bytes());
        for word in [section.flags, section.va, at as u64, section.data.len() as u64] {
            header.extend(word.to_le_bytes());
        }
        header.extend(section.link.to_le_bytes());
        header.extend(section.info.to_le_bytes());
        header.extend(section.align.max(1).to_le_bytes());
        header.extend(0_u64.to_le_bytes());
        headers.push(header);
    };
    for section in sections {
        let align = 1_usize << shift;
        let low = (section.va as usize) % align;
        while out.len() % align != low {
            out.push(0);
        }
        let at = out.len();
        out.extend(&section.data);
        let name = name_of(&mut names, section.name);
        put(name, section, at, &mut headers);
    }
    let own = name_of(&mut names, ".shstrtab");
    let table = Section {
        kind: 3,
        data: names,
        ..Section::default()
    };
    let at = out.len();
    out.extend(&table.data);
    put(own, &table, at, &mut headers);
    while out.len() % 8 != 0 {
        out.push(0);
    }
    let table = out.len() as u64;
    let count = headers.len() as u16;
    out.extend(headers.concat());
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend(kind.to_le_bytes());
    header.extend(62_u16.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    for word in [entry, if segments.is_empty() { 0 } else { 64 }, table] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16, 64, count, count - 1] {
        header.extend(half.to_le_bytes());
    }
    for (kind, flags, va, offset, len, memory) in segments {
        header.extend(kind.to_le_bytes());
        header.extend(flags.to_le_bytes());
        for word in [*offset, *va, *va, *len, *memory, 4096] {
            header.extend(word.to_le_bytes());
        }
    }
    out[..header.len()].copy_from_slice(&header);
    out
}

/// A shared library with a dynamic section, a note and an interpreter; a 32-bit program; a program without anything.
pub(crate) fn seeds() -> Vec<Seed> {
    let at = 64 + 56 * 5;
    let strings = b"\0libx.so.1\0/lib/ld.so\0".to_vec();
    let note = [
        &4_u32.to_le_bytes()[..],
        &4_u32.to_le_bytes(),
        &3_u32.to_le_bytes(),
        b"GNU\0abcd",
    ]
    .concat();
    let dynamic: Vec<u8> = [
        (14_u64, 1_u64),
        (5, at),
        (1, 1),
        (0x6fff_fffb, 0x0800_0000),
        (0, 0),
    ]
    .iter()
    .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
    .collect();
    let (a, b) = (
        at + strings.len() as u64,
        at + (strings.len() + note.len()) as u64,
    );
    let data = [strings.clone(), note.clone(), dynamic.clone(), vec![0x90; 64]].concat();
    let len = at + data.len() as u64;
    let section = Section {
        name: ".text",
        kind: 1,
        flags: 6,
        data,
        ..Section::default()
    };
    let segments = [
        (1, 5, 0, 0, len, len),
        (1, 6, 0x1000 + b, b, dynamic.len() as u64, 4096),
        (2, 6, b, b, dynamic.len() as u64, dynamic.len() as u64),
        (3, 4, at + 11, at + 11, 11, 11),
        (4, 4, a, a, note.len() as u64, note.len() as u64),
    ];
    let library = file(3, 0x1234, &segments, &[section], 0);
    let program = file(2, 0x40_0000, &[(1, 5, 0x40_0000, 0, 200, 5000)], &[], 0);
    let mut narrow = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2_u16, 3, 1, 0] {
        narrow.extend(half.to_le_bytes());
    }
    for word in [0x804_8000_u32, 52, 0, 0] {
        narrow.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        narrow.extend(half.to_le_bytes());
    }
    for word in [1_u32, 0, 0x804_8000, 0x804_8000, 100, 200, 5, 4096] {
        narrow.extend(word.to_le_bytes());
    }
    narrow.resize(100, 0xcc);
    vec![
        ("elf", "library".into(), library),
        ("elf", "program".into(), program),
        ("elf", "narrow".into(), narrow),
    ]
}
