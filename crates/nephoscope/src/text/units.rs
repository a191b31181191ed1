//! Times and numbers as people read them.

/// A duration in its two largest units: `3s`, `12m03s`, `2h04m`, `5d03h`.
#[must_use]
pub(crate) fn age(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A moment since the watch began, to the millisecond: `63.120 s`.
#[must_use]
pub(crate) fn seconds(ns: u64) -> String {
    format!("{}.{:03} s", ns / 1_000_000_000, ns / 1_000_000 % 1000)
}

/// A number with its thousands apart: `2,780`.
#[must_use]
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number with its noun: `1 page`, `2,780 pages`.
#[must_use]
pub(crate) fn plural(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {noun}{s}", count(number))
}

/// Hexadecimal as bytes; `None` if it is none. Bytes come from a peer.
#[must_use]
pub(crate) fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = hex.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_their_two_largest_units() {
        let of = |seconds: u64| age(seconds * 1_000_000_000);
        assert_eq!([of(0), of(59), of(60), of(723)], ["0s", "59s", "1m00s", "12m03s"]);
        assert_eq!([of(7440), of(86_399), of(442_800)], ["2h04m", "23h59m", "5d03h"]);
        assert_eq!(age(u64::MAX), "213503d23h");
    }

    #[test]
    fn moments_and_numbers() {
        assert_eq!(seconds(63_120_999_999), "63.120 s");
        let counts = [0, 999, 1000, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([plural(1, "page"), plural(0, "page")], ["1 page", "0 pages"]);
    }

    proptest! {
        #[test]
        fn hexadecimal_is_read_back_and_anything_else_is_refused(data: Vec<u8>, text: String) {
            let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(bytes(&hex), Some(data));
            if text.chars().any(|c| !c.is_ascii_hexdigit()) {
                prop_assert_eq!(bytes(&text), None);
            }
        }
    }
}
