//! The walker against a twin that is unrolled by hand, level after level, on random tables.

mod common;
#[path = "common/twin.rs"]
mod twin;

use std::collections::BTreeMap;

use common::Memory;
use nephoscope_guest::{Gva, Root};
use nephoscope_isa::{Bounds, Ended, Walker, Want};
use proptest::prelude::*;
use twin::{Kind, PHYSICAL_BITS, ROOT, SLOTS, Twin};

/// An entry that is often good and often bad in one way.
fn entry() -> impl Strategy<Value = u64> {
    let frame = 1u64..9;
    let flags = prop_oneof![
        Just(0x7u64),
        Just(0x27),
        Just(0x3),
        Just(0x5),
        Just(0x87),
        Just(0x1),
        0u64..4096
    ];
    let rare = prop_oneof![
        8 => Just(0u64),
        2 => Just(1 << 63),
        1 => (12u32..63).prop_map(|bit| 1 << bit),
        // What AArch64 has its rights in, and the others ignore or reserve.
        2 => proptest::sample::select(&[53, 54, 59, 60, 61, 62][..]).prop_map(|bit: u32| 1 << bit),
        1 => Just(u64::MAX << 13),
    ];
    let large = prop_oneof![3 => Just(None), 1 => (0u64..4, 21u32..34).prop_map(Some)];
    (frame, flags, rare, large).prop_map(|(frame, flags, rare, large)| match large {
        None => frame << 12 | flags | rare,
        Some((base, shift)) => base << shift | flags | 0x80 | rare,
    })
}

fn random_memory() -> impl Strategy<Value = Memory> {
    proptest::collection::vec((1u64..7, proptest::sample::select(SLOTS), entry()), 0..37).prop_map(
        |entries| {
            let mut memory = Memory::default();
            for frame in 1..7 {
                memory.add_frame(frame << 12);
            }
            for (frame, slot, entry) in entries {
                memory.write_u64(frame << 12 | slot << 3, entry);
            }
            memory
        },
    )
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Five),
        Just(Kind::Four),
        Just(Kind::Pae),
        Just(Kind::Classic),
        Just(Kind::Aarch64)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_walker_agrees_with_its_twin_on_every_address_and_on_the_list_of_all_mappings(
        memory in random_memory(), kind in kind(), nxe: bool, offset in 0u64..4096, wild: u64, part: (usize, usize),
    ) {
        let walker = Walker::new(kind.mode(nxe), &memory);
        let twin = Twin { memory: &memory, physical_bits: u32::from(PHYSICAL_BITS), nxe };
        let mut expected = BTreeMap::new();
        for va in kind.probes().into_iter().map(|va| va | offset).chain([wild]) {
            let ours = walker.translate(Root(ROOT), Gva(va)).ok().map(|t| {
                let p = t.permissions;
                (t.gpa.0, t.size_bytes, p.write, p.user, p.execute_user)
            });
            let theirs = kind.translate(&twin, va);
            prop_assert_eq!(ours, theirs, "{:?} at {:#x}", kind, va);
            if let Some((gpa, size, w, u, x)) = theirs {
                expected.insert(va & !(size - 1), (gpa & !(size - 1), size, w, u, x));
            }
        }
        let probes = kind.probes();
        let (a, b) = (probes[part.0 % probes.len()], probes[part.1 % probes.len()]);
        for (first, last) in [(0, u64::MAX), (a.min(b), a.max(b))] {
            let mut found = BTreeMap::new();
            let range = Gva(first)..=Gva(last);
            let census = walker.leaves(Root(ROOT), &range, Want::Everything, Bounds::default(), |leaf| {
                let p = leaf.permissions;
                found.insert(leaf.va.0, (leaf.gpa.0, leaf.size_bytes, p.write, p.user, p.execute_user));
            });
            prop_assert_eq!(census.ended, Ended::Complete);
            prop_assert_eq!(census.leaves, found.len() as u64);
            let mut expected = expected.clone();
            expected.retain(|&va, &mut (_, size, ..)| va <= last && va + (size - 1) >= first);
            prop_assert_eq!(found, expected);
        }
    }
}
