//! SeaBIOS's initialisation code, which copies itself to high memory and adjusts what refers to it.
//!
//! ```text
//!  code32flat_start      │ abs[] │ rel[] │ init[] │ low-memory data │ initialisation code │ the rest …
//!
//!  abs   offsets in the initialisation code of fields that hold its addresses:   field += distance
//!  rel   … of fields relative to themselves, with targets outside of it:         field -= distance
//!  init  offsets from code32flat_start of fields outside that refer to it:       field += distance
//! ```
//!
//! `scripts/layoutrom.py` writes the tables, each sorted, `reloc_preinit` in `src/post.c` applies them. Nothing in the
//! image says where the tables end or where the initialisation code begins, but only one place for it makes every
//! field of the tables refer to where it must.

use std::ops::Range;

use crate::kernel::bytes::{index, u32_at, wide};
use crate::site::{Fix, Form, Site, SiteKind, Target, Value};

/// The header of multiboot, which may precede the tables.
const MULTIBOOT: u32 = 0x1bad_b002;
/// The initialisation code is aligned to this at least (`setSectionsStart`).
const ALIGN: usize = 16;
/// Fewer relocations than this are a coincidence.
const MIN_FIELDS: usize = 16;
/// Only images that real mode reaches are laid out so; it also bounds the search.
const MAX_BYTES: usize = 1 << 20;

/// What moves, and what follows it.
pub(super) struct Moving {
    /// The initialisation code in the image.
    pub(super) init: Range<usize>,
    /// Fields in it.
    pub(super) in_init: Vec<Site>,
    /// Fields that follow it, as offsets in the image.
    pub(super) to_init: Vec<Site>,
}

/// The contents of [`Moving::in_init`]'s sites.
pub(super) fn sets_in_init() -> Vec<Vec<Value>> {
    vec![
        vec![moved(Form::Abs32, Target::Own)],
        // The further the code is moved, the less there is to what stays.
        vec![moved(Form::Negative32, Target::Own)],
    ]
}

/// The contents of [`Moving::to_init`]'s sites: as linked until the code is moved.
pub(super) fn sets_to_init() -> Vec<Vec<Value>> {
    vec![vec![Value::own(), moved(Form::Abs32, Target::Unknown(0))]]
}

fn moved(form: Form, to: Target) -> Value {
    let fix = Fix {
        at: 0,
        form,
        to,
        addend: 0,
    };
    Value {
        fixes: vec![fix],
        ..Value::own()
    }
}

struct Image<'a> {
    file: &'a [u8],
    base: u32,
}

impl Image<'_> {
    fn word(&self, at: usize) -> Option<u32> {
        u32_at(self.file, at)
    }

    /// The offset in the image of what an absolute field refers to.
    fn absolute(&self, at: usize) -> Option<usize> {
        let offset = index(self.word(at)?.wrapping_sub(self.base).into());
        (offset <= self.file.len()).then_some(offset)
    }

    /// The same for a field relative to its end.
    fn relative(&self, at: usize) -> Option<usize> {
        let end = u32::try_from(at.checked_add(4)?).ok()?;
        let offset = index(end.wrapping_add(self.word(at)?).into());
        (offset <= self.file.len()).then_some(offset)
    }
}

/// Finds the tables and what they mean; `None` if the image has none.
pub(super) fn moving(file: &[u8], base: u32) -> Option<Moving> {
    if file.len() > MAX_BYTES {
        return None;
    }
    let image = Image { file, base };
    let flat = file.iter().position(|byte| *byte != 0)? & !3;
    let tables = if image.word(flat)? == MULTIBOOT {
        flat.checked_add(12)?
    } else {
        flat
    };
    let abs = ascending(&image, tables);
    let after = tables.checked_add(abs.len().checked_mul(4)?)?;
    // Offsets of `rel` are below the code's length, those of `init` above: together they ascend.
    let rest = ascending(&image, after);
    let after = after.checked_add(rest.len().checked_mul(4)?)?;
    if abs.len() < MIN_FIELDS || rest.len() < MIN_FIELDS {
        return None;
    }
    let mut found = (after.checked_next_multiple_of(ALIGN)?..file.len())
        .step_by(ALIGN)
        .filter_map(|start| split(&image, flat, start, &abs, &rest));
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

/// The ascending words from `at` on.
fn ascending(image: &Image<'_>, at: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut at = at;
    while let Some(word) = image.word(at).map(|word| index(word.into()))
        && word < image.file.len()
        && found.last().is_none_or(|last| *last < word)
    {
        found.push(word);
        at = at.saturating_add(4);
    }
    found
}

/// The tables' meaning if the initialisation code begins at `start`; `None` if then a field refers to where it cannot.
fn split(image: &Image<'_>, flat: usize, start: usize, abs: &[usize], rest: &[usize]) -> Option<Moving> {
    let field = |offset: &usize| start.checked_add(*offset);
    let last = field(abs.last()?)?.checked_add(4)?;
    let mut least_end = last;
    for offset in abs {
        let target = image.absolute(field(offset)?)?;
        if target < start {
            return None;
        }
        least_end = least_end.max(target);
    }
    // Until a field refers into the code, or one follows that cannot be in it, they are relative.
    let outside = |at: usize| {
        let target = image.relative(at);
        target.is_none_or(|target| target < start || target >= least_end)
    };
    let into = |at: usize| {
        let refers =
            |target: Option<usize>| target.is_some_and(|target| (start..least_end).contains(&target));
        refers(image.absolute(at)) || refers(image.relative(at))
    };
    let of_init = |offset: &usize| {
        flat.checked_add(*offset)
            .filter(|at| *at >= least_end && into(*at))
    };
    let first_init = rest
        .len()
        .checked_sub(rest.iter().rev().take_while(|o| of_init(o).is_some()).count())?;
    let (rel, init) = rest.split_at_checked(first_init)?;
    if !rel.iter().all(|offset| field(offset).is_some_and(outside)) {
        return None;
    }
    let last_rel = field(rel.last()?)?.checked_add(4)?;
    least_end = least_end.max(last_rel);
    // The code ends before everything that it refers to as not its own.
    let others = rel.iter().filter_map(|offset| image.relative(field(offset)?));
    let others = others.chain(init.iter().filter_map(|offset| flat.checked_add(*offset)));
    let end = others.filter(|at| *at > start).min().unwrap_or(image.file.len());
    if end < least_end {
        return None;
    }
    let mut in_init: Vec<Site> = Vec::new();
    for (set, fields) in [(0, abs), (1, rel)] {
        in_init.extend(fields.iter().filter_map(|offset| site(*offset, set)));
    }
    in_init.sort_by_key(|site| site.at);
    let to_init: Vec<Site> = init
        .iter()
        .filter_map(|offset| site(flat.checked_add(*offset)?, 0))
        .collect();
    let apart = |sites: &[Site]| {
        sites
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.at.saturating_add(4) <= b.at))
    };
    let all = in_init.len().checked_add(to_init.len())? == abs.len().checked_add(rest.len())?;
    (all && apart(&in_init) && apart(&to_init) && wide(end) <= wide(image.file.len())).then_some(Moving {
        init: start..end,
        in_init,
        to_init,
    })
}

fn site(at: usize, set: u32) -> Option<Site> {
    Some(Site {
        at: u32::try_from(at).ok()?,
        len: 4,
        kind: SiteKind::Relocation,
        set,
    })
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]
mod tests {
    use super::*;

    const LEN: usize = 65536;
    const BASE: u32 = 0xf_0000;
    const FLAT: usize = 0x1000;
    const START: usize = 0x2000;
    const END: usize = 0x3000;

    /// An image whose initialisation code is at `START..END`, with 20 fields of each kind.
    fn image() -> Vec<u8> {
        let mut file = vec![0; LEN];
        for (at, byte) in file.iter_mut().enumerate().skip(START) {
            *byte = ((at * 37) >> 3) as u8 | 0x80;
        }
        let mut put = |at: usize, value: usize| {
            let word = u32::try_from(value & 0xffff_ffff).unwrap();
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        };
        let base = BASE as usize;
        let mut table = FLAT;
        for (kind, from) in [(0, 0x10), (1, 0x14), (2, END + 0x100 - FLAT)] {
            for number in 0..20 {
                let offset = from + number * 0x40;
                put(table, offset);
                table += 4;
                match kind {
                    0 => put(START + offset, base + START + number * 8),
                    1 => put(START + offset, (END + number).wrapping_sub(START + offset + 4)),
                    _ => put(FLAT + offset, base + START + number),
                }
            }
        }
        put(table, 0);
        file
    }

    #[test]
    fn the_tables_tell_where_the_code_that_moves_is() {
        let moving = moving(&image(), BASE).unwrap();
        assert_eq!(moving.init, START..END);
        assert_eq!(moving.in_init.len(), 40);
        assert_eq!((moving.in_init[0].at, moving.in_init[1].at), (0x10, 0x14));
        assert_eq!((moving.to_init.len(), moving.to_init[0].at), (20, 0x3100));
    }

    #[test]
    fn a_field_that_refers_to_where_it_cannot_makes_the_tables_none() {
        for at in [START + 0x10, START + 0x14, END + 0x100] {
            let mut file = image();
            file[at..at + 4].fill(0);
            assert!(moving(&file, BASE).is_none(), "{at:#x}");
        }
    }

    #[test]
    fn another_base_fits_nothing() {
        assert!(moving(&image(), BASE + 0x100).is_none());
    }

    #[test]
    fn cut_images_and_those_over_max_bytes_have_no_tables() {
        let file = image();
        for len in [0, 1, FLAT, FLAT + 7, FLAT + 100, FLAT + 240, START, START + 0x200] {
            assert!(moving(&file[..len], BASE).is_none(), "{len:#x}");
        }
        let mut large = file;
        large.resize(MAX_BYTES + 1, 0);
        assert!(moving(&large, BASE).is_none());
    }
}
