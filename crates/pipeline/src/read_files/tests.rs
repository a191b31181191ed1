use std::sync::Arc;

use nephoscope_guest::{FileHeld, FileSeen, Gpa, PAGE_SIZE};

use super::*;
use crate::fixture;

/// A script of so many lines, no two alike.
fn script(lines: usize, seed: u32) -> String {
    let line = |number| format!("function f{seed}_{number}() {{ return {}; }}\n", number * 7919);
    format!("<?php\n{}", (0..lines).map(line).collect::<String>())
}

/// What is said of a file with this text, of which so many pieces were read; the catalog has these.
fn judged(known: &[&str], text: &[u8], pieces: usize) -> (FileVerdict, Vec<ObjectId>) {
    let files: Vec<(String, Vec<u8>)> = (0..)
        .zip(known)
        .map(|(number, text)| (format!("{number}.php"), text.as_bytes().to_vec()))
        .collect();
    let (catalog, objects) = fixture::catalog(&files);
    (look(&catalog, text, pieces), objects)
}

fn look(catalog: &Arc<Catalog>, text: &[u8], pieces: usize) -> FileVerdict {
    let (mut inventory, mut read) = (Inventory::default(), ReadFiles::default());
    let about = FileSeen {
        disk: 0,
        partition: 0,
        inode: 12,
        generation: 0,
        bytes: text.len() as u64,
        path: b"/x.php".to_vec(),
    };
    inventory.files.seen(1, about);
    for (number, piece) in (0..).zip(text.chunks(PAGE_SIZE)).take(pieces) {
        let bytes = fixture::page(piece);
        let digest = *blake3::hash(&bytes[..]).as_bytes();
        let gpa = Gpa(0x10_0000 + (number << 12));
        inventory.files.held(&FileHeld {
            file: 1,
            at: number << 12,
            gpa,
            len: 4096,
            written: false,
            digest,
        });
        let piece = inventory
            .files
            .accessed(number, gpa, Some(digest), Some(SpaceId(1)))
            .unwrap();
        read.read(number, piece, &digest, bytes, catalog).unwrap();
    }
    assert_eq!(read.due(0), [], "somebody reads it");
    let [file] = read.due(QUIET_NS + 100)[..] else {
        panic!()
    };
    assert_eq!(read.due(u64::MAX), [], "once");
    read.verdict(file, &inventory, catalog).unwrap().unwrap()
}

fn lines(verdict: &FileVerdict) -> (ObjectId, u64, u64) {
    let FileVerdict::Modified(modified) = verdict else {
        panic!("{verdict:?}")
    };
    let lines = modified.lines.as_ref().unwrap();
    (modified.nearest[0], lines.added, lines.removed)
}

#[test]
fn a_file_is_known_by_its_blocks_wherever_it_lies() {
    let text = script(300, 1);
    let (verdict, objects) = judged(&[&script(200, 2), &text], text.as_bytes(), 99);
    assert_eq!(verdict, FileVerdict::Known(vec![objects[1]]));
}

#[test]
fn what_was_read_of_a_file_is_known_and_the_rest_is_not_asked_for() {
    let text = script(300, 1);
    let other = [&text.as_bytes()[..PAGE_SIZE], b"evil();"].concat();
    let (verdict, objects) = judged(&[&text], &other, 1);
    assert_eq!(verdict, FileVerdict::Known(vec![objects[0]]));
    let (verdict, objects) = judged(&[&text], &other, 2);
    assert!(
        matches!(&verdict, FileVerdict::Modified(m) if m.nearest == objects && m.known == 1),
        "{verdict:?}"
    );
}

#[test]
fn a_line_more_is_found_wherever_it_is() {
    let text = script(300, 1);
    let others = script(300, 3);
    for at in [1, 150, 301] {
        let mut changed: Vec<&str> = text.split_inclusive('\n').collect();
        changed.insert(at, "eval($_POST['x']);\n");
        let (verdict, objects) = judged(&[&others, &text], changed.concat().as_bytes(), 99);
        assert_eq!(lines(&verdict), (objects[1], 1, 0), "at line {at}");
    }
}

#[test]
fn a_short_file_is_like_a_short_file() {
    let text = script(9, 1);
    let changed = text.replace("7919", "7920");
    let (verdict, objects) = judged(&[&text], changed.as_bytes(), 99);
    assert_eq!(lines(&verdict), (objects[0], 1, 1));
}

#[test]
fn another_version_is_like_the_nearest_of_those_that_are_known() {
    let version = |changes: usize| -> String {
        let changed = |(number, line): (usize, &str)| match number % 10 {
            3 if number < changes * 10 => format!("// version {changes}\n{line}"),
            _ => line.to_owned(),
        };
        script(300, 1)
            .split_inclusive('\n')
            .enumerate()
            .map(changed)
            .collect()
    };
    let (verdict, objects) = judged(&[&version(0), &version(20)], version(2).as_bytes(), 99);
    assert_eq!(lines(&verdict), (objects[0], 2, 0));
}

#[test]
fn a_licence_alone_makes_no_likeness() {
    let licence: String = (0..60)
        .map(|n| format!(" * licence line {n} of the same licence text\n"))
        .collect();
    let (ours, theirs) = (
        format!("{licence}{}", script(200, 1)),
        format!("{licence}{}", script(200, 2)),
    );
    assert_eq!(judged(&[&theirs], ours.as_bytes(), 99).0, FileVerdict::Unknown);
}

#[test]
fn what_is_like_nothing_is_unknown_and_so_are_bytes() {
    let (verdict, _) = judged(&[&script(300, 1)], script(300, 2).as_bytes(), 99);
    assert_eq!(verdict, FileVerdict::Unknown);
    let (verdict, _) = judged(&[&script(300, 1)], &fixture::noise(9000, 5), 99);
    assert_eq!(verdict, FileVerdict::Unknown);
}

#[test]
fn of_a_file_that_was_read_in_part_no_lines_are_told() {
    let text = script(900, 1);
    let changed = text.replacen("return", "exit", 1);
    let (verdict, objects) = judged(&[&text], changed.as_bytes(), 2);
    let FileVerdict::Modified(modified) = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(
        (modified.nearest[0], modified.lines.is_none()),
        (objects[0], true)
    );
}
