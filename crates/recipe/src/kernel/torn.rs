//! Sites that are seen half-written.
//!
//! At boot, before anything else runs, the kernel rewrites its sites with `text_poke_early`, which copies with `memcpy`.
//! Nobody executes a site while it is written, with one exception: the copying code executes between its own stores, and
//! so shows the page that it lies in with one site half-written. `memcpy_orig` (`arch/x86/lib/memcpy_64.S`; the other
//! variants are themselves an alternative, and in place only later) copies 4 to 7 bytes as their first and their last
//! four, and 8 to 15 as their first and their last eight. So the sites in that page may also hold the beginning of a
//! content followed by the end of the one before; no others may. Of two or three bytes it writes the first one last (seen under KVM
//! with a processor whose features have a jump in that page changed).
//!
//! What is left over of a site is then filled with no-ops in place, up to 6.9 by `add_nops` (`arch/x86/kernel/alternative.c`),
//! whose copy of a no-op the compiler builds in, with stores of the same widths; of three bytes, the first and the last two (seen
//! under KVM, page by page) or the other way round. So in the pages of `optimize_nops` a no-op at a site's end may be there in its
//! beginning only.

use std::collections::BTreeSet;
use std::ops::Range;

use super::tables::Link;
use crate::site::{Fix, Form, Target, Value};

const PAGE: u64 = 4096;
/// More than `memcpy_orig` is long, and than `optimize_nops`.
const WRITER_BYTES: u64 = 0x200;
/// The no-op of one byte.
const NOP: u8 = 0x90;
/// Half-written contents of one site: more pairs than any has.
pub(super) const MAX_TORN: usize = 512;
/// The last byte of a 32-bit distance between two places of a kernel, which is less than 32 MiB long.
const TOP_BYTES: [u8; 4] = [0x00, 0x01, 0xfe, 0xff];

/// Where the code lies that rewrites, and shows its own pages half-written: whole pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writers {
    copying: Range<u64>,
    filling: Range<u64>,
}

impl Writers {
    pub(super) fn find(link: &dyn Link) -> Self {
        let pages = |name: &str| {
            let Some(start) = link.address(name) else {
                return 0..0;
            };
            let end = start.saturating_add(WRITER_BYTES).saturating_add(PAGE - 1) & !(PAGE - 1);
            (start & !(PAGE - 1))..end
        };
        Self {
            copying: pages("memcpy_orig"),
            filling: pages("optimize_nops"),
        }
    }

    /// What a site at `[va, end)` with these contents may hold besides.
    pub(super) fn torn(&self, va: u64, end: u64, values: &[Value], own: &[u8]) -> Vec<Value> {
        let within = |pages: &Range<u64>| va < pages.end && pages.start < end;
        let mut torn = Vec::new();
        if within(&self.copying) {
            torn.extend(between(va, values, own));
            torn.extend(first_byte_last(values, own));
        }
        if within(&self.filling) {
            torn.extend(filled(values, own));
        }
        torn
    }
}

/// A no-op at the end of a site, of which only the first store was made.
fn filled(values: &[Value], own: &[u8]) -> Vec<Value> {
    let bytes = |value: &Value| match value.bytes.as_slice() {
        [] => own.to_vec(),
        bytes => bytes.to_vec(),
    };
    let contents: Vec<Vec<u8>> = values
        .iter()
        .filter(|value| value.fixes.is_empty())
        .map(bytes)
        .collect();
    let mut torn: Vec<Value> = Vec::new();
    for old in &contents {
        // As long as nothing but single no-ops follows, there is something to fill.
        let from = old
            .iter()
            .rposition(|byte| *byte != NOP)
            .map_or(0, |last| last + 1);
        for new in contents.iter().filter(|new| new.get(..from) == old.get(..from)) {
            let first: &[usize] = match old.len().saturating_sub(from) {
                3 => &[1, 2],
                4..8 => &[4],
                _ => continue,
            };
            for cut in first.iter().map(|first| from + first) {
                let (Some(begun), Some(left)) = (new.get(..cut), old.get(cut..)) else {
                    continue;
                };
                let value = Value::fixed([begun, left].concat());
                let known = contents.contains(&value.bytes) || torn.contains(&value);
                if !known && torn.len() < MAX_TORN {
                    torn.push(value);
                }
            }
        }
    }
    torn
}

/// How much of a content of so many bytes `memcpy_orig` has written after each of its stores but the last. What a store writes again
/// is the same by then. No site in its page is of 32 bytes or more.
fn cuts(len: usize) -> Vec<usize> {
    match len {
        4..8 => vec![4],
        8..=16 => vec![8],
        17..=24 => vec![8, 16],
        25..32 => vec![8, 16, len - 8],
        _ => Vec::new(),
    }
}

/// What a site at `va` with these contents holds between two stores; `own` is what it was linked with.
pub(super) fn between(va: u64, values: &[Value], own: &[u8]) -> Vec<Value> {
    let contents: Vec<Value> = values.iter().map(|value| whole(va, value, own)).collect();
    // What a site was linked with is never written to it.
    let linked =
        |(value, _): &(&Value, &Value)| value.fixes.is_empty() && [own, &[]].contains(&&*value.bytes);
    let written = || {
        values
            .iter()
            .zip(&contents)
            .filter(|pair| !linked(pair))
            .map(|(_, whole)| whole)
    };
    let mut torn: Vec<Value> = Vec::new();
    for cut in cuts(own.len()) {
        let ends: BTreeSet<Vec<u8>> = contents.iter().flat_map(|old| ends(old, cut)).collect();
        for start in written().filter_map(|new| start(new, cut)) {
            for end in &ends {
                let mut value = start.clone();
                value.bytes.extend(end);
                let known = contents.contains(&value) || torn.contains(&value);
                if !known && torn.len() < MAX_TORN {
                    torn.push(value);
                }
            }
        }
    }
    torn
}

/// All bytes of a content, with the distances to places in the same image, which move with it.
fn whole(va: u64, value: &Value, own: &[u8]) -> Value {
    let mut whole = value.clone();
    if whole.bytes.is_empty() {
        whole.bytes = own.to_vec();
    }
    let Value { bytes, fixes, .. } = &mut whole;
    fixes.retain(|fix| {
        let field = bytes
            .get_mut(usize::from(fix.at)..)
            .and_then(<[u8]>::first_chunk_mut::<4>);
        let (Form::Pc32, Target::Own, Some(field)) = (fix.form, fix.to, field) else {
            return true;
        };
        let from = va.wrapping_add(u64::from(fix.at));
        let distance = fix.addend.wrapping_sub(from.cast_signed());
        #[expect(clippy::cast_possible_truncation, reason = "the field is of 32 bits")]
        let added = i32::from_le_bytes(*field).wrapping_add(distance as i32);
        *field = added.to_le_bytes();
        false
    });
    whole
}

/// What a site of two or three bytes holds between two stores: the second byte is written, then the last one, then the first one
/// (`.Lless_3bytes` of `memcpy_orig`).
fn first_byte_last(values: &[Value], own: &[u8]) -> Vec<Value> {
    let steps: &[&[usize]] = match own.len() {
        2 => &[&[1]],
        3 => &[&[1], &[1, 2]],
        _ => return Vec::new(),
    };
    let contents: Vec<&[u8]> = values
        .iter()
        .filter(|value| value.fixes.is_empty())
        .map(|value| match value.bytes.as_slice() {
            [] => own,
            bytes => bytes,
        })
        .collect();
    let mut torn: Vec<Value> = Vec::new();
    // What a site was linked with is never written to it.
    for new in contents.iter().filter(|new| **new != own) {
        for old in &contents {
            for written in steps {
                let byte =
                    |(at, (old, new)): (usize, (&u8, &u8))| if written.contains(&at) { *new } else { *old };
                let bytes: Vec<u8> = old.iter().zip(*new).enumerate().map(byte).collect();
                let known =
                    contents.contains(&bytes.as_slice()) || torn.iter().any(|value| value.bytes == bytes);
                if !known && torn.len() < MAX_TORN {
                    torn.push(Value::fixed(bytes));
                }
            }
        }
    }
    torn
}

/// The beginning of a content that is being written.
fn start(new: &Value, cut: usize) -> Option<Value> {
    let mut fixes = Vec::new();
    for fix in &new.fixes {
        let at = usize::from(fix.at);
        let form = match fix.form {
            form if at.saturating_add(form.len()) <= cut => form,
            _ if at >= cut => continue,
            Form::Pc32 if at.saturating_add(3) == cut => Form::Pc24,
            _ => return None,
        };
        fixes.push(Fix { form, ..*fix });
    }
    Some(Value {
        bytes: new.bytes.get(..cut)?.to_vec(),
        fixes,
        poked: false,
    })
}

/// What may stand at the end of a content that is written over.
fn ends(old: &Value, cut: usize) -> Vec<Vec<u8>> {
    let Some(end) = old.bytes.get(cut..) else {
        return Vec::new();
    };
    let reach = |fix: &&Fix| usize::from(fix.at).saturating_add(fix.form.len()) > cut;
    match old.fixes.iter().filter(reach).collect::<Vec<_>>().as_slice() {
        [] => vec![end.to_vec()],
        [fix] if fix.form == Form::Pc32 && usize::from(fix.at).saturating_add(3) == cut => {
            let rest = end.get(1..).unwrap_or(&[]);
            TOP_BYTES.iter().map(|top| [&[*top], rest].concat()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_is_seen_with_the_end_of_the_jump_that_it_replaces() {
        let jump = [0xe9, 0x88, 0x8d, 0x3b, 0x00];
        let values = [Value::own(), Value::fixed([0xc3, 0xcc, 0xcc, 0xcc, 0xcc])];
        let torn: Vec<_> = between(0, &values, &jump)
            .into_iter()
            .map(|value| value.bytes)
            .collect();
        assert_eq!(torn, [[0xc3, 0xcc, 0xcc, 0xcc, 0x00]]);
    }

    #[test]
    fn short_contents_are_seen_with_their_first_byte_still_the_old_one() {
        let torn = |values: &[Value], own: &[u8]| -> Vec<Vec<u8>> {
            first_byte_last(values, own)
                .into_iter()
                .map(|value| value.bytes)
                .collect()
        };
        let jump = Value::fixed([0xeb, 0x5c]);
        assert_eq!(torn(&[Value::own(), jump.clone()], &[0x66, 0x90]), [[0x66, 0x5c]]);
        // Never the other way round, nor from what is linked.
        assert_eq!(torn(&[Value::own()], &[0x66, 0x90]), Vec::<Vec<u8>>::new());
        let stac = Value::fixed([0x0f, 0x01, 0xcb]);
        assert_eq!(
            torn(&[Value::own(), stac], &[0x90, 0x90, 0x90]),
            [[0x90, 0x01, 0x90], [0x90, 0x01, 0xcb]]
        );
        assert_eq!(
            torn(&[Value::own(), jump], &[0x66, 0x90, 0x90, 0x90]),
            Vec::<Vec<u8>>::new()
        );
    }

    fn call() -> Value {
        Value {
            bytes: vec![0xe8, 0, 0, 0, 0],
            fixes: vec![Fix {
                at: 1,
                form: Form::Pc32,
                to: crate::site::Target::OneOf(0),
                addend: -4,
            }],
            poked: false,
        }
    }

    #[test]
    fn a_call_to_a_function_that_is_chosen_at_boot_is_seen_with_its_distance_cut() {
        let linked = [0xe8, 0x1e, 0x7f, 0x3b, 0x00];
        let torn = between(0, &[Value::own(), call()], &linked);
        let begun = torn
            .iter()
            .filter(|value| value.bytes.first() == Some(&0xe8))
            .collect::<Vec<_>>();
        assert!(
            begun
                .iter()
                .all(|value| value.fixes.iter().all(|fix| fix.form == Form::Pc24))
        );
        let lasts: BTreeSet<_> = begun.iter().filter_map(|value| value.bytes.last()).collect();
        assert_eq!(
            lasts,
            BTreeSet::from([&0x00, &0x01, &0xfe, &0xff]),
            "whatever was called before"
        );
    }

    #[test]
    fn a_call_is_seen_half_overwritten_by_what_removes_it() {
        let linked = [0xe8, 0x1e, 0x7f, 0x3b, 0x00];
        let nop = Value::fixed([0x0f, 0x1f, 0x44, 0x00, 0x00]);
        let torn = between(0, &[Value::own(), call(), nop], &linked);
        assert!(torn.contains(&Value::fixed([0x0f, 0x1f, 0x44, 0x00, 0xff])));
    }

    #[test]
    fn a_no_op_that_fills_a_site_is_seen_with_its_first_store() {
        let own = [0xff, 0x15, 0x93, 0x06, 0xa0, 0x01];
        let padded = Value::fixed([0xfa, 0x90, 0x90, 0x90, 0x90, 0x90]);
        let filled_up = Value::fixed([0xfa, 0x0f, 0x1f, 0x44, 0x00, 0x00]);
        let torn = filled(&[Value::own(), padded, filled_up], &own);
        assert_eq!(torn, [Value::fixed([0xfa, 0x0f, 0x1f, 0x44, 0x00, 0x90])]);
    }

    #[test]
    fn a_no_op_of_three_bytes_is_seen_with_its_first_byte_or_its_first_two() {
        let own = [0xff, 0x15, 0xee, 0x04, 0xa0, 0x01];
        let padded = Value::fixed([0x48, 0x89, 0xf8, 0x90, 0x90, 0x90]);
        let filled_up = Value::fixed([0x48, 0x89, 0xf8, 0x0f, 0x1f, 0x00]);
        let torn = filled(&[Value::own(), padded, filled_up], &own);
        let begun = [[0x0f, 0x90, 0x90], [0x0f, 0x1f, 0x90]];
        assert_eq!(
            torn,
            begun.map(|end| Value::fixed([&[0x48, 0x89, 0xf8], &end[..]].concat()))
        );
    }

    #[test]
    fn only_sites_in_the_pages_of_the_writing_code_are_seen_half_written() {
        let writers = Writers {
            copying: 0x1000..0x2000,
            filling: 0x5000..0x6000,
        };
        let values = [Value::own(), Value::fixed([0xc3, 0xcc, 0xcc, 0xcc, 0xcc])];
        let own = [0xe9, 1, 2, 3, 4];
        let torn = |va| writers.torn(va, va + 5, &values, &own).len();
        assert_eq!([torn(0x1ffd), torn(0x2000), torn(0x5000)], [1, 0, 0]);
    }

    #[test]
    fn max_torn_bounds_the_pairs_of_a_site_with_many_contents() {
        let values: Vec<Value> = (1..=40).map(|byte| Value::fixed(vec![byte; 5])).collect();
        assert_eq!(between(0, &values, &[0; 5]).len(), MAX_TORN);
    }

    /// `__memmove` of Debian 13's Linux 6.12.117, on a processor without ERMS.
    #[test]
    fn a_site_of_sixteen_bytes_or_more_is_seen_after_each_store_of_eight() {
        let own = [
            0x48, 0x83, 0xfa, 0x20, 0x0f, 0x82, 0x01, 0x01, 0x00, 0x00, // cmp $0x20, %rdx; jb
            0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
        ];
        let nop = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
        let filled = Value::fixed([&own[..10], &nop].concat());
        let torn = between(0, &[Value::own(), filled], &own);
        assert_eq!(torn, [Value::fixed([&own[..10], &nop[..6], &[0x90; 4]].concat())]);
        assert_eq!(cuts(16), [8]);
        assert_eq!(cuts(24), [8, 16]);
        assert_eq!(cuts(31), [8, 16, 23]);
    }

    #[test]
    fn a_jump_within_the_image_is_cut_wherever_a_store_ends() {
        let va = 0xffff_ffff_81d1_144b;
        let jump = Value {
            bytes: vec![0x48, 0x89, 0xd1, 0xf3, 0xa4, 0xe9, 0, 0, 0, 0],
            fixes: vec![Fix {
                at: 6,
                form: Form::Pc32,
                to: Target::Own,
                addend: 0xffff_ffff_81f0_fdf0_u64.cast_signed() - 4,
            }],
            poked: false,
        };
        let torn = between(va, &[Value::own(), jump], &[0x90; 10]);
        // The distance from behind the jump is 0x1fe99b.
        let begun = [0x48, 0x89, 0xd1, 0xf3, 0xa4, 0xe9, 0x9b, 0xe9, 0x90, 0x90];
        assert_eq!(torn, [Value::fixed(begun)]);
    }

    #[test]
    fn one_store_leaves_nothing_between() {
        for len in [1, 2, 3] {
            assert_eq!(
                between(0, &[Value::own(), Value::fixed(vec![1; len])], &vec![0; len]),
                []
            );
        }
    }
}
