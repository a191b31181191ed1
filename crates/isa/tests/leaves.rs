//! Walks over ranges, also over tables that a hostile guest would make.

mod common;

use std::ops::RangeInclusive;

use common::{LONG, Memory, x86};
use nephoscope_guest::{Gpa, Gva, Root};
use nephoscope_isa::{Bounds, Census, Ended, Leaf, Walker, Want};

const ROOT: Root = Root(0x1000);
const EVERYTHING: RangeInclusive<Gva> = Gva(0)..=Gva(u64::MAX);
const NX: u64 = 1 << 63;
const OK: u64 = 0x27;

fn walk(memory: &Memory, range: &RangeInclusive<Gva>, want: Want, bounds: Bounds) -> (Vec<Leaf>, Census) {
    let mut found = Vec::new();
    let census = Walker::new(x86(LONG), memory).leaves(ROOT, range, want, bounds, |leaf| found.push(leaf));
    (found, census)
}

fn addresses(leaves: &[Leaf]) -> Vec<(u64, u64, u64)> {
    leaves
        .iter()
        .map(|leaf| (leaf.va.0, leaf.gpa.0, leaf.size_bytes))
        .collect()
}

/// A user page and a 2 MiB page in the low half, a 1 GiB page and an NX table in the high half.
fn address_space() -> Memory {
    let mut memory = Memory::default();
    memory.write_u64(0x1000, 0x2000 | OK);
    memory.write_u64(0x2000, 0x3000 | OK);
    memory.write_u64(0x3000, 0x4000 | OK);
    memory.write_u64(0x4000 + 3 * 8, 0x9000 | OK);
    memory.write_u64(0x3000 + 5 * 8, 4 << 21 | OK | 0x80);
    memory.write_u64(0x1000 + 511 * 8, 0x5000 | 3);
    memory.write_u64(0x5000 + 510 * 8, 7 << 30 | 3 | 0x80);
    memory.write_u64(0x5000 + 511 * 8, 0x6000 | 3 | NX);
    memory.write_u64(0x6000, 2 << 21 | 3 | 0x80);
    memory
}

#[test]
fn leaves_of_all_sizes_come_in_ascending_order_from_both_halves() {
    let (leaves, census) = walk(&address_space(), &EVERYTHING, Want::Everything, Bounds::default());
    assert_eq!(
        addresses(&leaves),
        [
            (0x3000, 0x9000, 4096),
            (5 << 21, 4 << 21, 1 << 21),
            (0xffff_ffff_8000_0000, 7 << 30, 1 << 30),
            (0xffff_ffff_c000_0000, 2 << 21, 1 << 21),
        ]
    );
    assert!(leaves[0].permissions.user && leaves[0].accessed && !leaves[2].permissions.user);
    assert_eq!(
        census,
        Census {
            tables: 7,
            leaves: 4,
            pruned: 0,
            reserved: 0,
            unreadable: 0,
            ended: Ended::Complete
        }
    );
}

#[test]
fn tables_under_which_nothing_is_executable_are_not_read_when_only_that_is_wanted() {
    let (leaves, census) = walk(&address_space(), &EVERYTHING, Want::Executable, Bounds::default());
    assert_eq!(leaves.len(), 3);
    assert_eq!((census.tables, census.pruned), (6, 1));
}

#[test]
fn a_range_is_clipped_and_a_large_leaf_that_reaches_into_it_is_given_whole() {
    let range = Gva((5 << 21) + 0x1000)..=Gva((5 << 21) + 0x1fff);
    let (leaves, census) = walk(&address_space(), &range, Want::Everything, Bounds::default());
    assert_eq!(addresses(&leaves), [(5 << 21, 4 << 21, 1 << 21)]);
    assert_eq!(census.tables, 3);
    let empty = Gva(0x4000)..=Gva(0x4fff);
    assert!(
        walk(&address_space(), &empty, Want::Everything, Bounds::default())
            .0
            .is_empty()
    );
    let hole = Gva(0x8000_0000_0000)..=Gva(0xffff_7fff_ffff_ffff);
    assert_eq!(
        walk(&address_space(), &hole, Want::Everything, Bounds::default())
            .1
            .tables,
        0
    );
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let range = Gva(0x5000)..=Gva(0x1000);
    assert_eq!(
        walk(&address_space(), &range, Want::Everything, Bounds::default())
            .1
            .tables,
        0
    );
}

#[test]
fn a_table_that_names_itself_once_is_walked_to_the_end() {
    let mut memory = address_space();
    memory.write_u64(0x1000 + 256 * 8, 0x1000 | OK);
    let (leaves, census) = walk(&memory, &EVERYTHING, Want::Everything, Bounds::default());
    assert_eq!(census.ended, Ended::Complete);
    // The window shows every table as a page, its own included.
    let tables = leaves
        .iter()
        .filter(|leaf| leaf.gpa.0 <= 0x6000 && leaf.size_bytes == 4096)
        .count();
    assert_eq!(tables, 6);
    assert!(
        leaves
            .iter()
            .any(|leaf| leaf.gpa == Gpa(0x1000) && leaf.va.0 == 0xffff_8040_2010_0000)
    );
}

/// 512 entries that all name the table they are in: 512⁴ leaves from one page.
fn bomb() -> Memory {
    let mut memory = Memory::default();
    for index in 0..512 {
        memory.write_u64(0x1000 + index * 8, 0x1000 | OK);
    }
    memory
}

#[test]
fn the_bound_on_tables_stops_a_guest_whose_tables_never_end() {
    let memory = bomb();
    let bounds = Bounds {
        tables: 100,
        leaves: u64::MAX,
    };
    let (leaves, census) = walk(&memory, &EVERYTHING, Want::Everything, bounds);
    assert_eq!(census.tables, 100);
    assert_eq!(memory.reads.get(), 100);
    assert_eq!(leaves.len(), 97 * 512);
    assert_eq!(census.ended, Ended::Bound { at: Gva(97 << 21) });
}

#[test]
fn the_bound_on_leaves_stops_a_guest_whose_tables_never_end() {
    let bounds = Bounds {
        tables: u64::MAX,
        leaves: 1000,
    };
    let (leaves, census) = walk(&bomb(), &EVERYTHING, Want::Everything, bounds);
    assert_eq!(leaves.len(), 1000);
    assert_eq!(census.ended, Ended::Bound { at: Gva(1000 << 12) });
}

#[test]
fn a_walk_goes_on_where_a_bound_stopped_it() {
    let memory = address_space();
    let (all, _) = walk(&memory, &EVERYTHING, Want::Everything, Bounds::default());
    let mut found = Vec::new();
    let mut start = Gva(0);
    loop {
        let (leaves, census) = walk(
            &memory,
            &(start..=Gva(u64::MAX)),
            Want::Everything,
            Bounds { tables: 5, leaves: 1 },
        );
        found.extend(leaves);
        match census.ended {
            Ended::Bound { at } => start = at,
            Ended::Complete => break,
        }
    }
    assert_eq!(found, all);
}

#[test]
fn tables_that_cannot_be_read_and_entries_with_reserved_bits_are_counted() {
    let mut memory = address_space();
    memory.write_u64(0x1000 + 8, 0x7777_0000 | OK);
    memory.write_u64(0x3000 + 6 * 8, 1 << 50 | OK);
    let (leaves, census) = walk(&memory, &EVERYTHING, Want::Everything, Bounds::default());
    assert_eq!((leaves.len(), census.unreadable, census.reserved), (4, 1, 1));
    let nowhere = Walker::new(x86(LONG), &memory);
    let census = nowhere.leaves(
        Root(u64::MAX),
        &EVERYTHING,
        Want::Everything,
        Bounds::default(),
        |_| (),
    );
    assert_eq!((census.tables, census.unreadable), (2, 2));
}
