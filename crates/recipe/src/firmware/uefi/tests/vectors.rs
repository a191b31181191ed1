//! The table of interrupt entries.

use super::super::vectors::tables;
use super::*;
use crate::compare::Solver;
use crate::floating::Supposed;
use made::fields;

/// Where the table, the common entry and the code that writes are, from `.text` on.
const TABLE: usize = 0x100;
const ENTRY: usize = 0x580;
const WRITER: usize = 0x600;
const ENTRIES: usize = 40;

/// The code with a table of entries, 18 bytes each.
fn text() -> Vec<u8> {
    let mut text = code(0x900, 9);
    for number in 0..ENTRIES {
        let at = TABLE + number * 18;
        text[at..at + 18].copy_from_slice(b"\x68\0\0\0\0\x50\x48\xb8\0\0\0\0\0\0\0\0\xff\xe0");
        text[at + 1] = number as u8;
    }
    text[WRITER..WRITER + 14].copy_from_slice(b"\x48\x8d\x05\0\0\0\0\x48\x8d\x0d\0\0\0\0");
    let distance = |from: usize, to: usize| (to as i64 - from as i64) as u64;
    // Fields are at 8 from where `%rcx` points: the middle of the first entry less 8 is the table's start.
    fields(
        &mut text,
        &[
            (WRITER + 3, distance(WRITER + 7, ENTRY), 4),
            (WRITER + 10, distance(WRITER + 14, TABLE), 4),
        ],
    );
    for number in 0..ENTRIES {
        let at = WRITER + 14 + number * 8;
        text[at..at + 8].copy_from_slice(b"\x48\x89\x41\x08\x48\x83\xc1\x12");
    }
    text
}

#[test]
fn the_code_that_completes_a_table_says_where_and_with_what() {
    let found = tables(&text());
    assert_eq!((found.len(), found[0].entry), (1, ENTRY as u64));
    let expected: Vec<u32> = (0..ENTRIES)
        .map(|number| (TABLE + number * 18 + 8) as u32)
        .collect();
    assert_eq!(found[0].fields, expected);
}

#[test]
fn a_table_that_is_not_as_its_code_says_is_none() {
    for at in [TABLE + 6, TABLE + 8, TABLE + 39 * 18 + 15, WRITER + 2, WRITER + 9] {
        let mut text = text();
        text[at] ^= 1;
        assert!(tables(&text).is_empty(), "{at:#x}");
    }
    let mut short = text();
    short[WRITER + 14 + 31 * 8] = 0;
    assert!(tables(&short).is_empty(), "31 entries");
    for len in 0..WRITER + 14 + 31 * 8 {
        assert!(tables(&text()[..len]).is_empty(), "{len:#x}");
    }
}

/// `.text` of a larger image, in a flash file.
fn image() -> Part {
    let mut pe = pe(1);
    let text = text();
    pe.resize(0x600 + text.len(), 0);
    pe[0x600..].copy_from_slice(&text);
    let table = 0x58 + 112 + 16 * 8;
    let len = text.len() as u64;
    fields(
        &mut pe,
        &[(table + 8, len, 4), (table + 16, len, 4), (table + 20, 0x600, 4)],
    );
    found(&volume(&[file(DRIVER, &section(0x10, &pe))])).remove(0)
}

#[test]
fn a_completed_entry_is_explained_where_the_image_lies_and_no_other_is() {
    let part = image();
    let base = 0x3f05_1000_u64;
    let mut page: [u8; 4096] = [0; 4096];
    page[..0x900].copy_from_slice(&part.bytes[0x1000..0x1900]);
    let solver = Solver::default();
    let explains = |page: &[u8; 4096]| {
        let supposed = Supposed {
            part: &part,
            at: 0x1000,
            va: base + 0x1000,
            solver: &solver,
        };
        supposed
            .explains(page, &[(TABLE as u16, (TABLE + 18) as u16)])
            .is_some()
    };
    assert!(explains(&page), "before it is completed");
    let entry = base + 0x1000 + ENTRY as u64;
    fields(&mut page, &[(TABLE + 8, entry, 8)]);
    assert!(explains(&page));
    fields(&mut page, &[(TABLE + 8, entry + 1, 8)]);
    assert!(!explains(&page), "another entry");
}
