//! What interpreters read. Its recipe is its blocks, as the page cache holds them, and the text of it: what is like it is
//! found by that.

use nephoscope_guest::{INTERPRETED_ENDS, PAGE_SIZE, is_script};

use crate::object::{Facts, FilePage, Object, ObjectKind, Part, PartKind, Placement};
use crate::site::Values;

/// Texts that are kept to be compared with: nobody writes longer ones by hand.
const MAX_SCRIPT_BYTES: usize = 1 << 20;

/// Whether a file with this path and beginning is read by an interpreter.
#[must_use]
pub fn is_interpreted(path: &str, beginning: &[u8]) -> bool {
    is_script(beginning) || INTERPRETED_ENDS.iter().any(|end| path.ends_with(end))
}

/// Its blocks; `None` if it is something else, or empty.
pub(crate) fn recognise(file: &[u8], path: &str) -> Option<Object> {
    if file.is_empty() || !is_interpreted(path, file) {
        return None;
    }
    let pages = file.chunks(PAGE_SIZE).zip(0_u32..).map(|(block, number)| {
        let mut whole = [0; PAGE_SIZE];
        for (to, from) in whole.iter_mut().zip(block) {
            *to = *from;
        }
        FilePage {
            digest: *blake3::hash(&whole).as_bytes(),
            number,
            va: 0,
            execute: false,
        }
    });
    Some(Object {
        kind: ObjectKind::Interpreted,
        facts: Facts::default(),
        loads: Vec::new(),
        pages: pages.collect(),
        parts: text(file).into_iter().collect(),
    })
}

fn text(file: &[u8]) -> Option<Part> {
    let is_one = file.len() <= MAX_SCRIPT_BYTES && !file.contains(&0);
    is_one.then(|| Part {
        kind: PartKind::Script,
        name: "text".to_owned(),
        link: 0,
        placement: Placement::Aligned(PAGE_SIZE as u64),
        bytes: file.to_vec(),
        sites: Vec::new(),
        values: Values::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_its_blocks_with_zeros_behind_its_end() {
        let text = [b"<?php echo 1;\n".repeat(400), b"?>".to_vec()].concat();
        let object = recognise(&text, "/usr/share/php/a.php").unwrap();
        assert_eq!((object.kind, object.pages.len()), (ObjectKind::Interpreted, 2));
        let mut last = text[PAGE_SIZE..].to_vec();
        last.resize(PAGE_SIZE, 0);
        assert_eq!(object.pages[1].digest, *blake3::hash(&last).as_bytes());
        assert!(object.pages.iter().all(|page| !page.execute && page.va == 0));
        assert_eq!((object.parts.len(), &object.parts[0].bytes), (1, &text));
    }

    #[test]
    fn max_script_bytes_bounds_the_text_that_is_kept_and_what_is_not_text_is_not() {
        let of = |bytes: &[u8]| recognise(bytes, "/a.js").unwrap().parts.len();
        let long = vec![b'a'; MAX_SCRIPT_BYTES + 1];
        assert_eq!((of(&long[1..]), of(&long)), (1, 0));
        assert_eq!(of(b"PK\x03\x04\0"), 0);
    }

    #[test]
    fn a_text_is_none_unless_it_says_who_reads_it() {
        assert!(recognise(b"text", "/usr/share/doc/a").is_none());
        assert!(recognise(b"#!/bin/sh\n", "/usr/bin/a").is_some());
        assert!(recognise(b"", "/usr/lib/python3/dist-packages/a/__init__.py").is_none());
    }
}
