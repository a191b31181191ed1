//! The walker on page tables that a real QEMU runs on, in every x86 paging mode, against QEMU's own `info tlb`.
//!
//! The guest is 64 KiB of "firmware" that loads the control registers and halts; the tables are loaded with it.
//! `info tlb` checks no reserved bits and joins no rights, so the tables set none, and rights are not compared.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers outside of what clippy takes for a test"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Machine, PATIENCE};
use nephoscope_drivers::Qmp;
use nephoscope_guest::{Gva, Root};
use nephoscope_isa::{Bounds, Ended, Mode, Walker, Want, X86Controls};

/// Where the tables are loaded.
const TABLES: u64 = 0x10_0000;
const TABLES_BYTES: usize = 16 * 4096;

const PSE: u32 = 1 << 4;
const PAE: u32 = 1 << 5;
const PGE: u32 = 1 << 7;
const LA57: u32 = 1 << 12;
const LME: u32 = 1 << 8;
const NXE: u32 = 1 << 11;
const NX: u64 = 1 << 63;

/// Present, writable, user, accessed; then with dirty, global and, in a large page, PAT.
const TABLE: u64 = 0x27;
const PAGE: u64 = 0x167;
const LARGE: u64 = 0x11e7;

struct Tables(Vec<u8>);

impl Tables {
    fn new() -> Self {
        Self(vec![0; TABLES_BYTES])
    }

    /// Entry `index` of the `table`-th 4 KiB, in tables with entries of `size` bytes.
    fn set(&mut self, table: usize, index: usize, size: usize, entry: u64) {
        let at = table * 4096 + index * size;
        self.0[at..at + size].copy_from_slice(&entry.to_le_bytes()[..size]);
    }
}

const fn table(number: u64) -> u64 {
    TABLES + number * 4096
}

/// 16-bit code at F000:0000 that loads CR4, CR3, EFER and CR0 and halts; the reset vector jumps to it.
fn firmware(cr4: u32, cr3: u32, efer: u32) -> Vec<u8> {
    let mut code = vec![0xfa]; // cli
    let mut load = |value: u32, then: &[u8]| {
        code.extend([0x66, 0xb8]); // mov eax, value
        code.extend(value.to_le_bytes());
        code.extend(then);
    };
    load(cr4, &[0x0f, 0x22, 0xe0]); // mov cr4, eax
    load(cr3, &[0x0f, 0x22, 0xd8]); // mov cr3, eax
    // mov ecx, 0xc0000080; xor edx, edx; wrmsr
    load(
        efer,
        &[0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30],
    );
    load(0x8000_0001, &[0x0f, 0x22, 0xc0]); // mov cr0, eax
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code.resize(0x1_0000, 0xf4);
    code[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]); // jmp F000:0000
    code
}

fn register(qmp: &mut Qmp, name: &str) -> u64 {
    let text = qmp.monitor("info registers").unwrap();
    let (_, rest) = text.split_once(name).unwrap();
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).unwrap()
}

fn files(folder: &Path, firmware: &[u8], tables: &[u8]) -> [String; 2] {
    let bios = folder.join("firmware");
    let data = folder.join("tables");
    fs::write(&bios, firmware).unwrap();
    fs::write(&data, tables).unwrap();
    [
        bios.display().to_string(),
        format!("loader,file={},addr={TABLES:#x},force-raw=on", data.display()),
    ]
}

/// Runs a machine on `tables`, and gives the name of its mode and how many leaves were found and agreed on.
fn agreed(cr4: u32, root: u64, efer: u32, tables: &Tables) -> (&'static str, usize) {
    let folder = tempfile::tempdir().unwrap();
    let firmware = firmware(cr4, u32::try_from(root).unwrap(), efer);
    let [bios, loader] = files(folder.path(), &firmware, &tables.0);
    let mut machine = Machine::start(&[
        "-machine", "pc", "-m", "64M", "-cpu", "max", "-bios", &bios, "-device", &loader,
    ]);
    machine.qmp.execute("cont", None).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while register(&mut machine.qmp, "CR0=") >> 31 & 1 == 0 {
        assert!(Instant::now() < deadline, "the guest never switched paging on");
        std::thread::sleep(Duration::from_millis(10));
    }
    machine.qmp.execute("stop", None).unwrap();

    let controls = X86Controls {
        cr0: register(&mut machine.qmp, "CR0="),
        cr4: register(&mut machine.qmp, "CR4="),
        efer: register(&mut machine.qmp, "EFER="),
        physical_bits: 40,
        gib_pages: true,
    };
    let mode = Mode::x86(&controls).unwrap();
    assert_eq!(mode.root(register(&mut machine.qmp, "CR3=")), Root(root));
    let mut ours = BTreeMap::new();
    let ram = machine.ram();
    let all = Gva(0)..=Gva(u64::MAX);
    let census =
        Walker::new(mode, &ram).leaves(Root(root), &all, Want::Everything, Bounds::default(), |leaf| {
            ours.insert(leaf.va.0, (leaf.gpa.0, leaf.accessed, leaf.dirty, leaf.global));
        });
    assert_eq!(
        (census.ended, census.reserved, census.unreadable),
        (Ended::Complete, 0, 0)
    );

    let tlb = machine.qmp.monitor("info tlb").unwrap();
    let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
    let theirs: BTreeMap<_, _> = tlb
        .lines()
        .filter_map(|line| {
            let (va, rest) = line.split_once(": ")?;
            let (gpa, flags) = rest.split_once(' ')?;
            // In a PAE guest QEMU prints the XD bit as a part of the address.
            Some((
                hex(va),
                (
                    hex(gpa) & !NX,
                    flags.contains('A'),
                    flags.contains('D'),
                    flags.contains('G'),
                ),
            ))
        })
        .collect();
    assert_eq!(ours, theirs);
    (mode.name(), ours.len())
}

#[test]
fn i386_with_4_mib_pages_is_walked_as_qemu_does() {
    let mut tables = Tables::new();
    tables.set(0, 0, 4, 0x1e7); // 4 MiB, where the firmware runs
    tables.set(0, 1, 4, table(1) | TABLE);
    tables.set(0, 1023, 4, 0x0080_0000 | LARGE);
    tables.set(1, 0, 4, 0x9000 | PAGE);
    tables.set(1, 1023, 4, 0xffff_f000 | TABLE);
    assert_eq!(agreed(PSE | PGE, TABLES, 0, &tables), ("i386 with PSE", 4));
}

#[test]
fn i386_without_pse_is_walked_as_qemu_does() {
    let mut tables = Tables::new();
    tables.set(0, 0, 4, table(1) | TABLE | 0x80); // PS means nothing
    for page in 0..1024u64 {
        tables.set(1, usize::try_from(page).unwrap(), 4, page << 12 | PAGE);
    }
    assert_eq!(agreed(PGE, TABLES, 0, &tables), ("i386", 1024));
}

#[test]
fn i386_with_pae_is_walked_as_qemu_does_from_a_root_inside_a_page() {
    let mut tables = Tables::new();
    let pdpt = 0x7e0 / 8;
    tables.set(0, pdpt, 8, table(1) | 1);
    tables.set(0, pdpt + 3, 8, table(2) | 1);
    tables.set(1, 0, 8, LARGE);
    tables.set(1, 511, 8, table(3) | TABLE);
    tables.set(2, 256, 8, 0x40_0000 | LARGE | NX);
    tables.set(3, 7, 8, 0x8_0000_9000 | PAGE | NX);
    assert_eq!(
        agreed(PAE | PGE, TABLES + 0x7e0, NXE, &tables),
        ("i386 with PAE", 3)
    );
}

/// Tables 1 to 4 as PML4, PDPT, PD and PT with leaves of every size in both halves, from `top` down.
fn long_mode(tables: &mut Tables, pml4: usize) {
    tables.set(pml4, 0, 8, table(2) | TABLE);
    tables.set(pml4, 511, 8, table(2) | TABLE | NX);
    tables.set(2, 0, 8, table(3) | TABLE);
    tables.set(2, 510, 8, 3 << 30 | LARGE | NX);
    tables.set(3, 0, 8, LARGE);
    tables.set(3, 5, 8, table(4) | TABLE);
    tables.set(4, 0, 8, 0x9000 | PAGE);
    tables.set(4, 511, 8, 0xff_ffff_f000 | TABLE | NX);
}

#[test]
fn x86_64_with_4_levels_is_walked_as_qemu_does() {
    let mut tables = Tables::new();
    long_mode(&mut tables, 0);
    assert_eq!(
        agreed(PAE | PGE, TABLES, LME | NXE, &tables),
        ("x86-64, 4 levels", 8)
    );
}

#[test]
fn x86_64_with_5_levels_is_walked_as_qemu_does() {
    let mut tables = Tables::new();
    long_mode(&mut tables, 1);
    tables.set(0, 0, 8, table(1) | TABLE);
    tables.set(0, 511, 8, table(1) | TABLE);
    assert_eq!(
        agreed(PAE | PGE | LA57, TABLES, LME | NXE, &tables),
        ("x86-64, 5 levels", 16)
    );
}
