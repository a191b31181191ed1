//! Call-depth tracking: `arch/x86/kernel/callthunks.c` (6.2 and later).
//!
//! A call goes a few bytes earlier, into the padding before the function, where a copy of
//! `skl_call_thunk_template` counts the call. No table names the paddings; they are before every function.

use super::alternative::Alternative;
use super::content::{Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn::{self, Insn};
use super::tables::{Link, insn_at};
use super::bytes;
use crate::site::SiteKind;

/// Calls that can be pointed into a padding.
pub(crate) fn rewrites(image: &Image, link: &dyn Link, alternatives: &[Alternative]) -> Vec<Rewrite> {
    let len = link.call_thunk_len(image);
    if len == 0 {
        return Vec::new();
    }
    let sites = image.relative_table(".call_sites", link.range("__call_sites", "__call_sites_end"));
    let calls = sites.into_iter().filter(|va| insn_at(image, *va).is_some_and(|(i, _)| i.opcode[0] == insn::CALL));
    let replaced = alternatives.iter().filter(|a| a.len >= 5).map(|a| a.va);
    let fentry = link.address("__fentry__");
    calls
        .chain(replaced)
        .filter(|va| {
            // Not counted: `skip_addr`.
            let target = insn_at(image, *va).and_then(|(i, b)| super::tables::branch_target(*va, &i, b));
            fentry.is_none() || target != fentry
        })
        .map(|va| Rewrite {
            va,
            len: 5,
            stage: Stage::CallDepth,
            kind: SiteKind::CallDepth,
            how: How::CallEarlier(bytes::signed(len)),
            poked: false,
        })
        .collect()
}

/// The padding before a function: no-ops, or the template as it reads there.
pub(crate) fn padding(image: &Image, template: u64, len: usize, function: u64) -> Option<Rewrite> {
    let va = function.checked_sub(bytes::wide(len))?;
    if image.linked(va, len)?.iter().any(|b| *b != insn::NOP) {
        return None;
    }
    let mut thunk = Content::linked(image, template, len)?;
    let distance = template.wrapping_sub(va).cast_signed();
    let mut at = 0usize;
    while at < len {
        let insn = thunk.bytes.get(at..).and_then(Insn::decode)?;
        if let Some((offset, 4)) = insn.rip_relative {
            let field = at.checked_add(offset)?;
            let value = i64::from(bytes::i32_at(&thunk.bytes, field)?).checked_add(distance)?;
            bytes::put(&mut thunk.bytes, field, &i32::try_from(value).ok()?.to_le_bytes());
        }
        at = at.checked_add(insn.len)?;
    }
    Some(Rewrite {
        va,
        len,
        stage: Stage::CallDepth,
        kind: SiteKind::CallDepth,
        how: How::Any(vec![thunk]),
        poked: false,
    })
}
