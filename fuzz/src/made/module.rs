//! Kernel modules: every table that names places to rewrite, with an entry or two.

use super::Seed;
use super::elf::{Section, file};

fn section(name: &'static str, flags: u64, data: Vec<u8>) -> Section {
    Section {
        name,
        kind: 1,
        flags,
        data,
        align: 8,
        ..Section::default()
    }
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `r_offset`, type, symbol, addend.
fn relocations(of: &[(u64, u32, u32, i64)]) -> Vec<u8> {
    let fields = of.iter().flat_map(|(offset, kind, symbol, addend)| {
        let info = u64::from(*symbol) << 32 | u64::from(*kind);
        [offset.to_le_bytes(), info.to_le_bytes(), addend.to_le_bytes()].concat()
    });
    fields.collect()
}

fn symbol(name: u32, info: u8, section: u16, value: u64) -> Vec<u8> {
    let mut bytes = name.to_le_bytes().to_vec();
    bytes.extend([info, 0]);
    bytes.extend(section.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes.extend(8_u64.to_le_bytes());
    bytes
}

/// 64 bytes of text: padding, a call, a jump, a no-op of five bytes, a locked store, an `endbr64`, returns.
pub(crate) fn text() -> Vec<u8> {
    let mut text = vec![0x90; 16];
    text.extend([0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0]);
    text.extend([0x0f, 0x1f, 0x44, 0, 0, 0xf0, 0xff, 0x07, 0xeb, 0x02, 0x66, 0x90]);
    text.extend([0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x48, 0xc7, 0xc0, 0, 0, 0, 0, 0xc3]);
    text.resize(64, 0xcc);
    text
}

pub(crate) fn seeds() -> Vec<Seed> {
    let strings = b"\0init_module\0__x86_return_thunk\0__x86_indirect_thunk_rax\0f\0__fentry__\0".to_vec();
    let symbols = [
        symbol(0, 0, 0, 0),
        symbol(1, 2, 2, 0),
        symbol(13, 0, 0, 0),
        symbol(32, 0, 0, 0),
        symbol(57, 2, 1, 16),
        symbol(59, 0, 0, 0),
        symbol(0, 3, 1, 0),
        symbol(0, 3, 3, 0),
    ];
    // Sections 1 to 3 are text, init text and data; relocations of tables refer to symbol 6, the text's own.
    let mut sections = vec![
        section(".text", 6, text()),
        section(".init.text", 6, text()),
        section(".data", 3, vec![1; 32]),
        section(".modinfo", 2, b"name=x\0vermagic=6.1.0-1-amd64 SMP\0".to_vec()),
        section(".gnu.linkonce.this_module", 3, vec![0; 64]),
        section(
            ".note.gnu.build-id",
            2,
            [&words(&[4, 4, 3])[..], b"GNU\0abcd"].concat(),
        ),
        section("__ksymtab", 2, words(&[0, 0, 0])),
        section("__ksymtab_strings", 2, b"f\0".to_vec()),
        section(".altinstr_replacement", 6, vec![0x66, 0x90, 0xcc, 0xcc]),
    ];
    let tables: [(&str, Vec<u8>, &[u64]); 10] = [
        (
            ".altinstructions",
            [words(&[0, 0]), vec![1, 0, 0, 0, 5, 2]].concat(),
            &[0, 4],
        ),
        (
            ".parainstructions",
            [0_u64.to_le_bytes().to_vec(), vec![1, 6, 0, 0, 0, 0, 0, 0]].concat(),
            &[0],
        ),
        (".retpoline_sites", words(&[0]), &[0]),
        (".return_sites", words(&[0]), &[0]),
        (".call_sites", words(&[0]), &[0]),
        (".smp_locks", words(&[0]), &[0]),
        (".ibt_endbr_seal", words(&[0]), &[0]),
        ("__mcount_loc", vec![0; 8], &[0]),
        ("__jump_table", words(&[0, 0, 0, 0]), &[0, 4]),
        (".static_call_sites", words(&[0, 0]), &[0, 4]),
    ];
    let places: [i64; 10] = [20, 20, 25, 25, 20, 35, 16, 30, 38, 20];
    let mut relocated = vec![(
        1_u32,
        relocations(&[(21, 4, 2, -4), (26, 4, 3, -4), (52, 11, 7, 4)]),
    )];
    for ((name, data, fields), place) in tables.into_iter().zip(places) {
        let wide = matches!(name, ".parainstructions" | "__mcount_loc");
        let kind = if wide { 1 } else { 2 };
        let of: Vec<_> = fields.iter().map(|at| (*at, kind, 6, place)).collect();
        sections.push(section(name, 2, data));
        relocated.push((sections.len() as u32, relocations(&of)));
    }
    for (info, data) in relocated {
        sections.push(Section {
            name: ".rela",
            kind: 4,
            info,
            data,
            ..Section::default()
        });
    }
    let strtab = sections.len() as u32 + 2;
    sections.push(Section {
        name: ".symtab",
        kind: 2,
        link: strtab,
        data: symbols.concat(),
        ..Section::default()
    });
    sections.push(Section {
        name: ".strtab",
        kind: 3,
        data: strings,
        ..Section::default()
    });
    let whole = file(1, 0, &[], &sections, 0);
    let mut seeds = vec![("module", "all".into(), whole)];
    // One table each, so that each is small.
    for number in 9..19 {
        let mut few: Vec<_> = sections[..6].to_vec();
        few.push(sections[number].clone());
        let mut own: Vec<_> = sections
            .iter()
            .filter(|s| s.kind == 4 && s.info == number as u32 + 1)
            .cloned()
            .collect();
        own.iter_mut().for_each(|s| s.info = 7);
        few.extend(own);
        let link = few.len() as u32 + 2;
        few.extend(sections[sections.len() - 2..].iter().cloned());
        few.iter_mut().filter(|s| s.kind == 2).for_each(|s| s.link = link);
        seeds.push(("module", format!("table-{number}"), file(1, 0, &[], &few, 0)));
    }
    seeds
}
