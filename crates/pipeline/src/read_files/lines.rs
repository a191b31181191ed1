//! In what two texts differ.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nephoscope_inventory::{LineChanged, LinesChanged};
use similar::{Algorithm, ChangeTag, TextDiff};

/// Lines that are told.
const MAX_LINES: usize = 64;
/// Bytes that are told of a line.
const MAX_LINE_BYTES: usize = 256;
/// How long two texts may be compared: a guest writes one of them. What is not found by then is told as more difference than there is.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes in lines that both have.
pub(super) fn shared(ours: &[u8], theirs: &[u8]) -> usize {
    let mut there: HashMap<&[u8], usize> = HashMap::new();
    for line in lines(theirs) {
        *there.entry(line).or_default() += 1;
    }
    lines(ours)
        .filter(|line| match there.get_mut(line) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        })
        .map(<[u8]>::len)
        .sum()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

/// What has to be done to theirs for it to be ours.
pub(super) fn changed(ours: &[u8], theirs: &[u8]) -> LinesChanged {
    let diff = TextDiff::configure()
        .algorithm(Algorithm::Patience)
        .deadline(Instant::now() + PATIENCE)
        .diff_lines(theirs, ours);
    let mut told = LinesChanged::default();
    for change in diff.iter_all_changes() {
        let (index, added) = match change.tag() {
            ChangeTag::Equal => continue,
            ChangeTag::Insert => (change.new_index(), true),
            ChangeTag::Delete => (change.old_index(), false),
        };
        *(if added { &mut told.added } else { &mut told.removed }) += 1;
        if told.first.len() < MAX_LINES {
            told.first.push(LineChanged {
                number: index.map_or(0, |index| index as u64 + 1),
                added,
                text: beginning(change.value()),
            });
        }
    }
    told
}

fn beginning(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    match line.get(..MAX_LINE_BYTES) {
        Some(first) if line.len() > MAX_LINE_BYTES => format!("{}…", String::from_utf8_lossy(first)),
        _ => String::from_utf8_lossy(line).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"<?php\nfunction a() {\n}\nfunction b() {\n}\n";

    #[test]
    fn a_line_more_is_one_that_was_added() {
        let ours = b"<?php\nfunction a() {\n}\nsystem($_GET['c']);\nfunction b() {\n}\n";
        let told = changed(ours, TEXT);
        assert_eq!((told.added, told.removed), (1, 0));
        let line = LineChanged {
            number: 4,
            added: true,
            text: "system($_GET['c']);".to_owned(),
        };
        assert_eq!(told.first, [line]);
        assert_eq!(shared(ours, TEXT), TEXT.len());
        assert_eq!(changed(TEXT, TEXT), LinesChanged::default());
    }

    #[test]
    fn lines_that_stand_more_often_are_shared_as_often_as_in_the_other() {
        assert_eq!(shared(b"a\na\na\n", b"a\na\nb\n"), 4);
        assert_eq!(shared(b"", b"a"), 0);
    }

    #[test]
    fn max_lines_and_max_line_bytes_bound_what_is_told() {
        let ours: Vec<u8> = (0..MAX_LINES + 9)
            .flat_map(|number| format!("{number}{}\n", "x".repeat(MAX_LINE_BYTES)).into_bytes())
            .collect();
        let told = changed(&ours, b"\xff\n");
        assert_eq!((told.added, told.removed), (MAX_LINES as u64 + 9, 1));
        assert_eq!(told.first.len(), MAX_LINES);
        let longest = told.first.iter().map(|line| line.text.chars().count()).max();
        assert_eq!(longest, Some(MAX_LINE_BYTES + 1));
    }

    #[test]
    fn two_long_texts_without_a_line_in_common_are_compared_in_time() {
        let text = |what: &str| -> Vec<u8> {
            (0..60_000)
                .flat_map(|number| format!("{what}{}\n", number % 997).into_bytes())
                .collect()
        };
        let began = Instant::now();
        let told = changed(&text("a"), &text("b"));
        assert_eq!((told.added, told.removed), (60_000, 60_000));
        assert!(began.elapsed() < PATIENCE * 20, "{:?}", began.elapsed());
    }
}
