//! Top-level tables read raw, and the pairs that page-table isolation makes.

#![allow(
    clippy::unwrap_used,
    reason = "helpers outside of what clippy takes for a test"
)]

mod common;

use std::ops::RangeInclusive;

use common::{LA57, LONG, Memory, PAE, x86};
use nephoscope_guest::{Gpa, Gva, Root};
use nephoscope_isa::{Fault, IsolationPair, Mode, Walker, X86Controls, isolation_partner};

const NX: u64 = 1 << 63;
const KERNEL: Root = Root(0x4000);
const USER: Root = Root(0x5000);

fn low_half(mode: &Mode) -> RangeInclusive<Gva> {
    mode.spaces().next().unwrap()
}

fn isolated() -> Memory {
    let mut memory = Memory::default();
    memory.write_u64(KERNEL.0, 0x9067 | NX);
    memory.write_u64(KERNEL.0 + 255 * 8, 0xa067 | NX);
    memory.write_u64(KERNEL.0 + 511 * 8, 0xb063);
    memory.write_u64(USER.0, 0x9047);
    memory.write_u64(USER.0 + 255 * 8, 0xa067);
    memory.write_u64(USER.0 + 511 * 8, 0xc063);
    memory
}

fn pair(memory: &Memory, root: Root) -> Option<IsolationPair> {
    let mode = x86(LONG);
    Walker::new(mode, memory)
        .isolation_pair(root, &low_half(&mode))
        .unwrap()
}

#[test]
fn two_roots_whose_user_halves_agree_apart_from_nx_and_accessed_are_one_address_space() {
    let expected = Some(IsolationPair {
        kernel: KERNEL,
        user: USER,
    });
    assert_eq!(pair(&isolated(), KERNEL), expected);
    assert_eq!(pair(&isolated(), USER), expected);
    assert_eq!(isolation_partner(USER), KERNEL);
}

#[test]
fn neighbours_with_different_user_halves_are_two_address_spaces() {
    let mut memory = isolated();
    memory.write_u64(USER.0 + 8, 0xd067);
    assert_eq!(pair(&memory, KERNEL), None);
}

#[test]
fn two_empty_user_halves_prove_nothing() {
    let mut memory = Memory::default();
    memory.write_u64(KERNEL.0 + 511 * 8, 0xb063);
    memory.write_u64(USER.0 + 511 * 8, 0xb063);
    assert_eq!(pair(&memory, KERNEL), None);
    let mode = x86(LONG);
    let walker = Walker::new(mode, &memory);
    assert_eq!(walker.is_empty(KERNEL, &low_half(&mode)), Ok(true));
    assert_eq!(walker.is_empty(KERNEL, &mode.spaces().nth(1).unwrap()), Ok(false));
}

#[test]
fn a_neighbour_that_cannot_be_read_is_no_neighbour_but_the_root_itself_is_a_fault() {
    let mut memory = Memory::default();
    memory.write_u64(KERNEL.0, 0x9067);
    assert_eq!(pair(&memory, KERNEL), None);
    let mode = x86(LONG);
    let result = Walker::new(mode, &memory).isolation_pair(USER, &low_half(&mode));
    assert_eq!(
        result,
        Err(Fault::Unreadable {
            level: 4,
            at: Gpa(USER.0)
        })
    );
}

#[test]
fn top_entries_of_a_range_come_with_index_value_and_presence() {
    let mode = x86(LONG);
    let memory = isolated();
    let entries = Walker::new(mode, &memory)
        .table_entries(KERNEL, &(Gva(0)..=Gva(u64::MAX)))
        .unwrap();
    assert_eq!(entries.len(), 512);
    let present: Vec<_> = entries
        .iter()
        .filter(|e| e.present)
        .map(|e| (e.index, e.raw))
        .collect();
    assert_eq!(present, [(0, 0x9067 | NX), (255, 0xa067 | NX), (511, 0xb063)]);
    assert_eq!(memory.reads.get(), 2);
}

#[test]
fn every_mode_has_its_own_number_of_top_entries() {
    let mut memory = Memory::default();
    memory.add_frame(KERNEL.0);
    let count = |controls| {
        Walker::new(x86(controls), &memory)
            .table_entries(KERNEL, &(Gva(0)..=Gva(u64::MAX)))
            .unwrap()
            .len()
    };
    assert_eq!(count(LONG), 512);
    assert_eq!(
        count(X86Controls {
            cr4: PAE | LA57,
            ..LONG
        }),
        512
    );
    assert_eq!(count(X86Controls { efer: 0, ..LONG }), 4);
    assert_eq!(
        count(X86Controls {
            efer: 0,
            cr4: 0,
            ..LONG
        }),
        1024
    );
}
