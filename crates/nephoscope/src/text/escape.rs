//! The one place where text from outside becomes text for a terminal.
//!
//! Paths, package names and summaries are chosen by guests, packages and peers. A control character could move the cursor,
//! set the title or answer a prompt; a bidirectional override could show `gpj.exe` for `exe.jpg`; an invisible character
//! could make two names look like one. All of them are written as `\u{1b}`. A backslash stays as it is: paths of Windows
//! have them, and what looks like an escape and is none harms nobody.

use std::borrow::Cow;

/// Text without anything that a terminal would obey or hide.
#[must_use]
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The same for text of several lines of our own making, such as pretty JSON.
pub(crate) fn escape_lines(text: &str) -> impl Iterator<Item = Cow<'_, str>> {
    text.split('\n').map(escape)
}

/// JSON that means the same and holds nothing that a terminal would obey or hide: outside its strings there is nothing
/// of the kind, and inside, `\u001b` is the character.
#[must_use]
pub(crate) fn escape_json(json: &str) -> Cow<'_, str> {
    if !json.chars().any(is_unsafe) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// What is not shown as it is.
fn is_unsafe(c: char) -> bool {
    c.is_control() || is_bidi(c) || is_invisible(c)
}

/// Characters that change the direction of what follows (UAX #9, table 4, and the marks).
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Characters without a shape: separators of lines, joiners, fillers, annotations, tags, variation selectors.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{2060}'..='\u{2065}'
            | '\u{206a}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in [
            "/usr/sbin/nginx",
            "C:\\Windows\\notepad.exe",
            "/opt/größe/日本/é",
            "",
        ] {
            assert_eq!(escape(text), text);
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        assert_eq!(escape("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(escape("a\r\n\tb"), "a\\u{d}\\u{a}\\u{9}b");
        assert_eq!(escape("\u{9b}31m\u{7f}"), "\\u{9b}31m\\u{7f}");
    }

    #[test]
    fn what_changes_direction_or_cannot_be_seen_is_written_out() {
        assert_eq!(escape("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(escape("ngi\u{200b}nx"), "ngi\\u{200b}nx");
        assert_eq!(
            escape("\u{2066}\u{feff}\u{e0041}"),
            "\\u{2066}\\u{feff}\\u{e0041}"
        );
    }

    proptest! {
        #[test]
        fn escaped_json_means_the_same(text in any::<String>(), hidden in "[\u{202e}\u{9b}\u{e0041}\u{7f}]{0,4}") {
            let value = serde_json::json!([text, {hidden: "x"}]);
            let json = value.to_string();
            let escaped = escape_json(&json);
            prop_assert!(!escaped.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }

        #[test]
        fn nothing_unsafe_is_left(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(!escaped.chars().any(is_unsafe));
            prop_assert_eq!(escape(&escaped).into_owned(), escaped.into_owned());
        }
    }
}
