//! Roots found by shape: in memory made by hand. Real guests are in `tests/e2e`.

#![allow(
    clippy::unwrap_used,
    reason = "helpers outside of what clippy takes for a test"
)]

mod common;

use common::{LA57, LONG, Memory, PAE, PG, PGE, x86};
use nephoscope_guest::{Gpa, Root};
use nephoscope_isa::{MAX_ROOTS_FOUND, Mode, RootFinder, RootKind, RootsFound, X86Controls, find_roots};

const NX: u64 = 1 << 63;
/// Present, writable, accessed, dirty; and the same for user code.
const KERNEL: u64 = 0x63;
const USER: u64 = 0x67;

/// Where memory of the tests is: 4 MiB from 0 on.
const ALL: &[(Gpa, u64)] = &[(Gpa(0), 4 << 20)];

/// Memory of which every frame can be read.
fn memory() -> Memory {
    let mut memory = Memory::default();
    for frame in 0..(4_u64 << 20 >> 12) {
        memory.add_frame(frame << 12);
    }
    memory
}

/// Tables from `at` down to one page, through entry 0 of each but the first; `levels` tables.
fn chain(memory: &mut Memory, first: u64, levels: u64, flags: u64, leaf: u64) {
    for level in 0..levels - 1 {
        memory.write_u64(first + (level << 12), (first + ((level + 1) << 12)) | flags);
    }
    memory.write_u64(first + ((levels - 1) << 12), leaf);
}

/// The kernel's tables, three below the top-level one, with a page of code and one of data.
fn kernel(memory: &mut Memory, first: u64, levels: u64) {
    chain(memory, first, levels, KERNEL, 0x30_0000 | KERNEL);
    memory.write_u64(first + ((levels - 1) << 12) + 8, 0x30_1000 | KERNEL | NX);
}

/// A root in long mode whose last entry is the kernel at `kernel`, with user memory below entry 0 if there is some.
fn root(memory: &mut Memory, at: u64, kernel: u64, user: Option<u64>) {
    memory.write_u64(at + 511 * 8, kernel | KERNEL);
    if let Some(first) = user {
        memory.write_u64(at, first | USER);
        chain(memory, first, 3, USER, 0x30_2000 | USER);
    }
}

fn found(mode: &Mode, memory: &Memory) -> Vec<(u64, RootKind)> {
    find_roots(mode, memory, ALL)
        .roots
        .into_iter()
        .map(|(root, kind)| (root.0, kind))
        .collect()
}

/// A kernel, its own root and two processes.
fn guest() -> Memory {
    let mut memory = memory();
    kernel(&mut memory, 0x10_0000, 3);
    root(&mut memory, 0x1000, 0x10_0000, None);
    root(&mut memory, 0x2000, 0x10_0000, Some(0x20_0000));
    root(&mut memory, 0x5000, 0x10_0000, Some(0x21_0000));
    memory
}

const EXPECTED: [(u64, RootKind); 3] = [
    (0x1000, RootKind::Kernel),
    (0x2000, RootKind::Process),
    (0x5000, RootKind::Process),
];

#[test]
fn roots_are_found_and_tables_below_them_are_none() {
    let memory = guest();
    assert_eq!(found(&x86(LONG), &memory), EXPECTED);
    let all = find_roots(&x86(LONG), &memory, ALL);
    assert_eq!(all.processes().collect::<Vec<_>>(), [Root(0x2000), Root(0x5000)]);
    assert_eq!((all.searched_bytes, all.unreadable_bytes), (4 << 20, 0));
    assert!(!all.cut_short);
}

/// Memory of which reading is cheap, with nothing in some of its pages.
struct Mapped(Memory, std::ops::Range<u64>);

impl nephoscope_guest::PhysicalMemory for Mapped {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), nephoscope_guest::MemoryFault> {
        assert!(!self.1.contains(&at.0), "nobody looks where nothing is");
        self.0.read(at, buf)
    }

    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        let hole = &self.1;
        let first = if hole.contains(&from.0) { hole.end } else { from.0 };
        let last = if first < hole.start {
            hole.start.min(end.0)
        } else {
            end.0
        };
        (first < last).then_some((Gpa(first), Gpa(last)))
    }

    fn reads_pieces(&self) -> bool {
        true
    }
}

#[test]
fn the_same_roots_are_found_in_memory_that_is_mapped_and_nobody_looks_where_nothing_is() {
    let mut hostile = guest();
    hostile.write_u64(0x21_0000 + 80, 1 << 51 | USER);
    hostile.write_u64(0x2000 + 16, 0x80 | USER);
    for memory in [guest(), hostile] {
        let mapped = Mapped(memory, 0x38_0000..0x3a_1000);
        let (mut told, mut finder) = (Vec::new(), RootFinder::default());
        for times in [2, 1] {
            told.clear();
            let found = finder.find(&x86(LONG), &mapped, ALL, &mut |bytes| told.push(bytes));
            let roots: Vec<_> = found.roots.iter().map(|(root, kind)| (root.0, *kind)).collect();
            assert_eq!(roots, EXPECTED);
            assert_eq!(found.searched_bytes, (4 << 20) - 0x2_1000);
            assert!(
                told.is_sorted() && told.last() == Some(&(times * (4 << 20))),
                "{:?}",
                told.last()
            );
        }
    }
}

#[test]
fn a_finder_that_knows_a_kernel_finds_another_one() {
    let mut finder = RootFinder::default();
    let mut again = |memory: &Memory| {
        let found = finder.find(&x86(LONG), memory, ALL, &mut |_| {});
        found
            .roots
            .into_iter()
            .map(|(root, kind)| (root.0, kind))
            .collect::<Vec<_>>()
    };
    assert_eq!(again(&guest()), EXPECTED);
    let mut other = memory();
    kernel(&mut other, 0x12_0000, 3);
    root(&mut other, 0x7000, 0x12_0000, Some(0x20_0000));
    root(&mut other, 0x9000, 0x12_0000, Some(0x21_0000));
    // What is left of the first kernel is no process of this one.
    other.write_u64(0x2000 + 511 * 8, 0x10_0000 | KERNEL);
    let expected = [(0x7000, RootKind::Process), (0x9000, RootKind::Process)];
    assert_eq!(again(&other), expected);
    assert_eq!(again(&guest()), EXPECTED);
}

#[test]
fn what_processes_share_is_read_once() {
    let tables = |processes: u64| {
        let mut memory = guest();
        for number in 0..processes {
            root(
                &mut memory,
                0x6000 + (number << 12),
                0x10_0000,
                Some(0x22_0000 + (number << 14)),
            );
        }
        find_roots(&x86(LONG), &memory, ALL).tables
    };
    assert_eq!(tables(10) - tables(0), 30, "three of its own for each");
}

#[test]
fn a_page_of_noise_of_text_or_of_a_kernels_direct_map_is_no_root() {
    let mut memory = guest();
    let mut state = 1_u64;
    for at in (0x30_8000..0x31_0000).step_by(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        memory.write_u64(at, state);
    }
    memory.write(
        0x31_0000,
        &b"The quick brown fox jumps over the lazy dog. ".repeat(91),
    );
    for index in 0..512 {
        memory.write_u64(0x31_2000 + index * 8, index << 21 | 0xe3 | NX);
        memory.write_u64(0x31_3000 + index * 8, index << 12 | KERNEL | NX);
    }
    assert_eq!(found(&x86(LONG), &memory), EXPECTED);
}

#[test]
fn a_root_that_maps_no_kernel_code_is_none() {
    let mut memory = guest();
    kernel(&mut memory, 0x11_0000, 3);
    memory.write_u64(0x11_2000, 0x30_0000 | KERNEL | NX);
    root(&mut memory, 0x6000, 0x11_0000, Some(0x22_0000));
    assert_eq!(found(&x86(LONG), &memory), EXPECTED);
}

#[test]
fn a_process_cannot_hide_behind_a_reserved_bit_or_junk_in_its_tables() {
    let mut memory = guest();
    // In a user table: above what a CPU has; in the top-level table: the size bit, and junk in an entry that is not present.
    memory.write_u64(0x21_0000 + 80, 1 << 51 | USER);
    memory.write_u64(0x2000 + 16, 0x80 | USER);
    memory.write_u64(0x2000 + 24, 0xdead_0000);
    assert_eq!(found(&x86(LONG), &memory), EXPECTED);
}

#[test]
fn a_root_of_a_process_that_ended_is_not_taken_for_a_process() {
    let mut memory = guest();
    memory.write_u64(0x5000, 0);
    let expected = [EXPECTED[0], EXPECTED[1], (0x5000, RootKind::Kernel)];
    assert_eq!(found(&x86(LONG), &memory), expected);
}

#[test]
fn a_guest_with_five_levels_has_roots_of_five_levels() {
    let mut memory = memory();
    kernel(&mut memory, 0x10_0000, 4);
    root(&mut memory, 0x1000, 0x10_0000, None);
    root(&mut memory, 0x2000, 0x10_0000, None);
    memory.write_u64(0x2000, 0x20_0000 | USER);
    chain(&mut memory, 0x20_0000, 4, USER, 0x30_2000 | USER);
    let five = X86Controls {
        cr4: LONG.cr4 | LA57,
        ..LONG
    };
    let expected = [(0x1000, RootKind::Kernel), (0x2000, RootKind::Process)];
    assert_eq!(found(&x86(five), &memory), expected);
}

#[test]
fn a_guest_with_large_pages_has_no_roots_of_more_levels_than_it_has() {
    let mut memory = guest();
    // A 2 MiB page of the kernel's: its address sets bits that are reserved one level up.
    memory.write_u64(0x10_1000 + 8, 0x60_0000 | 0xe3);
    assert_eq!(found(&x86(LONG), &memory), EXPECTED);
    let [five, four, pae, _] = Mode::guesses();
    for other in [five, pae] {
        assert_eq!(found(&other, &memory), [], "{}", other.name());
    }
    assert_eq!(found(&four, &memory), EXPECTED);
}

fn pae() -> Mode {
    x86(X86Controls {
        cr0: PG,
        cr4: PAE | PGE,
        efer: 1 << 11,
        physical_bits: 36,
        gib_pages: false,
    })
}

#[test]
fn a_pae_root_is_found_at_any_multiple_of_32_bytes() {
    let mut memory = memory();
    chain(&mut memory, 0x10_0000, 2, KERNEL, 0x30_0000 | KERNEL);
    for (at, tables) in [(0x2020_u64, 0x20_0000_u64), (0x2fe0, 0x21_0000)] {
        for number in 0..3 {
            memory.write_u64(at + number * 8, (tables + (number << 12)) | 1);
        }
        memory.write_u64(at + 24, 0x10_0000 | 1);
        memory.write_u64(tables, (tables + 0x3000) | USER);
        memory.write_u64(tables + 0x3000, 0x30_2000 | USER);
    }
    let expected = [(0x2020, RootKind::Process), (0x2fe0, RootKind::Process)];
    assert_eq!(found(&pae(), &memory), expected);
}

/// Linux gives each process a copy of the kernel's second-level table, where tables are isolated and there are three levels.
#[test]
fn processes_with_copies_of_the_kernels_tables_have_its_entries_in_common() {
    let mut memory = memory();
    // The last table of the kernel is the one that is shared.
    memory.write_u64(0x10_1000, 0x30_0000 | KERNEL);
    for (at, tables) in [
        (0x2000_u64, 0x20_0000_u64),
        (0x4000, 0x21_0000),
        (0x6000, 0x22_0000),
    ] {
        memory.write_u64(at, tables | 1);
        memory.write_u64(at + 24, (tables + 0x1000) | 1);
        memory.write_u64(tables, (tables + 0x3000) | USER);
        memory.write_u64(tables + 0x3000, 0x30_2000 | USER);
        memory.write_u64(tables + 0x1000 + 8, 0x10_1000 | KERNEL);
    }
    // Another table that leads to something executable has nothing in common with them.
    memory.write_u64(0x8000, 0x23_0000 | 1);
    memory.write_u64(0x8018, 0x23_1000 | 1);
    memory.write_u64(0x23_0000, 0x23_2000 | USER);
    memory.write_u64(0x23_2000, 0x30_2000 | USER);
    memory.write_u64(0x23_1000, 0x23_3000 | KERNEL);
    memory.write_u64(0x23_3000, 0x30_5000 | KERNEL);
    // One of the three cannot hide behind a reserved bit.
    memory.write_u64(0x4008, 0x21_4000 | 1 | 1 << 5);
    let expected = [0x2000, 0x4000, 0x6000].map(|at| (at, RootKind::Process));
    assert_eq!(found(&pae(), &memory), expected);
}

#[test]
fn memory_that_cannot_be_read_is_counted() {
    let memory = guest();
    let all = find_roots(&x86(LONG), &memory, &[(Gpa(0), 5 << 20)]);
    assert_eq!((all.searched_bytes, all.unreadable_bytes), (4 << 20, 1 << 20));
    assert_eq!(all.roots.len(), 3);
}

#[test]
fn max_roots_found_bounds_what_a_guest_full_of_roots_costs() {
    /// Every page is the same root.
    struct Full(Memory);
    impl nephoscope_guest::PhysicalMemory for Full {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), nephoscope_guest::MemoryFault> {
            if at.0 < 4 << 20 {
                return self.0.read(at, buf);
            }
            let mut done = 0;
            while done < buf.len() {
                let here = (buf.len() - done).min(4096);
                self.0.read(Gpa(0x2000), &mut buf[done..done + here])?;
                done += here;
            }
            Ok(())
        }
    }
    let many = (MAX_ROOTS_FOUND as u64 + (4 << 20 >> 12) + 100) << 12;
    let found: RootsFound = find_roots(&x86(LONG), &Full(guest()), &[(Gpa(0), many)]);
    assert_eq!((found.roots.len(), found.cut_short), (MAX_ROOTS_FOUND, true));
}

#[test]
fn max_tables_searched_bounds_the_tables_read() {
    /// A table wherever one looks: every entry names another place.
    struct Endless;
    impl nephoscope_guest::PhysicalMemory for Endless {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), nephoscope_guest::MemoryFault> {
            for (number, entry) in (at.0 / 8..).zip(buf.chunks_mut(8)) {
                let to = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) & 0x3fff_ffff_f000;
                entry.copy_from_slice(&(to | USER).to_le_bytes()[..entry.len()]);
            }
            Ok(())
        }
    }
    let found = find_roots(&x86(LONG), &Endless, &[(Gpa(0), 1 << 12)]);
    assert!(found.cut_short);
    assert_eq!(found.tables, nephoscope_isa::MAX_TABLES_SEARCHED);
}
