//! What is put in comes out again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use nephoscope_catalog::{Adder, Catalog, limits};
use support::*;

fn dirs() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

#[test]
fn a_page_leads_to_its_file_package_and_version() {
    let (debs, dir) = dirs();
    let bytes = elf(&[page(1), page(2), vec![7; 100]]);
    add(
        dir.path(),
        &[simple(debs.path(), "hello", "1.2-3", bytes.clone())],
    );
    let catalog = Catalog::open(dir.path()).unwrap();
    let found = catalog.pages(&digest(&page(2))).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].number, found[0].va, found[0].execute),
        (2, 0x40_2000, true)
    );
    let info = catalog.object(found[0].object).unwrap();
    assert_eq!(info.digest, digest(&bytes));
    assert_eq!(info.file_len, bytes.len() as u64);
    assert_eq!(info.facts.entry, 0x40_1000);
    let placement = &catalog.placements(found[0].object).unwrap()[0];
    let package = placement.package.as_ref().unwrap();
    assert_eq!(
        (package.name.as_str(), package.version.as_str()),
        ("hello", "1.2-3")
    );
    assert_eq!(
        (package.source.as_str(), package.source_version.as_str()),
        ("hello-src", "0.1.2-3")
    );
    assert_eq!(
        (package.architecture.as_str(), placement.path.as_str()),
        ("amd64", "/usr/bin/hello")
    );
    assert!(placement.origin.ends_with(".deb"));
    assert_eq!(catalog.by_digest(&digest(&bytes)).unwrap(), Some(found[0].object));
    assert_eq!(catalog.pages(&digest(&page(3))).unwrap(), []);
}

#[test]
fn the_last_partial_page_is_found_filled_with_zeros() {
    let (debs, dir) = dirs();
    add(
        dir.path(),
        &[simple(debs.path(), "hello", "1", elf(&[page(1), vec![7; 100]]))],
    );
    let catalog = Catalog::open(dir.path()).unwrap();
    let mut last = vec![7; 100];
    last.resize(4096, 0);
    let found = catalog.pages(&digest(&last)).unwrap();
    assert_eq!(found[0].number, 2);
    assert_eq!(
        &catalog.page_bytes(found[0].object, 2).unwrap().unwrap()[..],
        last
    );
}

#[test]
fn bytes_of_a_page_and_of_a_part_are_those_of_the_file() {
    let (debs, dir) = dirs();
    // More than one chunk of 128 KiB.
    let pages: Vec<_> = (0..100).map(page).collect();
    add(dir.path(), &[simple(debs.path(), "hello", "1", elf(&pages))]);
    let catalog = Catalog::open(dir.path()).unwrap();
    let object = catalog.pages(&digest(&page(0))).unwrap()[0].object;
    for (number, page) in (1..).zip(&pages) {
        assert_eq!(
            &catalog.page_bytes(object, number).unwrap().unwrap()[..],
            page.as_slice()
        );
    }
    assert_eq!(catalog.page_bytes(object, 101).unwrap(), None);
    let part = catalog.part(object, 0).unwrap();
    assert_eq!(part.bytes, pages.concat());
    assert_eq!(part.link, 0x40_1000);
    assert_eq!(catalog.object(object).unwrap().parts[0].len, 100 * 4096);
    assert!(
        std::sync::Arc::ptr_eq(&part, &catalog.part(object, 0).unwrap()),
        "decoded once"
    );
    assert!(catalog.part(object, 1).is_err());
}

#[test]
fn every_compression_of_packages_is_read() {
    for pack in [Pack::Plain, Pack::Gz, Pack::Xz, Pack::Zst] {
        let (debs, dir) = dirs();
        let file = deb(
            debs.path(),
            &control("a", "1"),
            &[Member::File("./bin/a", program(1))],
            pack,
        );
        let summary = add(dir.path(), &[file]);
        assert_eq!(
            (summary.packages, summary.recognised, summary.refused_total),
            (1, 1, 0)
        );
        assert_eq!(
            whose(&Catalog::open(dir.path()).unwrap(), &page(1)),
            ["a 1 /bin/a"]
        );
    }
}

#[test]
fn a_page_that_two_versions_share_is_reported_as_both() {
    let (debs, dir) = dirs();
    let old = simple(debs.path(), "lib", "1", elf(&[page(1), page(2)]));
    let new = simple(debs.path(), "lib", "2", elf(&[page(1), page(3)]));
    add(dir.path(), &[old, new]);
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(
        whose(&catalog, &page(1)),
        ["lib 1 /usr/bin/lib", "lib 2 /usr/bin/lib"]
    );
    assert_eq!(whose(&catalog, &page(3)), ["lib 2 /usr/bin/lib"]);
}

#[test]
fn one_content_in_two_packages_is_one_object_with_two_placements() {
    let (debs, dir) = dirs();
    let a = simple(debs.path(), "a", "1", program(1));
    let b = simple(debs.path(), "b", "1", program(1));
    assert_eq!(add(dir.path(), &[a]).objects_added, 1);
    // The second comes later: its placement is in another segment than the object.
    let summary = add(dir.path(), &[b, simple(debs.path(), "c", "1", program(2))]);
    assert_eq!((summary.objects_added, summary.placements_added), (1, 2));
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.pages(&digest(&page(1))).unwrap().len(), 1);
    assert_eq!(whose(&catalog, &page(1)), ["a 1 /usr/bin/a", "b 1 /usr/bin/b"]);
}

#[test]
fn links_devices_and_files_without_code_are_counted() {
    let (debs, dir) = dirs();
    let members = [
        Member::File("./usr/bin/perl", program(1)),
        Member::Hardlink("./usr/bin/perl5.36", "./usr/bin/perl"),
        Member::Symlink("./usr/bin/p", "perl"),
        Member::Device("./dev/null"),
        Member::File("./usr/share/doc/x", b"text".to_vec()),
        Member::File("./../../etc/shadow", program(2)),
    ];
    let summary = add(
        dir.path(),
        &[deb(debs.path(), &control("perl", "1"), &members, Pack::Xz)],
    );
    assert_eq!(
        (
            summary.hard_links,
            summary.symbolic_links,
            summary.devices,
            summary.no_code
        ),
        (1, 1, 1, 1)
    );
    assert_eq!(summary.refused[0].reason, "path with ..");
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(
        whose(&catalog, &page(1)),
        ["perl 1 /usr/bin/perl", "perl 1 /usr/bin/perl5.36"]
    );
    assert_eq!(whose(&catalog, &page(2)), [""; 0]);
}

#[test]
fn adding_the_same_thing_twice_changes_nothing() {
    let (debs, dir) = dirs();
    for i in 0..20 {
        simple(debs.path(), &format!("p{i}"), "1", program(i));
    }
    assert!(add(dir.path(), &[debs.path().to_owned()]).changed);
    let before = contents(dir.path());
    let summary = add(dir.path(), &[debs.path().to_owned()]);
    assert!(!summary.changed);
    assert_eq!(
        (summary.packages, summary.objects_added, summary.placements_added),
        (20, 0, 0)
    );
    assert!(contents(dir.path()) == before);
}

#[test]
fn the_order_and_the_number_of_threads_do_not_show() {
    let debs = tempfile::tempdir().unwrap();
    let mut paths: Vec<_> = (0..40)
        .map(|i| simple(debs.path(), &format!("p{i}"), "1", elf(&[page(i % 30), page(99)])))
        .collect();
    let mut made = Vec::new();
    for threads in [1, 2, 7] {
        let dir = tempfile::tempdir().unwrap();
        paths.reverse();
        let mut adder = Adder::new(dir.path()).unwrap().threads(threads);
        adder.add(&paths).unwrap();
        adder.commit().unwrap();
        made.push(contents(dir.path()));
    }
    assert!(made[0] == made[1] && made[1] == made[2]);
}

#[test]
fn a_catalog_made_in_many_steps_answers_like_one_made_in_one() {
    let (debs, dir) = dirs();
    let paths: Vec<_> = (0..60)
        .map(|i| {
            simple(
                debs.path(),
                &format!("p{i}"),
                "1",
                elf(&[page(i), page(i / 7 + 1000), vec![0; 4096]]),
            )
        })
        .collect();
    let mut ids = Vec::new();
    for (i, path) in (0u32..).zip(&paths) {
        add(dir.path(), std::slice::from_ref(path));
        let catalog = Catalog::open(dir.path()).unwrap();
        ids.push(catalog.pages(&digest(&page(i))).unwrap()[0].object);
    }
    let many = Catalog::open(dir.path()).unwrap();
    assert!(many.info().unwrap().segments <= 7, "segments are merged");
    let one = tempfile::tempdir().unwrap();
    // With next to no memory: many segments in one run.
    let mut adder = Adder::new(one.path()).unwrap().memory(2000);
    adder.add(&paths).unwrap();
    adder.commit().unwrap();
    let one = Catalog::open(one.path()).unwrap();
    assert_eq!(one.info().unwrap().segments, 1);
    for i in 0..60 {
        for seed in [i, i / 7 + 1000] {
            assert_eq!(whose(&many, &page(seed)), whose(&one, &page(seed)));
        }
        let found = many.pages(&digest(&page(i))).unwrap()[0];
        assert_eq!(found.object, ids[i as usize], "ids stay");
        assert_eq!(&many.page_bytes(found.object, 1).unwrap().unwrap()[..], page(i));
    }
    assert_eq!(many.info().unwrap().pages, one.info().unwrap().pages);
    assert!(many.verify().is_sound() && one.verify().is_sound());
}

#[test]
fn max_refs_per_page_bounds_a_page_that_stands_everywhere_and_the_rest_is_counted() {
    let (debs, dir) = dirs();
    let n = u32::try_from(limits::MAX_REFS_PER_PAGE).unwrap() + 44;
    let members: Vec<_> = (0..n)
        .map(|i| (format!("./usr/bin/{i}"), elf(&[page(i), vec![0; 4096]])))
        .collect();
    let members: Vec<_> = members
        .iter()
        .map(|(path, bytes)| Member::File(path, bytes.clone()))
        .collect();
    add(
        dir.path(),
        &[deb(debs.path(), &control("many", "1"), &members, Pack::Zst)],
    );
    let catalog = Catalog::open(dir.path()).unwrap();
    let found = catalog.pages_counted(&digest(&[0; 4096])).unwrap();
    assert_eq!(
        (found.refs.len(), found.left_out),
        (limits::MAX_REFS_PER_PAGE, 44)
    );
    assert_eq!(catalog.info().unwrap().pages_left_out, 44);
    for i in 0..n {
        assert_eq!(catalog.pages(&digest(&page(i))).unwrap().len(), 1);
    }
}

#[test]
fn max_placements_per_object_bounds_a_file_under_many_names_which_is_still_added_once() {
    let (debs, dir) = dirs();
    let names: Vec<_> = (0..limits::MAX_PLACEMENTS_PER_OBJECT + 9)
        .map(|i| format!("./x/{i}"))
        .collect();
    let mut members = vec![Member::File("./x/first", program(1))];
    members.extend(names.iter().map(|name| Member::Hardlink(name, "./x/first")));
    let file = deb(debs.path(), &control("links", "1"), &members, Pack::Gz);
    let summary = add(dir.path(), std::slice::from_ref(&file));
    assert_eq!(summary.placements_left_out, 10);
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.info().unwrap().placements_left_out, 10);
    let object = catalog.pages(&digest(&page(1))).unwrap()[0].object;
    assert_eq!(
        catalog.placements(object).unwrap().len(),
        limits::MAX_PLACEMENTS_PER_OBJECT
    );
    assert!(!add(dir.path(), &[file]).changed);
}

#[test]
fn max_refs_per_window_bounds_a_window_that_is_everywhere_and_the_rest_is_counted() {
    let (debs, dir) = dirs();
    let n = u32::try_from(limits::MAX_REFS_PER_WINDOW).unwrap() + 7;
    let members: Vec<_> = (0..n)
        .map(|i| (format!("./usr/bin/{i}"), elf(&[page(1000), page(i)])))
        .collect();
    let members: Vec<_> = members
        .iter()
        .map(|(path, bytes)| Member::File(path, bytes.clone()))
        .collect();
    add(
        dir.path(),
        &[deb(debs.path(), &control("many", "1"), &members, Pack::Zst)],
    );
    let catalog = Catalog::open(dir.path()).unwrap();
    let density = nephoscope_recipe::windows::density(nephoscope_recipe::PartKind::UserText);
    let shared = page(1000);
    let mut windows = nephoscope_recipe::windows::sample(&shared, density, &[]);
    let (hash, _) = windows.next().unwrap();
    let found = catalog.windows_counted(hash).unwrap();
    assert_eq!(
        (found.refs.len(), found.left_out),
        (limits::MAX_REFS_PER_WINDOW, 7)
    );
}

#[test]
fn content_windows_lead_to_their_part() {
    let (debs, dir) = dirs();
    add(
        dir.path(),
        &[simple(
            debs.path(),
            "a",
            "1",
            elf(&(0..16).map(page).collect::<Vec<_>>()),
        )],
    );
    let catalog = Catalog::open(dir.path()).unwrap();
    assert!(catalog.info().unwrap().windows > 0);
    assert_eq!(catalog.windows(0x1234_5678).unwrap(), []);
}
