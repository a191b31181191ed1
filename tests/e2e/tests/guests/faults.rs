//! Faults, a few of each: `cargo xtask faults` makes more of them.

use nephoscope_e2e::faults::{GROUPS, Setting};
use nephoscope_e2e::{Catalog, Image};

/// Each fault of a group holds.
fn hold(group: &str) {
    let program = nephoscope_e2e::program().unwrap();
    let image = Image::ensure().unwrap();
    let setting = Setting {
        catalog: Catalog::ensure(&image, &program).unwrap().path(),
        program,
        image,
        kills: 10,
    };
    let (_, run) = GROUPS.iter().find(|(name, _)| *name == group).unwrap();
    let rows = run(&setting).unwrap();
    for row in &rows {
        println!("{} ({}): {}", row.fault, row.times, row.seen);
    }
    let wrong: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.fault).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_watch_that_is_killed_stopped_or_cheated_loses_nothing_silently() {
    hold("watch");
}

#[test]
fn a_machine_is_watched_through_a_reset_and_through_the_death_of_all_who_watched_it() {
    hold("machine");
}

#[test]
fn a_guest_that_is_migrated_is_watched_without_a_hole() {
    hold("migration");
}
