//! Text in columns. A character may take none, one or two of them.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that a text takes.
#[must_use]
pub(crate) fn width(text: &str) -> usize {
    // Terminals go character by character; a sequence that Unicode counts as narrower may be drawn wider.
    text.chars().map(columns).sum::<usize>().max(text.width())
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// The beginning of a text that is too wide: `beginning…`.
#[must_use]
pub(crate) fn fit_end(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut left = most.saturating_sub(1);
    let kept = text.chars().take_while(|c| {
        let fits = columns(*c) <= left;
        left = left.saturating_sub(columns(*c));
        fits
    });
    let mut out: String = kept.collect();
    out.extend((most > 0).then_some('…'));
    out
}

/// The end of a text that is too wide, for paths: `…/the/end`.
#[must_use]
pub(crate) fn fit_start(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut left = most.saturating_sub(1);
    let kept: Vec<char> = text
        .chars()
        .rev()
        .take_while(|c| {
            let fits = columns(*c) <= left;
            left = left.saturating_sub(columns(*c));
            fits
        })
        .collect();
    let mut out: String = (most > 0).then_some('…').into_iter().collect();
    out.extend(kept.into_iter().rev());
    out
}

/// As many alternatives as fit: `a | b | +3`. Several never look like one.
#[must_use]
pub(crate) fn alternatives(all: &[String], most: usize) -> String {
    let whole = all.join(" | ");
    if width(&whole) <= most {
        return whole;
    }
    if let Some(squeezed) = squeezed(all, most) {
        return squeezed;
    }
    for shown in (1..all.len()).rev() {
        let mut text = all.get(..shown).unwrap_or_default().join(" | ");
        text.push_str(&format!(" | +{}", all.len() - shown));
        if width(&text) <= most {
            return text;
        }
    }
    let Some(first) = all.first() else {
        return String::new();
    };
    let rest = match all.len() {
        1 => String::new(),
        several => format!(" | +{}", several - 1),
    };
    let room = most.saturating_sub(width(&rest));
    fit_end(&format!("{}{rest}", fit_version(first, room)), most)
}

/// Versions of one package without their ends, if they still can be told apart: `openssl 3.0.15-1… | 3.0.17-1…`.
fn squeezed(all: &[String], most: usize) -> Option<String> {
    let (name, first) = all.first()?.split_once(' ')?;
    let fixed = width(name) + 1 + 3 * all.len().saturating_sub(1);
    let room = most.checked_sub(fixed)? / all.len();
    if all.len() < 2 || room < MIN_VERSION || all.iter().skip(1).any(|other| other.contains(' ')) {
        return None;
    }
    let others = all.iter().skip(1).map(String::as_str);
    let cut: Vec<String> = std::iter::once(first)
        .chain(others)
        .map(|v| fit_end(v, room))
        .collect();
    let distinct: std::collections::BTreeSet<&String> = cut.iter().collect();
    (distinct.len() == all.len()).then(|| format!("{name} {}", cut.join(" | ")))
}

/// The least of a version that still says something.
const MIN_VERSION: usize = 7;

/// `name version` without the end of its name: the version is what people look for.
fn fit_version(text: &str, most: usize) -> String {
    if let Some((name, version)) = text.split_once(' ')
        && let Some(room) = most.checked_sub(width(version) + 1)
        && room >= MIN_NAME
    {
        return format!("{} {version}", fit_end(name, room));
    }
    fit_end(text, most)
}

/// The least of a name that still says something.
const MIN_NAME: usize = 4;

/// Bytes of a wrapped line for each of its columns: sequences that are drawn as one have two dozen at most. It stops text
/// of nothing but combining marks, which takes no column however long it is.
const MAX_BYTES_PER_COLUMN: usize = 16;

/// Lines of at most so many columns, broken at spaces where possible.
#[must_use]
pub(crate) fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(2);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        let short = line.len() + word.len() < most.saturating_mul(MAX_BYTES_PER_COLUMN);
        if short && width(&line) + gap + width(word) <= most {
            line.extend((gap > 0).then_some(' '));
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        // A word wider than a line is broken where the line ends.
        for c in word.chars() {
            if width(&line) + columns(c) > most || line.len() >= most.saturating_mul(MAX_BYTES_PER_COLUMN) {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_keep_their_end_and_sentences_their_beginning() {
        assert_eq!(
            fit_start("/usr/lib/x86_64-linux-gnu/libssl.so.3", 14),
            "…u/libssl.so.3"
        );
        assert_eq!(fit_end("a sentence", 5), "a se…");
        assert_eq!([fit_end("日本", 3), fit_start("日本", 2)], ["日…", "…"]);
    }

    #[test]
    fn several_alternatives_never_look_like_one() {
        let all = ["openssl 3.0.15", "3.0.17", "3.1"].map(str::to_owned);
        let shown = [40, 25, 20, 12].map(|most| alternatives(&all, most));
        let expected = [
            "openssl 3.0.15 | 3.0.17 | 3.1",
            "openssl 3.0.15 | +2",
            "openssl 3.0.15 | +2",
            "openss… | +2",
        ];
        assert_eq!(shown, expected);
        let debian = ["openssl 3.0.15-1~deb12u1", "3.0.17-1~deb12u2"].map(str::to_owned);
        assert_eq!(alternatives(&debian, 35), "openssl 3.0.15-1~de… | 3.0.17-1~de…");
        let alike = ["glibc 2.36-9+deb12u10", "2.36-9+deb12u11"].map(str::to_owned);
        assert_eq!(alternatives(&alike, 30), "glibc 2.36-9+deb12u10 | +1");
        let kernel = ["linux-image-6.1.0-32-amd64 6.1.129-1".to_owned()];
        assert_eq!(alternatives(&kernel, 24), "linux-image-6… 6.1.129-1");
    }

    #[test]
    fn max_bytes_per_column_stops_text_that_takes_no_column() {
        let marks = "\u{301}".repeat(100_000);
        let begun = std::time::Instant::now();
        let lines = wrap(&marks, 80);
        assert_eq!(lines.concat(), marks);
        assert!(
            lines
                .iter()
                .all(|line| line.len() <= 80 * MAX_BYTES_PER_COLUMN + 4)
        );
        // Looking at all of the line at each character took minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }

    #[test]
    fn text_is_broken_at_spaces_and_words_where_the_line_ends() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_it_may_be(text in any::<String>(), most in 2_usize..60) {
            prop_assert!(width(&fit_end(&text, most)) <= most);
            prop_assert!(width(&fit_start(&text, most)) <= most);
            prop_assert!(width(&alternatives(&[text.clone(), text.clone()], most)) <= most);
            for line in wrap(&text, most) {
                prop_assert!(width(&line) <= most, "{line:?}");
            }
        }
    }
}
