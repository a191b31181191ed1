//! What a change does to the instructions around it.
//!
//! ```text
//!  start     where execution is known to have entered, at or before the change
//!  decode    the file's bytes and the bytes found from there: the same instructions up to the change
//!  low       the last boundary that both have, at or before the change
//!  high      the first boundary that both have, at or behind its end
//!  show      two instructions before low; [low, high) of both; two instructions from high
//! ```

use std::collections::BTreeSet;

use super::disassembly::{Line, sweep};
use crate::control::PageEvidence;

/// Which bytes a line is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// Both.
    Both,
    /// The file's.
    Before,
    /// Those found.
    After,
}

/// One change in its surroundings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hunk {
    /// Where instructions begin is not known from execution.
    pub(super) guessed: bool,
    /// The lines in order.
    pub(super) lines: Vec<(Side, Line)>,
}

/// Changes nearer to each other than this are shown as one.
const NEAR: usize = 8;
/// Instructions shown around a change.
const CONTEXT: usize = 2;
/// The longest that both sides are decoded behind a change to meet again: it bounds what a page of nonsense shows.
const MEET: usize = 48;

/// All changes of a page.
pub(super) fn hunks(page: &PageEvidence, before: &[u8], after: &[u8], bits: u32) -> Vec<Hunk> {
    groups(page)
        .into_iter()
        .map(|(from, to)| {
            let (start, guessed) = start(page, before, from, bits);
            let limit = to.saturating_add(MEET);
            let old = sweep(before, page.va, bits, start, limit);
            let new = sweep(after, page.va, bits, start, limit);
            Hunk {
                guessed,
                lines: merge(&old, &new, from, to),
            }
        })
        .collect()
}

/// Ranges of bytes that differ, near ones joined.
fn groups(page: &PageEvidence) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = page
        .differences
        .iter()
        .map(|(offset, before, after)| {
            let from = usize::from(*offset).min(4095);
            let len = (before.len().max(after.len()) / 2).max(1);
            (from, from.saturating_add(len).min(4096))
        })
        .collect();
    ranges.sort_unstable();
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for (from, to) in ranges {
        match groups.last_mut() {
            Some(last) if from <= last.1 + NEAR => last.1 = last.1.max(to),
            _ => groups.push((from, to)),
        }
    }
    groups
}

/// A boundary of instructions at or before an offset, and whether it is a guess.
fn start(page: &PageEvidence, before: &[u8], from: usize, bits: u32) -> (usize, bool) {
    let ranges = page
        .executed
        .iter()
        .map(|(a, b)| (usize::from(*a), usize::from(*b)));
    let entered = ranges.filter(|(a, _)| *a <= from).max();
    match entered {
        Some((start, end)) if from < end => return (start, false),
        Some((start, _)) if from - start <= MEET => return (start, true),
        _ => {}
    }
    // Nothing near is known to have run: the farthest place from where the file's bytes decode to a boundary here.
    let fits = |start: &usize| {
        let lines = sweep(before, page.va, bits, *start, from);
        lines.iter().all(|line| !line.text.starts_with('(')) && lines.last().is_some_and(|l| l.end() == from)
    };
    let guess = (from.saturating_sub(16)..from).find(fits);
    (guess.unwrap_or(from), true)
}

fn merge(old: &[Line], new: &[Line], from: usize, to: usize) -> Vec<(Side, Line)> {
    let boundaries = |lines: &[Line]| -> BTreeSet<usize> {
        let starts = lines.iter().map(|line| line.at);
        starts.chain(lines.last().map(Line::end)).collect()
    };
    let (olds, news) = (boundaries(old), boundaries(new));
    let mut common = olds.intersection(&news).copied();
    let low = common.clone().take_while(|at| *at <= from).last().unwrap_or(from);
    let high = common.find(|at| *at >= to).unwrap_or(usize::MAX);
    let of = |side: Side, lines: &[Line]| -> Vec<(Side, Line)> {
        let changed = lines.iter().filter(|line| line.at >= low && line.at < high);
        changed.map(|line| (side, line.clone())).collect()
    };
    let both = |line: &Line| (Side::Both, line.clone());
    let ahead: Vec<_> = new.iter().filter(|line| line.at < low).map(both).collect();
    let behind = new.iter().filter(|line| line.at >= high).take(CONTEXT).map(both);
    let mut lines: Vec<(Side, Line)> = ahead
        .get(ahead.len().saturating_sub(CONTEXT)..)
        .unwrap_or_default()
        .to_vec();
    lines.extend(of(Side::Before, old));
    lines.extend(of(Side::After, new));
    lines.extend(behind);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// push rbp; mov rbp, rsp; mov [rsp+8], rbx; xor eax, eax; ret; then nops.
    fn original() -> Vec<u8> {
        let mut page = vec![
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x5c, 0x24, 0x08, 0x31, 0xc0, 0xc3,
        ];
        page.resize(4096, 0x90);
        page
    }

    fn evidence(executed: &[(u16, u16)], differences: &[(u16, &str, &str)]) -> PageEvidence {
        PageEvidence {
            va: 0x40_1000,
            executed: executed.to_vec(),
            differences: differences
                .iter()
                .map(|(at, before, after)| (*at, (*before).to_owned(), (*after).to_owned()))
                .collect(),
            ..PageEvidence::default()
        }
    }

    fn shown(hunk: &Hunk) -> Vec<String> {
        let sign = |side| match side {
            Side::Both => ' ',
            Side::Before => '-',
            Side::After => '+',
        };
        hunk.lines
            .iter()
            .map(|(side, line)| format!("{}{} {}", sign(*side), line.at, line.text))
            .collect()
    }

    #[test]
    fn a_hook_is_shown_where_both_sides_meet_again() {
        let before = original();
        let mut after = before.clone();
        after[4..9].copy_from_slice(&[0xe9, 0x1b, 0, 0, 0]);
        let page = evidence(&[(0, 12)], &[(4, "48895c2408", "e91b000000")]);
        let hunks = hunks(&page, &before, &after, 64);
        assert!(!hunks[0].guessed);
        let expected = [
            " 0 push rbp",
            " 1 mov rbp, rsp",
            "-4 mov [rsp+8], rbx",
            "+4 jmp 0x401024",
            " 9 xor eax, eax",
            " 11 ret",
        ];
        assert_eq!(
            (hunks.len(), shown(&hunks[0])),
            (1, expected.map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn a_change_inside_an_instruction_shows_the_whole_instruction_of_both() {
        let before = original();
        let mut after = before.clone();
        after[8] = 0x10;
        let page = evidence(&[(0, 12)], &[(8, "08", "10")]);
        let lines = shown(&hunks(&page, &before, &after, 64)[0]);
        assert_eq!(lines[2..4], ["-4 mov [rsp+8], rbx", "+4 mov [rsp+0x10], rbx"]);
    }

    #[test]
    fn changes_side_by_side_are_one_hunk_and_far_ones_are_two() {
        let (before, mut after) = (original(), original());
        for at in [4, 6, 2000] {
            after[at] = 0xcc;
        }
        let page = evidence(
            &[(0, 12)],
            &[(4, "48", "cc"), (6, "5c", "cc"), (2000, "90", "cc")],
        );
        let hunks = hunks(&page, &before, &after, 64);
        assert_eq!(hunks.iter().map(|h| h.guessed).collect::<Vec<_>>(), [false, true]);
    }

    proptest! {
        #[test]
        fn whatever_is_claimed_there_are_lines_and_no_panic(
            before in proptest::collection::vec(any::<u8>(), 0..4200),
            noise in proptest::collection::vec((any::<u16>(), any::<String>(), any::<String>()), 1..6),
            executed in proptest::collection::vec(any::<(u16, u16)>(), 0..6),
            va: u64,
        ) {
            let mut after = before.clone();
            after.reverse();
            let page = PageEvidence { va, executed, differences: noise, ..PageEvidence::default() };
            for hunk in hunks(&page, &before, &after, 64) {
                prop_assert!(hunk.lines.len() < 4 * 4096);
            }
        }
    }
}
