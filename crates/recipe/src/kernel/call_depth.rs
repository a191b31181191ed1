//! Call-depth tracking: `arch/x86/kernel/callthunks.c` (6.2 and later).
//!
//! A call goes a few bytes earlier, into the padding before the function, where a copy of
//! `skl_call_thunk_template` counts the call. No table names the paddings; they are before every function.

use super::alternative::Alternative;
use super::bytes;
use super::content::{Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn::{self, Insn};
use super::tables::{Link, insn_at};
use crate::site::{Fix, Form, SiteKind};

/// Calls that can be pointed into a padding.
pub(crate) fn rewrites(image: &Image, link: &dyn Link, alternatives: &[Alternative]) -> Vec<Rewrite> {
    let len = link.call_thunk_len(image);
    if len == 0 {
        return Vec::new();
    }
    let sites = image.relative_table(".call_sites", link.range("__call_sites", "__call_sites_end"));
    let calls = sites
        .into_iter()
        .filter(|va| insn_at(image, *va).is_some_and(|(i, _)| i.opcode[0] == insn::CALL));
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

/// The name under which a kernel's facts tell modules where the counter is (a per-cpu offset). It is no symbol.
pub(crate) const COUNTER: &str = "call depth counter";

/// The per-cpu offset that the template counts in.
pub(crate) fn counter(image: &Image, template: u64) -> Option<u64> {
    let (insn, bytes) = insn_at(image, template)?;
    let (at, _) = insn.rip_relative.filter(|(_, size)| *size == 4)?;
    let next = template.wrapping_add(bytes::wide(insn.len));
    Some(next.wrapping_add_signed(bytes::i32_at(bytes, at)?.into()))
}

/// The padding before a module's function. The template is the kernel's: one `sarq $5, %gs:counter(%rip)`.
pub(crate) fn module_padding(image: &Image, link: &dyn Link, function: u64) -> Option<Rewrite> {
    const TEMPLATE: [u8; 9] = [0x65, 0x48, 0xc1, 0x3d, 0, 0, 0, 0, 5];
    let va = function.checked_sub(9)?;
    if image.linked(va, TEMPLATE.len())?.iter().any(|b| *b != insn::NOP) {
        return None;
    }
    let (to, addend) = link.target(COUNTER)?;
    // Relative to the next instruction: four bytes of field and one of immediate.
    let fix = Fix {
        at: 4,
        form: Form::Pc32,
        to,
        addend: addend.checked_sub(5)?,
    };
    let thunk = Content {
        bytes: TEMPLATE.to_vec(),
        fixes: vec![fix],
    };
    Some(Rewrite {
        va,
        len: TEMPLATE.len(),
        stage: Stage::CallDepth,
        kind: SiteKind::CallDepth,
        how: How::Any(vec![thunk]),
        poked: false,
    })
}
