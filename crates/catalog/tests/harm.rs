//! Flipped bytes and killed writers.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nephoscope_catalog::{Adder, Catalog, verify};
use support::*;

/// A catalog of every kind of record: two segments, shared pages, placements of older objects.
fn make(dir: &Path) {
    let debs = tempfile::tempdir().unwrap();
    let many: Vec<_> = (0..12)
        .map(|i| simple(debs.path(), &format!("p{i}"), "1", elf(&[page(i), page(77)])))
        .collect();
    add(dir, &many);
    add(dir, &[simple(debs.path(), "p3", "2", elf(&[page(3), page(77)]))]);
}

/// Every question to the catalog of [`make`] with its answer, or `None` if the answer is that it is damaged.
fn answers(catalog: &Catalog) -> BTreeMap<String, Option<String>> {
    let mut all = BTreeMap::new();
    let mut ask = |question: String, answer: Option<String>| all.insert(question, answer);
    for seed in (0..14).chain([77]) {
        let pages = catalog.pages(&digest(&page(seed)));
        ask(
            format!("page {seed}"),
            pages.as_ref().ok().map(|pages| format!("{pages:?}")),
        );
        for page in pages.unwrap_or_default() {
            let id = page.object.0;
            ask(
                format!("placements {id}"),
                catalog.placements(page.object).ok().map(|p| format!("{p:?}")),
            );
            ask(
                format!("object {id}"),
                catalog.object(page.object).ok().map(|o| format!("{o:?}")),
            );
            ask(
                format!("part {id}"),
                catalog.part(page.object, 0).ok().map(|p| format!("{p:?}")),
            );
            let bytes = catalog.page_bytes(page.object, page.number);
            ask(
                format!("bytes {id} {}", page.number),
                bytes.ok().map(|p| format!("{:?}", p.as_deref())),
            );
        }
    }
    for hash in 0..100 {
        ask(
            format!("window {hash}"),
            catalog.windows(hash).ok().map(|w| format!("{w:?}")),
        );
    }
    ask("info".to_owned(), catalog.info().ok().map(|i| format!("{i:?}")));
    all
}

#[test]
fn verify_finds_every_flipped_byte_and_no_answer_is_wrong() {
    let good = tempfile::tempdir().unwrap();
    make(good.path());
    let right = answers(&Catalog::open(good.path()).unwrap());
    assert!(right.values().all(Option::is_some));
    assert!(verify(good.path()).unwrap().is_sound());
    let files = contents(good.path());
    assert_eq!(
        files
            .iter()
            .filter(|(name, _)| name.ends_with(".segment"))
            .count(),
        2
    );
    let (mut flips, mut refused) = (0, 0);
    for (name, bytes) in &files {
        let bad_dir = tempfile::tempdir().unwrap();
        for (name, bytes) in &files {
            std::fs::write(bad_dir.path().join(name), bytes).unwrap();
        }
        // An odd step, so that every field of every kind of record is hit somewhere.
        for at in (0..bytes.len()).step_by(if bytes.len() < 1000 { 1 } else { 43 }) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            // A new file and not new bytes in the old one, which may be mapped.
            std::fs::remove_file(bad_dir.path().join(name)).unwrap();
            std::fs::write(bad_dir.path().join(name), bad).unwrap();
            flips += 1;
            assert!(
                verify(bad_dir.path()).map_or(true, |report| {
                    !report.is_sound() && report.damage.iter().all(|line| !line.contains("verify"))
                }),
                "{name} byte {at}"
            );
            let Ok(catalog) = Catalog::open(bad_dir.path()) else {
                refused += 1;
                continue;
            };
            for (question, answer) in answers(&catalog) {
                // An error may hide questions that follow from its answer; no answer may be another.
                assert!(
                    answer.is_none() || right.get(&question) == Some(&answer),
                    "{name} byte {at}: {question}"
                );
            }
        }
        std::fs::write(bad_dir.path().join(name), bytes).unwrap();
    }
    assert!(flips > 1000 && refused < flips / 2, "{flips} {refused}");
}

#[test]
fn a_catalog_killed_at_any_moment_is_the_old_or_the_new_one() {
    const TIMES: u32 = 40;
    let debs = tempfile::tempdir().unwrap();
    let old = simple(
        debs.path(),
        "old",
        "1",
        elf(&(0..50).map(page).collect::<Vec<_>>()),
    );
    let new: Vec<_> = (0..30)
        .map(|i| simple(debs.path(), &format!("new{i}"), "1", program(1000 + i)))
        .collect();
    let list = new
        .iter()
        .map(|p| p.display().to_string())
        .collect::<Vec<_>>()
        .join("\n");
    let dir = tempfile::tempdir().unwrap();
    let fresh = || {
        let catalog = tempfile::tempdir_in(dir.path()).unwrap();
        add(catalog.path(), std::slice::from_ref(&old));
        catalog
    };
    let run = |catalog: &Path, kill: Option<Duration>| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_that_is_killed", "--nocapture"])
            .env("KILL_CATALOG", catalog)
            .env("KILL_PATHS", &list)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        if let Some(kill) = kill {
            std::thread::sleep(kill);
            let _ = child.kill();
        }
        let status = child.wait().unwrap();
        assert!(kill.is_some() || status.success());
        start.elapsed()
    };
    // Long enough to see where in time the work is, on whatever machine this is.
    let whole = run(fresh().path(), None);
    let (mut were_old, mut were_new, mut swept) = (0, 0, 0);
    // On a machine that is busy with something else the work may take longer each time: then the kills go on later and
    // later, until one comes too late.
    for n in 0..10 * TIMES {
        if n >= TIMES && were_new > 0 {
            break;
        }
        let catalog = fresh();
        run(catalog.path(), Some(whole * n / (TIMES - 4)));
        let report = verify(catalog.path()).unwrap();
        assert!(report.is_sound(), "{report:?}");
        swept += u32::from(!report.left_over.is_empty());
        let opened = Catalog::open(catalog.path()).unwrap();
        assert_eq!(whose(&opened, &page(0)), ["old 1 /usr/bin/old"]);
        let found = (0..30)
            .filter(|i| !whose(&opened, &page(1000 + i)).is_empty())
            .count();
        match found {
            0 => were_old += 1,
            30 => were_new += 1,
            some => panic!("{some} of 30: neither old nor new"),
        }
        // Whoever comes next goes on as if nothing had been.
        add(catalog.path(), &new);
        let report = verify(catalog.path()).unwrap();
        assert!(report.is_sound() && report.left_over.is_empty());
    }
    println!("{were_old} old, {were_new} new, {swept} with something to sweep");
    assert!(were_old > 0 && were_new > 0);
}

/// Not a test by itself: what the test above starts and kills.
#[test]
fn the_process_that_is_killed() {
    let (Ok(dir), Ok(paths)) = (std::env::var("KILL_CATALOG"), std::env::var("KILL_PATHS")) else {
        return;
    };
    let paths: Vec<_> = paths.lines().map(Into::into).collect();
    // Little memory, so that it is killed in flushing and merging too.
    let mut adder = Adder::new(Path::new(&dir)).unwrap().memory(3000);
    adder.add(&paths).unwrap();
    adder.commit().unwrap();
}
