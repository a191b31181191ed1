//! Kernels: an ELF with the tables of one, its own symbol table, a vDSO, relocations behind it; and that as a bzImage.

use super::Seed;
use super::elf::{Section, file};
use super::module::text;

const BASE: u64 = 0xffff_ffff_8100_0000;

fn pad(data: &mut Vec<u8>) {
    data.resize(data.len().next_multiple_of(8), 0);
}

/// `kallsyms` of these names at offsets from [`BASE`], as 6.4 and later lay it out; a token per byte.
fn symbols(names: &[(&str, i32)]) -> Vec<u8> {
    let mut data = vec![0xff; 8];
    data.extend((names.len() as u64).to_le_bytes());
    for (name, _) in names {
        data.push(name.len() as u8 + 1);
        data.push(b'T');
        data.extend(name.as_bytes());
    }
    pad(&mut data);
    data.extend(0_u32.to_le_bytes());
    pad(&mut data);
    let (table, mut index) = (data.len(), Vec::new());
    for token in 0..=255_u8 {
        index.extend(((data.len() - table) as u16).to_le_bytes());
        if (0x20..0x7f).contains(&token) {
            data.push(token);
        }
        data.push(0);
    }
    pad(&mut data);
    data.extend(index);
    pad(&mut data);
    for (_, offset) in names {
        data.extend((-1 - offset).to_le_bytes());
    }
    pad(&mut data);
    data.extend(BASE.to_le_bytes());
    data
}

fn section(name: &'static str, flags: u64, va: u64, data: Vec<u8>) -> Section {
    Section {
        name,
        kind: 1,
        flags,
        va,
        data,
        align: 8,
        ..Section::default()
    }
}

fn words(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A vDSO of one page: text with an alternative.
fn vdso() -> Vec<u8> {
    let mut file = file(
        3,
        0,
        &[],
        &[
            section(
                ".text",
                6,
                0,
                vec![0x0f, 0xae, 0xe8, 0x90, 0xc3, 0xcc, 0xcc, 0xcc],
            ),
            section(".altinstructions", 2, 0, vec![]),
            section(".altinstr_replacement", 6, 0, vec![0x90, 0x90, 0x90]),
        ],
        0,
    );
    // Linked at 0: each section's address is where it lies in the file.
    let table = u64::from_le_bytes(file[40..48].try_into().unwrap_or_default()) as usize;
    for number in 1..4 {
        let at = table + number * 64;
        let offset: [u8; 8] = file[at + 24..at + 32].try_into().unwrap_or_default();
        file[at + 16..at + 24].copy_from_slice(&offset);
    }
    file.resize(file.len().next_multiple_of(4096), 0);
    file
}

fn sections(with_vdso: bool, with_symbols: bool) -> Vec<Section> {
    let at = |offset: u64| BASE + offset;
    let to = |from: u64, to: u64| to as i32 - from as i32;
    let mut all = vec![
        section(".text", 6, at(0), text()),
        section(".altinstr_replacement", 6, at(0x100), vec![0x66, 0x90, 0xcc]),
        section(
            ".altinstructions",
            2,
            at(0x200),
            [words(&[to(0x200, 20), to(0x204, 0x100)]), vec![1, 0, 0, 0, 5, 2]].concat(),
        ),
        section(
            ".parainstructions",
            2,
            at(0x220),
            [at(20).to_le_bytes().to_vec(), vec![1, 6, 0, 0, 0, 0, 0, 0]].concat(),
        ),
        section(".retpoline_sites", 2, at(0x240), words(&[to(0x240, 25)])),
        section(".return_sites", 2, at(0x248), words(&[to(0x248, 25)])),
        section(".call_sites", 2, at(0x250), words(&[to(0x250, 20)])),
        section(".smp_locks", 2, at(0x258), words(&[to(0x258, 35)])),
        section(".ibt_endbr_seal", 2, at(0x260), words(&[to(0x260, 16)])),
        section("__mcount_loc", 2, at(0x268), at(30).to_le_bytes().to_vec()),
        section(
            "__jump_table",
            2,
            at(0x270),
            words(&[to(0x270, 38), to(0x274, 48), 0, 0]),
        ),
        section(
            ".static_call_sites",
            2,
            at(0x280),
            words(&[to(0x280, 20), to(0x284, 0x300)]),
        ),
        section(
            "__ksymtab",
            2,
            at(0x290),
            words(&[to(0x290, 16), to(0x294, 0x2a0), 0]),
        ),
        section("__ksymtab_strings", 2, at(0x2a0), b"f\0".to_vec()),
        section(
            "runtime_ptr_dentry_hashtable",
            2,
            at(0x2a8),
            words(&[to(0x2a8, 45)]),
        ),
        section(
            "runtime_shift_d_hash_shift",
            2,
            at(0x2b0),
            words(&[to(0x2b0, 47)]),
        ),
        section(
            ".notes",
            2,
            at(0x2c0),
            [&words(&[4, 4, 3])[..], b"GNU\0abcd"].concat(),
        ),
        section(".init.text", 6, at(0x2000), text()),
    ];
    if with_symbols {
        let names = [
            ("memcpy_orig", 0),
            ("f", 16),
            ("__x86_return_thunk", 48),
            ("__x86_indirect_thunk_array", 32),
            ("skl_call_thunk_template", 40),
            ("skl_call_thunk_tail", 45),
            ("ftrace_caller", 16),
            ("pv_ops", 0x300),
            ("__SCT__f", 25),
            ("real_mode_blob", 0x400),
            ("real_mode_blob_end", 0x410),
            ("real_mode_relocs", 0x400),
        ];
        all.push(section(".rodata", 2, at(0x3000), symbols(&names)));
        all.push(section(
            ".data",
            3,
            at(0x300),
            vec![0, 0, 0, 0x81, 0xff, 0xff, 0xff, 0xff],
        ));
        all.push(section(".init.data", 3, at(0x400), words(&[1, 2, 1, 4, 0, 0])));
    }
    if with_vdso {
        all.push(section(".data..ro_after_init", 2, at(0x5000), vdso()));
    }
    all
}

pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, sections) in [
        ("tables", sections(false, false)),
        ("symbols", sections(false, true)),
        ("vdso", sections(true, false)[17..].to_vec()),
    ] {
        let mut kernel = file(2, BASE, &[], &sections, 0);
        for word in [0_u32, 0x8100_0015, 0, 0x8100_001a, 0, 0x8100_0034] {
            kernel.extend(word.to_le_bytes());
        }
        seeds.push(("kernel", name.into(), kernel.clone()));
        let stream = [&[0x02, 0x21, 0x4c, 0x18][..], &stored(&kernel)].concat();
        seeds.push(("kernel", format!("bzimage-{name}"), bzimage(&stream)));
    }
    seeds.push(("vdso", "one".into(), vdso()));
    let mut narrow = vdso();
    narrow[4] = 1;
    narrow[18] = 3;
    seeds.push(("vdso", "narrow".into(), narrow));
    seeds
}

/// An lz4 block of literals.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let mut left = bytes.len() - 15;
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.push(left as u8);
    block.extend(bytes);
    [&(block.len() as u32).to_le_bytes()[..], &block].concat()
}

/// `Documentation/arch/x86/boot.rst`: one set-up sector besides the first, the payload at once.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    file[0x20e] = 0x80;
    file[0x280..0x290].copy_from_slice(b"6.1.0-1-amd64 #1");
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    file.extend(payload);
    file.extend([0; 4]);
    file.extend([0x90; 8]);
    file
}
