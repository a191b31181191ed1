//! Files made on the spot, catalogs of them, and questions about their pages, for tests.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "helpers of tests are tests"
)]

use std::sync::Arc;

use nephoscope_catalog::{Adder, Catalog, ObjectId};
use nephoscope_guest::{Gva, PageBytes, Privilege};
use nephoscope_inventory::Unknown;

use crate::identify::Question;

/// Bytes without a pattern; `seed` decides all of them. None is zero.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte = (*byte).max(1));
    bytes
}

/// A page of these bytes, the rest zeros.
pub(crate) fn page(bytes: &[u8]) -> PageBytes {
    let mut page = PageBytes::zeroed();
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

/// A catalog of files under these names, and their numbers in it.
pub(crate) fn catalog(files: &[(String, Vec<u8>)]) -> (Arc<Catalog>, Vec<ObjectId>) {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    let place = folder.path().join("catalog");
    let mut adder = Adder::new(&place).unwrap();
    adder.add(&paths).unwrap();
    let summary = adder.commit().unwrap();
    assert_eq!(summary.refused, []);
    // What is mapped stays when its file is gone.
    let catalog = Catalog::open(&place).unwrap();
    let object = |bytes: &[u8]| {
        catalog
            .by_digest(blake3::hash(bytes).as_bytes())
            .unwrap()
            .unwrap()
    };
    let objects = files.iter().map(|(_, bytes)| object(bytes)).collect();
    (Arc::new(catalog), objects)
}

/// A question of the kernel about a page at its own addresses.
pub(crate) fn of_kernel<'a>(bytes: &'a PageBytes, va: u64, executed: &'a [(u16, u16)]) -> Question<'a> {
    Question {
        bytes,
        digest: *blake3::hash(&bytes[..]).as_bytes(),
        va: Gva(va),
        paging: true,
        privilege: Privilege::Supervisor,
        executed,
        neighbours: &[],
        unknown: Unknown::default(),
    }
}

/// A static x86-64 program: a page with the headers, and its text, linked at 0x401000.
pub(crate) fn program(text: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0x40_1000_u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let len = text.len() as u64;
    for word in [4096, 0x40_1000, 0x40_1000, len, len, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.resize(4096, 0);
    file.extend(text);
    file
}

/// An ISA option ROM, which can lie anywhere: `len` bytes without a pattern after its header.
pub(crate) fn option_rom(len: usize, seed: u32) -> Vec<u8> {
    let mut file = noise(len, seed);
    file[..3].copy_from_slice(&[0x55, 0xaa, (len / 512) as u8]);
    // Offset of a PCI header: none.
    file[0x18..0x1a].copy_from_slice(&[0xff, 0xff]);
    file
}

/// A kernel module of release 1.0.
#[derive(Clone, Default)]
pub(crate) struct Module<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a [u8],
    pub(crate) init: &'a [u8],
    /// Where the init code has four bytes for the address of a symbol of the kernel (`R_X86_64_32S`), and its name.
    pub(crate) field: Option<(u64, &'a str)>,
    /// The text has the field instead.
    pub(crate) field_in_text: bool,
}

/// Sections of a module, in order (name; type, flags; link, info).
const SECTIONS: [(&str, u32, u64, u32, u32); 9] = [
    ("", 0, 0, 0, 0),
    (".text", 1, 6, 0, 0),
    (".init.text", 1, 6, 0, 0),
    (".rela.init.text", 4, 0, 6, 2),
    (".modinfo", 1, 2, 0, 0),
    (".symtab", 2, 0, 6, 1),
    (".strtab", 3, 0, 0, 0),
    (".shstrtab", 3, 0, 0, 0),
    (".gnu.linkonce.this_module", 1, 3, 0, 0),
];

impl Module<'_> {
    pub(crate) fn file(&self) -> (String, Vec<u8>) {
        let (at, symbol) = self.field.unwrap_or((0, "nothing"));
        // The first symbol is none; the second is undefined.
        let mut symbols = vec![0; 24];
        symbols.extend([1, 0, 0, 0, 0x10, 0, 0, 0]);
        symbols.extend([0; 16]);
        let relocation = [at, 1 << 32 | 11, 0].map(u64::to_le_bytes).concat();
        let names: String = SECTIONS.iter().map(|(name, ..)| format!("{name}\0")).collect();
        let data: [Vec<u8>; 9] = [
            vec![],
            self.text.to_vec(),
            self.init.to_vec(),
            self.field.map_or_else(Vec::new, |_| relocation),
            format!("name={}\0vermagic=1.0 SMP\0", self.name).into_bytes(),
            symbols,
            format!("\0{symbol}\0").into_bytes(),
            names.into_bytes(),
            vec![0; 64],
        ];
        let mut file = vec![0; 64 + 64 * SECTIONS.len()];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..20].copy_from_slice(&[1, 0, 62, 0]);
        file[0x28] = 64;
        file[0x3a..0x40].copy_from_slice(&[64, 0, SECTIONS.len() as u8, 0, 7, 0]);
        let mut name_at = 0_u32;
        let of = if self.field_in_text { 1_u32 } else { 2 };
        for (number, ((name, kind, flags, link, info), data)) in SECTIONS.iter().zip(data).enumerate() {
            let header = [
                [name_at.to_le_bytes(), kind.to_le_bytes()].concat(),
                flags.to_le_bytes().to_vec(),
                vec![0; 8],
                (file.len() as u64).to_le_bytes().to_vec(),
                (data.len() as u64).to_le_bytes().to_vec(),
                [
                    link.to_le_bytes(),
                    if number == 3 { of } else { *info }.to_le_bytes(),
                ]
                .concat(),
                16_u64.to_le_bytes().to_vec(),
                24_u64.to_le_bytes().to_vec(),
            ]
            .concat();
            file[64 + 64 * number..128 + 64 * number].copy_from_slice(&header);
            name_at += name.len() as u32 + 1;
            file.extend(data);
            file.resize(file.len().next_multiple_of(16), 0);
        }
        (format!("{}.ko", self.name), file)
    }
}
