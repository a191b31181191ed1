//! What a range can hold at one moment, and every moment of a range that several mechanisms rewrite.
//!
//! Mechanisms nest: a return inside an alternative, a lock prefix inside another, three alternatives of one
//! instruction. The kernel applies them in a fixed order at boot, so the contents of such a range are found by
//! doing the same to it, keeping every content on the way:
//!
//! ```text
//!  live = { as linked }
//!  for each rewrite, in the kernel's order:  live = what it makes of each of live;  all += live
//! ```

use std::collections::BTreeSet;

use super::alternative::Alternative;
use super::image::Image;
use crate::site::{Fix, SiteKind, Value};

/// Bytes with the fields in them that move.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fixes: Vec<Fix>,
}

impl Content {
    pub(crate) fn fixed(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            fixes: Vec::new(),
        }
    }

    /// What the file has at an address.
    pub(crate) fn linked(image: &Image, va: u64, len: usize) -> Option<Self> {
        let bytes = image.raw(va, len)?.to_vec();
        let mut fixes = image.fixes_in(va, len);
        fixes.retain(|f| usize::from(f.at).saturating_add(f.form.len()) <= len);
        Some(Self { bytes, fixes })
    }

    /// This with another content written over it at an offset.
    pub(crate) fn with(&self, at: usize, other: &Self) -> Option<Self> {
        let mut new = self.clone();
        let end = at.checked_add(other.bytes.len())?;
        new.bytes.get_mut(at..end)?.copy_from_slice(&other.bytes);
        new.fixes.retain(|f| {
            let from = usize::from(f.at);
            from >= end || from.saturating_add(f.form.len()) <= at
        });
        for fix in &other.fixes {
            let at = u16::try_from(at.checked_add(usize::from(fix.at))?).ok()?;
            new.fixes.push(Fix { at, ..*fix });
        }
        new.fixes.sort();
        Some(new)
    }

    /// The part of it at an offset.
    pub(crate) fn part(&self, at: usize, len: usize) -> Option<Self> {
        let bytes = self.bytes.get(at..at.checked_add(len)?)?.to_vec();
        let fixes = self.fixes.iter().filter_map(|f| {
            let from = usize::from(f.at).checked_sub(at)?;
            (from.checked_add(f.form.len())? <= len).then_some(Fix {
                at: u16::try_from(from).ok()?,
                ..*f
            })
        });
        Some(Self {
            bytes,
            fixes: fixes.collect(),
        })
    }

    pub(crate) fn into_value(self, poked: bool) -> Value {
        Value {
            bytes: self.bytes,
            fixes: self.fixes,
            poked,
        }
    }
}

/// When a rewrite happens, in the order of `alternative_instructions` (6.1 and 6.12 agree in it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    /// At any time: static calls, jump labels, function tracing, runtime constants.
    AnyTime,
    Paravirt,
    Retpoline,
    Return,
    Alternative,
    CallDepth,
    IbtSeal,
    SmpLock,
}

/// How a place is rewritten.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// It may hold any of these.
    Any(Vec<Content>),
    /// An alternative.
    Alternative(Alternative),
    /// A call, if it is one, goes this much earlier: into the padding before the function.
    CallEarlier(i64),
    /// A lock prefix and a DS prefix stand for each other.
    LockPrefix,
}

/// One entry of one of the tables.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) va: u64,
    pub(crate) len: usize,
    pub(crate) stage: Stage,
    pub(crate) kind: SiteKind,
    pub(crate) how: How,
    /// `text_poke_bp` may be seen half-way.
    pub(crate) poked: bool,
}

/// More contents than any range of a real kernel has; a range with more keeps only its linked bytes.
pub(crate) const MAX_CONTENTS: usize = 1024;

/// Every content of `[va, va + len)` under these rewrites (sorted by stage, all inside the range).
/// `None`: the range is not in the image, or has too many contents.
pub(crate) fn all_contents(
    image: &Image,
    va: u64,
    len: usize,
    rewrites: &[&Rewrite],
    replacements: &dyn Fn(&Alternative) -> Vec<Content>,
) -> Option<Vec<Content>> {
    let linked = Content::linked(image, va, len)?;
    let mut live = BTreeSet::from([linked]);
    let mut all = live.clone();
    let at_any_time = rewrites.iter().filter(|r| r.stage == Stage::AnyTime);
    for rewrite in rewrites.iter().chain(at_any_time) {
        let at = usize::try_from(rewrite.va.checked_sub(va)?).ok()?;
        let mut next = BTreeSet::new();
        for content in &live {
            match &rewrite.how {
                How::Any(values) => {
                    next.insert(content.clone());
                    next.extend(values.iter().filter_map(|v| content.with(at, v)));
                }
                How::Alternative(alternative) => {
                    let applied = alternative.apply(content, at, &replacements(alternative));
                    all.extend(applied.on_the_way);
                    next.extend(applied.done);
                }
                How::CallEarlier(by) => {
                    next.insert(content.clone());
                    next.extend(call_earlier(content, at, *by));
                }
                How::LockPrefix => {
                    next.insert(content.clone());
                    if matches!(content.bytes.get(at), Some(0xf0 | 0x3e)) {
                        next.extend(
                            [0xf0, 0x3e]
                                .iter()
                                .filter_map(|b| content.with(at, &Content::fixed(&[*b]))),
                        );
                    }
                }
            }
            if all.len().saturating_add(next.len()) > MAX_CONTENTS {
                return None;
            }
        }
        live = next;
        all.extend(live.iter().cloned());
    }
    (all.len() <= MAX_CONTENTS).then(|| all.into_iter().collect())
}

/// `call rel32` at `at`, moved `by` bytes earlier.
fn call_earlier(content: &Content, at: usize, by: i64) -> Option<Content> {
    let field = at.checked_add(1)?;
    if *content.bytes.get(at)? != super::insn::CALL {
        return None;
    }
    let mut new = content.clone();
    if let Some(fix) = new.fixes.iter_mut().find(|f| usize::from(f.at) == field) {
        fix.addend = fix.addend.checked_sub(by)?;
        return Some(new);
    }
    let rel = super::bytes::i32_at(&new.bytes, field)?;
    let rel = rel.wrapping_sub(i32::try_from(by).ok()?);
    super::bytes::put(&mut new.bytes, field, &rel.to_le_bytes()).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::super::image::Section;
    use super::*;

    #[test]
    fn max_contents_leaves_out_a_place_that_can_hold_more_than_any_real_one() {
        let contents = |places: u64| {
            let text = Section {
                name: ".text".to_owned(),
                va: 0x1000,
                execute: true,
                raw: vec![0x90; 16],
                linked: None,
            };
            let image = Image::new(vec![text], Vec::new());
            let rewrites: Vec<Rewrite> = (0x1000..0x1000 + places)
                .map(|va| Rewrite {
                    va,
                    len: 1,
                    stage: Stage::Alternative,
                    kind: SiteKind::Alternative,
                    how: How::Any(vec![Content::fixed(&[0xcc])]),
                    poked: false,
                })
                .collect();
            let rewrites: Vec<&Rewrite> = rewrites.iter().collect();
            all_contents(&image, 0x1000, 16, &rewrites, &|_| Vec::new()).map(|all| all.len())
        };
        assert_eq!(contents(9), Some(512));
        assert_eq!(contents(11), None, "more than {MAX_CONTENTS}");
    }
}
