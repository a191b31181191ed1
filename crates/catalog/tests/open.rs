//! Opening, and being replaced while open.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use nephoscope_catalog::{AddError, Adder, Catalog, OpenError, verify};
use support::*;

#[test]
fn each_reason_not_to_open_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(matches!(Catalog::open(&at("none")), Err(OpenError::Missing(_))));
    std::fs::create_dir(at("empty")).unwrap();
    assert!(matches!(Catalog::open(&at("empty")), Err(OpenError::Missing(_))));
    std::fs::create_dir(at("other")).unwrap();
    std::fs::write(at("other/file"), "x").unwrap();
    assert!(matches!(
        Catalog::open(&at("other")),
        Err(OpenError::NotACatalog(_))
    ));
    assert!(matches!(
        Catalog::open(&at("other/file")),
        Err(OpenError::NotACatalog(_))
    ));
    assert!(matches!(
        Adder::new(&at("other")),
        Err(AddError::Open(OpenError::NotACatalog(_)))
    ));

    add(&at("catalog"), &[simple(dir.path(), "a", "1", program(1))]);
    let current = at("catalog/CURRENT");
    let good = std::fs::read_to_string(&current).unwrap();
    let newer = good
        .lines()
        .filter(|l| l.starts_with("segment"))
        .collect::<Vec<_>>()
        .join("\n");
    let newer = format!("nephoscope catalog 9\n{newer}\n");
    std::fs::write(
        &current,
        format!("{newer}check {}\n", blake3::hash(newer.as_bytes())),
    )
    .unwrap();
    assert!(matches!(
        Catalog::open(&at("catalog")),
        Err(OpenError::OtherVersion { .. })
    ));
    std::fs::write(&current, "something else entirely").unwrap();
    assert!(matches!(
        Catalog::open(&at("catalog")),
        Err(OpenError::NotACatalog(_))
    ));
    std::fs::write(&current, &good[..good.len() - 10]).unwrap();
    assert!(matches!(
        Catalog::open(&at("catalog")),
        Err(OpenError::Damaged { .. })
    ));
    std::fs::write(&current, &good).unwrap();
    let segment = std::fs::read_dir(at("catalog"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let segment = segment
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "segment"))
        .unwrap();
    std::fs::rename(&segment, at("gone")).unwrap();
    let error = Catalog::open(&at("catalog")).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }));
    assert!(!error.to_string().contains('\n'));
    let name = segment.file_name().unwrap().to_str().unwrap();
    let damage = verify(&at("catalog")).unwrap().damage;
    assert_eq!(
        damage[0],
        format!("{name}: missing"),
        "what and where, and no advice to ask again"
    );
}

#[test]
fn readers_keep_the_old_catalog_and_can_move_to_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = dir.path().join("catalog");
    add(&catalog, &[simple(dir.path(), "a", "1", program(1))]);
    let old = Catalog::open(&catalog).unwrap();
    assert!(old.newer().unwrap().is_none());
    // Large enough that the old segment is merged away and unlinked.
    add(
        &catalog,
        &[simple(
            dir.path(),
            "b",
            "1",
            elf(&(100..200).map(page).collect::<Vec<_>>()),
        )],
    );
    assert_eq!(whose(&old, &page(1)), ["a 1 /usr/bin/a"]);
    assert_eq!(whose(&old, &page(100)), [""; 0]);
    let new = old.newer().unwrap().unwrap();
    assert_eq!(whose(&new, &page(1)), ["a 1 /usr/bin/a"]);
    assert_eq!(whose(&new, &page(100)), ["b 1 /usr/bin/b"]);
}

#[test]
fn many_readers_open_while_one_adds() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = dir.path().join("catalog");
    add(&catalog, &[simple(dir.path(), "p0", "1", program(0))]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let catalog = Catalog::open(&catalog).unwrap();
                    assert_eq!(whose(&catalog, &page(0)), ["p0 1 /usr/bin/p0"]);
                }
            });
        }
        for i in 1..40 {
            add(&catalog, &[simple(dir.path(), &format!("p{i}"), "1", program(i))]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn two_cannot_add_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = Adder::new(dir.path()).unwrap();
    assert!(matches!(Adder::new(dir.path()), Err(AddError::Busy(_))));
    drop(first);
    assert!(Adder::new(dir.path()).is_ok());
}

#[test]
fn an_adder_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = dir.path().join("catalog");
    add(&catalog, &[simple(dir.path(), "a", "1", program(1))]);
    let before = contents(&catalog);
    let mut adder = Adder::new(&catalog).unwrap();
    adder.add(&[simple(dir.path(), "b", "1", program(2))]).unwrap();
    drop(adder);
    assert!(contents(&catalog) == before);
}

/// KiB of a file that are mapped into this process and in memory (proc(5), `smaps`).
fn resident_kib(path: &std::path::Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let of_it = maps.split_once(name).unwrap().1;
    let rss = of_it.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_is_let_go_of_is_no_longer_resident_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    add(&path, &[simple(dir.path(), "a", "1", program(1))]);
    let catalog = Catalog::open(&path).unwrap();
    let digest = blake3::hash(&program(1));
    let before = catalog.by_digest(digest.as_bytes()).unwrap();
    assert!(before.is_some());
    let files = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let segment = files
        .into_iter()
        .find(|file| file.extension().is_some_and(|end| end == "segment"))
        .unwrap();
    assert!(resident_kib(&segment) > 0);
    catalog.let_go().unwrap();
    assert_eq!(resident_kib(&segment), 0);
    assert_eq!(catalog.by_digest(digest.as_bytes()).unwrap(), before);
    assert!(resident_kib(&segment) > 0);
}
