//! Sites that are seen half-written.
//!
//! At boot, before anything else runs, the kernel rewrites its sites with `text_poke_early`, which copies with `memcpy`.
//! Nobody executes a site while it is written, with one exception: the copying code executes between its own stores, and
//! so shows the page that it lies in with one site half-written. `memcpy_orig` (`arch/x86/lib/memcpy_64.S`; the other
//! variants are themselves an alternative, and in place only later) copies 4 to 7 bytes as their first and their last
//! four, and 8 to 15 as their first and their last eight. So the sites in that page may also hold the beginning of a
//! content followed by the end of the one before; no others may.

use std::ops::Range;

use super::tables::Link;
use crate::site::Value;

const PAGE: u64 = 4096;
/// More than `memcpy_orig` is long.
const COPIER_BYTES: u64 = 0x200;
/// Half-written contents of one site: more pairs than any has.
const MAX_TORN: usize = 64;

/// The pages that the copying code lies in.
pub(super) fn writer(link: &dyn Link) -> Range<u64> {
    let Some(start) = link.address("memcpy_orig") else {
        return 0..0;
    };
    let end = start.saturating_add(COPIER_BYTES).saturating_add(PAGE - 1) & !(PAGE - 1);
    (start & !(PAGE - 1))..end
}

/// What a site with these contents holds between two stores; `own` is what it was linked with.
pub(super) fn between(values: &[Value], own: &[u8]) -> Vec<Value> {
    let cut = match own.len() {
        4..8 => 4,
        8..16 => 8,
        _ => return Vec::new(),
    };
    let contents: Vec<&[u8]> = values
        .iter()
        .filter(|value| value.fixes.is_empty())
        .map(|value| if value.bytes.is_empty() { own } else { &value.bytes })
        .collect();
    let mut torn: Vec<Value> = Vec::new();
    // What a site was linked with is never written to it.
    for new in contents.iter().filter(|new| **new != own) {
        for old in &contents {
            let (Some(first), Some(last)) = (new.get(..cut), old.get(cut..)) else {
                continue;
            };
            let content = [first, last].concat();
            let known =
                contents.contains(&content.as_slice()) || torn.iter().any(|value| value.bytes == content);
            if !known && torn.len() < MAX_TORN {
                torn.push(Value::fixed(content));
            }
        }
    }
    torn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_is_seen_with_the_end_of_the_jump_that_it_replaces() {
        let jump = [0xe9, 0x88, 0x8d, 0x3b, 0x00];
        let values = [Value::own(), Value::fixed([0xc3, 0xcc, 0xcc, 0xcc, 0xcc])];
        let torn: Vec<_> = between(&values, &jump)
            .into_iter()
            .map(|value| value.bytes)
            .collect();
        assert_eq!(torn, [[0xc3, 0xcc, 0xcc, 0xcc, 0x00]]);
    }

    #[test]
    fn max_torn_bounds_the_pairs_of_a_site_with_many_contents() {
        let values: Vec<Value> = (1..=20).map(|byte| Value::fixed(vec![byte; 5])).collect();
        assert_eq!(between(&values, &[0; 5]).len(), MAX_TORN);
    }

    #[test]
    fn one_store_leaves_nothing_between() {
        for len in [1, 2, 3] {
            assert_eq!(
                between(&[Value::own(), Value::fixed(vec![1; len])], &vec![0; len]),
                []
            );
        }
    }
}
