//! The inventory as a whole, fed by hand.

use super::*;
use crate::early::{EARLY_NS, MAX_EARLY, MAX_WAIT_NS};
use crate::fixture::{NoNames, page, ran};
use crate::summary::MAX_ENDED;
use crate::verdict::Unknown;

#[test]
fn a_reused_root_is_another_address_space_and_the_old_one_is_kept_as_ended() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
    inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
    inventory.executed(9, ran(1, 0x1000, 2), &mut changes);
    let spaces: Vec<_> = inventory.spaces().map(|s| (s.id.0, s.ended_ns)).collect();
    assert_eq!(spaces, [(1, Some(9)), (2, None)]);
}

#[test]
fn what_is_told_after_a_reset_of_before_it_is_of_before_it() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    let kernel = |id, at_ns| PageRecord {
        at_ns,
        ..page(id, Privilege::Supervisor, 0xffff_ffff_8100_0000)
    };
    inventory.captured(kernel(1, 1), &mut changes);
    inventory.captured(page(2, Privilege::User, 0x1000), &mut changes);
    inventory.reset(10, &mut changes);
    inventory.executed(12, ran(2, 0x1000, 2), &mut changes);
    // Frames of another vCPU's ring, read only now: a process that was not heard of yet, and more of the old kernel.
    inventory.executed(9, ran(2, 0x1000, 1), &mut changes);
    inventory.captured(kernel(3, 10), &mut changes);
    inventory.captured(kernel(4, 11), &mut changes);
    let users = inventory.spaces().filter(|s| s.kind == SpaceKind::User);
    let users: Vec<_> = users.map(|s| (s.incarnation, s.ended_ns)).collect();
    assert_eq!(users, [(2, None), (1, Some(10))]);
    let kernels = inventory.spaces().filter(|s| s.kind == SpaceKind::Kernel);
    let kernels: Vec<_> = kernels
        .map(|s| (s.pages.keys().map(|page| page.0).collect::<Vec<_>>(), s.ended_ns))
        .collect();
    assert_eq!(kernels, [(vec![1, 3], Some(10)), (vec![4], None)]);
}

#[test]
fn what_executes_after_another_kernel_was_seen_lives_unless_its_root_is_anothers() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
    inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
    inventory.another_kernel(6, &[], &mut changes);
    inventory.executed(7, ran(1, 0x1000, 1), &mut changes);
    assert!(inventory.space(SpaceId(1)).unwrap().is_living());
    inventory.executed(8, ran(1, 0x1000, 2), &mut changes);
    inventory.executed(9, ran(1, 0x1000, 1), &mut changes);
    let users = inventory
        .spaces()
        .filter(|s| s.kind == SpaceKind::User && s.is_living());
    assert_eq!(users.map(|s| s.incarnation).collect::<Vec<_>>(), [2]);
}

#[test]
fn another_kernel_ends_all_of_before_but_firmware_and_takes_its_own_pages() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(page(1, Privilege::Supervisor, 0xf_0000), &mut changes);
    for id in [2, 3] {
        let va = 0xffff_ffff_8100_0000 + (id << 12);
        inventory.captured(page(id, Privilege::Supervisor, va), &mut changes);
    }
    inventory.captured(page(4, Privilege::User, 0x1000), &mut changes);
    inventory.executed(5, ran(4, 0x1000, 1), &mut changes);
    inventory.another_kernel(9, &[PageId(3)], &mut changes);
    let shown = |s: &AddressSpace| {
        (
            s.kind,
            s.ended_ns,
            s.pages.keys().map(|page| page.0).collect::<Vec<_>>(),
        )
    };
    let spaces: Vec<_> = inventory.spaces().map(shown).collect();
    let expected = [
        (SpaceKind::Firmware, None, vec![1]),
        (SpaceKind::Kernel, Some(9), vec![2]),
        (SpaceKind::User, Some(9), vec![4]),
        (SpaceKind::Kernel, None, vec![3]),
    ];
    assert_eq!(spaces, expected);
}

#[test]
fn an_execution_that_comes_before_its_capture_is_kept_for_it() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
    assert!(changes.is_empty());
    inventory.captured(page(1, Privilege::User, 0x7000), &mut changes);
    assert_eq!(
        changes,
        [Change::Ran {
            space: SpaceId(1),
            page: PageId(1)
        }]
    );
    let space = inventory.spaces().next().unwrap();
    assert_eq!(space.pages.get(&PageId(1)), Some(&Some(Gva(0x7000))));
}

#[test]
fn max_early_bounds_what_is_kept_and_the_rest_is_counted() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    for i in 0..(MAX_EARLY as u64 + 10) {
        inventory.executed(5, ran(i + 1, 0x1000, 1), &mut changes);
    }
    assert_eq!(inventory.dropped(), 10);
}

#[test]
fn a_page_is_placed_once_and_only_where_it_ran() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
    inventory.executed(5, ran(1, 0x2000, 1), &mut changes);
    let space = SpaceId(1);
    assert_eq!(inventory.unplaced(space), HashMap::from([(Gpa(0), PageId(1))]));
    inventory.place(space, PageId(7), Gva(0x5000));
    inventory.place(space, PageId(1), Gva(0x6000));
    inventory.place(space, PageId(1), Gva(0x7000));
    let pages: Vec<_> = inventory
        .space(space)
        .unwrap()
        .pages
        .clone()
        .into_iter()
        .collect();
    assert_eq!(pages, [(PageId(1), Some(Gva(0x6000)))]);
    assert!(inventory.unplaced(space).is_empty());
}

#[test]
fn max_mapped_bounds_what_one_address_space_makes_us_keep() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
    inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
    let verdict = Arc::new(Verdict::Unknown(Unknown::default()));
    let took = (0..MAX_MAPPED as u64 + 10)
        .filter(|i| inventory.mapped(SpaceId(1), Gva(i << 12), verdict.clone()))
        .count();
    assert_eq!(took, MAX_MAPPED);
    assert!(!inventory.mapped(SpaceId(7), Gva(0), verdict), "nobody's");
}

/// A page whose frame holds nothing else.
fn in_own_frame(id: u64, verdict: Verdict) -> PageRecord {
    PageRecord {
        frame: id << 12,
        verdict: Arc::new(verdict),
        ..page(id, Privilege::User, 0x7000)
    }
}

fn known() -> Verdict {
    Verdict::Identified(crate::verdict::Identified::default())
}

#[test]
fn max_ended_bounds_what_is_told_one_by_one_and_all_are_counted() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(in_own_frame(1, known()), &mut changes);
    inventory.captured(
        in_own_frame(2, Verdict::Unknown(Unknown::default())),
        &mut changes,
    );
    inventory.executed(1, ran(2, 0x9000, 1), &mut changes);
    let all = u32::try_from(MAX_ENDED).unwrap() + 500;
    for incarnation in 2..=all {
        inventory.executed(u64::from(incarnation), ran(1, 0x1000, incarnation), &mut changes);
    }
    inventory.ended(SpaceId(1), 2, &mut changes);
    changes.clear();
    inventory.summarise(0, &NoNames, &mut changes);
    assert_eq!(
        inventory.files.program_of_gone(SpaceId(2)),
        None,
        "it has read nothing"
    );
    // The last one lives.
    assert_eq!(
        inventory.spaces().filter(|s| !s.is_living()).count(),
        MAX_ENDED + 1
    );
    let told = inventory.summaries().report();
    assert_eq!(told.iter().map(|summary| summary.count).sum::<u64>(), 500 - 2);
    assert_eq!((told[0].pages.identified, told[0].pages.captured), (498, 498));
    assert_eq!(changes.len(), 498);
    assert!(
        inventory.space(SpaceId(1)).is_some(),
        "what has unknown pages is not pushed out by what has none"
    );
    assert!(inventory.space(SpaceId(2)).is_none());
    // What is said of one that is only counted is no new address space.
    inventory.executed(9999, ran(1, 0x1000, 2), &mut changes);
    assert_eq!((inventory.late(), inventory.spaces().count()), (1, MAX_ENDED + 2));
    inventory.executed(9999, ran(1, 0x1000, all + 1), &mut changes);
    assert_eq!(
        inventory.spaces().last().unwrap().id.0,
        all + 1,
        "numbers are not used again"
    );
}

#[test]
fn max_listed_bounds_one_address_space_and_the_rest_is_counted() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(in_own_frame(1, known()), &mut changes);
    inventory.executed(1, ran(1, 0x1000, 1), &mut changes);
    let made = MAX_LISTED as u64 * 2;
    for id in 2..=made {
        let generation = PageRecord {
            frame: 0x10_0000,
            ..in_own_frame(id, Verdict::Unknown(Unknown::default()))
        };
        inventory.captured(generation, &mut changes);
        inventory.executed(id, ran(id, 0x1000, 1), &mut changes);
    }
    let space = inventory.space(SpaceId(1)).unwrap();
    assert_eq!(space.pages.len(), MAX_LISTED);
    assert_eq!(space.pages.len() as u64 + space.unlisted.unknown, made);
    assert!(space.pages.contains_key(&PageId(1)), "what is known stays");
    assert!(space.pages.contains_key(&PageId(made)), "and what is new");
    assert_eq!(inventory.counts().user.captured, made);
    assert!(
        inventory.pages().count() < MAX_LISTED + 5000,
        "{}",
        inventory.pages().count()
    );
}

#[test]
fn max_living_bounds_the_living_and_says_how_many_there_was_no_room_for() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(in_own_frame(1, known()), &mut changes);
    for number in 1..=(u32::try_from(MAX_LIVING).unwrap() + 7) {
        inventory.executed(
            number.into(),
            ran(1, u64::from(number) << 12, number),
            &mut changes,
        );
    }
    assert_eq!(inventory.summarise(1, &NoNames, &mut changes), 7);
    assert_eq!(inventory.spaces().filter(|s| s.is_living()).count(), MAX_LIVING);
    assert!(
        !inventory.space(SpaceId(1)).unwrap().is_living(),
        "the one that was idle for longest"
    );
    assert_eq!(inventory.summarise(1, &NoNames, &mut changes), 0);
}

#[test]
fn executions_whose_page_was_lost_make_room_for_others() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    for i in 0..MAX_EARLY as u64 {
        inventory.executed(5, ran(i + 1, 0x1000, 1), &mut changes);
    }
    inventory.executed(EARLY_NS + 6, ran(1 << 40, 0x1000, 1), &mut changes);
    assert_eq!(inventory.dropped(), MAX_EARLY as u64);
    let late = PageRecord {
        at_ns: EARLY_NS,
        ..in_own_frame(1 << 40, known())
    };
    inventory.captured(late, &mut changes);
    assert_eq!(inventory.spaces().count(), 1);
}

#[test]
fn files_near_a_page_are_found_by_where_their_pages_ran() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    let place = crate::verdict::Place {
        object: nephoscope_catalog::ObjectId(5),
        part: None,
        link: 0x3000,
    };
    let of_a_file = Verdict::Identified(crate::verdict::Identified {
        places: vec![place],
        ..crate::verdict::Identified::default()
    });
    inventory.captured(in_own_frame(1, of_a_file), &mut changes);
    inventory.executed(1, ran(1, 0x1000, 1), &mut changes);
    let space = inventory.living_at(Root(0x1000)).unwrap();
    let near = |va| space.files_near(Gva(va), 0x2000, 8).collect::<Vec<_>>();
    let bias = 0x7000 - 0x3000;
    assert_eq!(near(0x9000), [(place.object, bias)]);
    assert_eq!(near(0x5000), [(place.object, bias)]);
    assert_eq!((near(0x9001), near(0x4fff)), (vec![], vec![]));
    assert!(inventory.living_at(Root(0x2000)).is_none());
}

#[test]
fn max_anchors_bounds_what_one_address_space_remembers_of_where_files_lie() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    for id in 0..2 * crate::space::MAX_ANCHORS as u64 {
        let place = crate::verdict::Place {
            object: nephoscope_catalog::ObjectId(u32::try_from(id).unwrap()),
            part: None,
            link: 0,
        };
        let verdict = Verdict::Identified(crate::verdict::Identified {
            places: vec![place],
            ..crate::verdict::Identified::default()
        });
        inventory.captured(in_own_frame(id, verdict), &mut changes);
        inventory.executed(id, ran(id, 0x1000, 1), &mut changes);
    }
    let space = inventory.living_at(Root(0x1000)).unwrap();
    assert_eq!(space.anchors.len(), crate::space::MAX_ANCHORS);
    assert_eq!(inventory.anchors_left_out(), crate::space::MAX_ANCHORS as u64);
}

#[test]
fn max_wait_ns_is_how_long_an_execution_waits_for_its_page() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.executed(5, ran(1, 0x1000, 1), &mut changes);
    inventory.executed(7, ran(2, 0x1000, 1), &mut changes);
    assert!(inventory.overdue(MAX_WAIT_NS).is_empty());
    assert_eq!(inventory.overdue(MAX_WAIT_NS + 6), [5]);
    assert_eq!(inventory.dropped(), 1);
    inventory.captured(page(2, Privilege::User, 0x7000), &mut changes);
    assert_eq!(changes.len(), 1, "the other one still waits for its page");
}

#[test]
fn kernel_and_firmware_are_their_own() {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    inventory.captured(
        page(1, Privilege::Supervisor, 0xffff_ffff_8100_0000),
        &mut changes,
    );
    inventory.captured(page(2, Privilege::Supervisor, 0xf_0000), &mut changes);
    let kinds: Vec<_> = inventory.spaces().map(|s| s.kind).collect();
    assert_eq!(kinds, [SpaceKind::Kernel, SpaceKind::Firmware]);
}
