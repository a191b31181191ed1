//! Every table that names places to rewrite, read into [`Rewrite`]s.
//!
//! A table has a section of its own (modules, and most of the kernel's) or lies between two symbols.

use super::alternative::{self, Alternative};
use super::bytes;
use super::content::{Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn::{self, Insn};
use super::{call_depth, retpoline};
use crate::site::{Fix, Form, SiteKind, Target};

/// What a table's reader asks of the image's names.
pub(crate) trait Link {
    /// The link address of a symbol, made up for one that is elsewhere.
    fn address(&self, name: &str) -> Option<u64>;
    /// What a field that refers to the symbol is relative to, and its addend.
    fn target(&self, name: &str) -> Option<(Target, i64)>;
    /// Every function that a static call can be pointed at.
    fn functions(&self) -> Target;
    /// Every function that a paravirt slot can hold.
    fn paravirt(&self) -> Target;
    /// Static-call trampolines.
    fn trampolines(&self, image: &Image) -> Vec<u64>;
    /// Length of the call-depth thunk before a function: 0 if the image has none.
    fn call_thunk_len(&self, image: &Image) -> usize;

    /// The range between two symbols.
    fn range(&self, start: &str, stop: &str) -> Option<(u64, u64)> {
        Some((self.address(start)?, self.address(stop)?))
    }
}

/// The thunks that a return can be pointed at: `arch/x86/kernel/cpu/bugs.c` sets `x86_return_thunk`.
pub(crate) const RETURN_THUNKS: [&str; 6] = [
    "__x86_return_thunk",
    "retbleed_return_thunk",
    "srso_return_thunk",
    "srso_alias_return_thunk",
    "its_return_thunk",
    "call_depth_return_thunk",
];

/// `op rel32` to a target.
pub(crate) fn branch(op: &[u8], to: Target, addend: i64) -> Content {
    let mut bytes = op.to_vec();
    bytes.extend([0; 4]);
    let at = u16::try_from(op.len()).unwrap_or(0);
    // The field is relative to the next instruction, four bytes on.
    Content {
        bytes,
        fixes: vec![Fix {
            at,
            form: Form::Pc32,
            to,
            addend: addend.saturating_sub(4),
        }],
    }
}

/// `op rel32` to a symbol, if there is one.
pub(crate) fn branch_to(link: &dyn Link, op: &[u8], name: &str) -> Option<Content> {
    let (to, addend) = link.target(name)?;
    Some(branch(op, to, addend))
}

/// Everything in the image, sorted by address, then by stage, then in the tables' order.
pub(crate) fn rewrites(image: &Image, link: &dyn Link) -> Option<(Vec<Rewrite>, Vec<Alternative>)> {
    let alternatives = alternative::read(image, link.range("__alt_instructions", "__alt_instructions_end"))?;
    let mut found = Vec::new();
    found.extend(paravirt(image, link));
    found.extend(retpoline::retpolines(image, link));
    found.extend(retpoline::returns(image, link));
    found.extend(alternatives.iter().map(|a| Rewrite {
        va: a.va,
        len: a.len,
        stage: Stage::Alternative,
        kind: if a.direct_call {
            SiteKind::Paravirt
        } else {
            SiteKind::Alternative
        },
        how: How::Alternative(*a),
        poked: false,
    }));
    found.extend(call_depth::rewrites(image, link, &alternatives));
    found.extend(super::pokes::static_calls(image, link));
    found.extend(super::pokes::jump_labels(image, link));
    found.extend(super::pokes::ftrace(image, link));
    found.extend(locks(image, link));
    found.extend(seals(image, link));
    found.retain(|r| r.len > 0 && image.executes(r.va));
    found.sort_by_key(|r| (r.va, r.stage));
    Some((found, alternatives))
}

/// `.parainstructions` (up to 6.7): `struct paravirt_patch_site { u8 *instr; u8 type; u8 len; }`.
fn paravirt(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let range = link.range("__parainstructions", "__parainstructions_end");
    let Some((_, table)) = image.table(".parainstructions", range) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in table.chunks_exact(16) {
        let (Some(va), Some(len)) = (bytes::u64_at(entry, 0), entry.get(9)) else {
            continue;
        };
        let len = usize::from(*len);
        let mut values = Vec::new();
        let mut nops = vec![insn::NOP; len];
        insn::fill_with_nops(&mut nops, 0, len, 8);
        values.push(Content::fixed(&nops));
        if let Some(rest) = len.checked_sub(5) {
            let mut call = branch(&[insn::CALL], link.paravirt(), 0);
            call.bytes.resize(len, insn::NOP);
            insn::fill_with_nops(&mut call.bytes, 5, rest, 8);
            values.push(call);
        }
        found.push(Rewrite {
            va,
            len,
            stage: Stage::Paravirt,
            kind: SiteKind::Paravirt,
            how: How::Any(values),
            poked: false,
        });
    }
    found
}

fn locks(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    image
        .relative_table(".smp_locks", link.range("__smp_locks", "__smp_locks_end"))
        .into_iter()
        .map(|va| Rewrite {
            va,
            len: 1,
            stage: Stage::SmpLock,
            kind: SiteKind::SmpLock,
            how: How::LockPrefix,
            poked: false,
        })
        .collect()
}

/// `.ibt_endbr_seal`: `endbr64` becomes the poison of `gen_endbr_poison`.
fn seals(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    image
        .relative_table(
            ".ibt_endbr_seal",
            link.range("__ibt_endbr_seal", "__ibt_endbr_seal_end"),
        )
        .into_iter()
        .filter(|va| matches!(image.linked(*va, 4), Some([0xf3, 0x0f, 0x1e, 0xfa | 0xfb])))
        .map(|va| Rewrite {
            va,
            len: 4,
            stage: Stage::IbtSeal,
            kind: SiteKind::IbtSeal,
            how: How::Any(vec![Content::fixed(&[0x66, 0x0f, 0x1f, 0x00])]),
            poked: false,
        })
        .collect()
}

/// The instruction at an address.
pub(crate) fn insn_at(image: &Image, va: u64) -> Option<(Insn, &[u8])> {
    let window = image.linked_up_to(va, 15);
    let insn = Insn::decode(window)?;
    Some((insn, window.get(..insn.len)?))
}

/// Where a relative branch goes, as linked.
pub(crate) fn branch_target(va: u64, insn: &Insn, bytes: &[u8]) -> Option<u64> {
    let (at, size) = insn.immediate?;
    let rel = match size {
        1 => i64::from((*bytes.get(at)?).cast_signed()),
        4 => i64::from(bytes::i32_at(bytes, at)?),
        _ => return None,
    };
    Some(va.wrapping_add(bytes::wide(insn.len)).wrapping_add_signed(rel))
}
