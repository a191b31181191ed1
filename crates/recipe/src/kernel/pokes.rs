//! What `text_poke_bp` rewrites while the kernel runs: static calls, jump labels, ftrace.
//!
//! Probes (kprobes, optimised probes) and trampolines that ftrace or BPF generate are not in any table and not
//! legal: they are code that is not the kernel's.

use super::bytes;
use super::content::{Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn;
use super::retpoline::return_values;
use super::tables::{Link, branch, branch_to, insn_at};
use crate::site::SiteKind;

/// `cs cs cs xor %eax, %eax`: `xor5rax` in `arch/x86/kernel/static_call.c`.
const XOR5RAX: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];
/// What follows the five bytes of a static call's trampoline: `tramp_ud`.
pub(crate) const TRAMPOLINE_MARK: [u8; 3] = [0x0f, 0xb9, 0xcc];

fn poke(va: u64, kind: SiteKind, values: Vec<Content>) -> Rewrite {
    let len = values.first().map_or(0, |v| v.bytes.len());
    Rewrite {
        va,
        len,
        stage: Stage::AnyTime,
        kind,
        how: How::Any(values),
        poked: true,
    }
}

/// `.static_call_sites` (address and key, both self-relative; bit 0 of the key marks a tail call) and trampolines.
pub(crate) fn static_calls(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let mut found = Vec::new();
    let thunk = bytes::signed(link.call_thunk_len(image));
    let functions = link.functions();
    let mut calls = vec![branch(&[insn::CALL], functions, 0), Content::fixed(&XOR5RAX)];
    calls.extend(insn::nop(5).map(Content::fixed));
    if thunk > 0 {
        calls.push(branch(&[insn::CALL], functions, thunk.saturating_neg()));
    }
    let mut tails = vec![branch(&[insn::JMP32], functions, 0)];
    tails.extend(return_values(link));
    let range = link.range("__start_static_call_sites", "__stop_static_call_sites");
    if let Some((va, table)) = image.table(".static_call_sites", range) {
        let mut entry = va;
        for fields in table.chunks_exact(8) {
            let site = bytes::i32_at(fields, 0).map(|o| entry.wrapping_add_signed(o.into()));
            let key = bytes::i32_at(fields, 4).map(|o| entry.wrapping_add(4).wrapping_add_signed(o.into()));
            if let (Some(site), Some(key)) = (site, key) {
                found.extend(static_call(image, link, site, key & 1 != 0, &calls, &tails));
            }
            entry = entry.wrapping_add(8);
        }
    }
    for va in link.trampolines(image) {
        if image.linked(va.wrapping_add(5), 3) == Some(&TRAMPOLINE_MARK) {
            found.push(poke(va, SiteKind::StaticCall, tails.clone()));
        }
    }
    found
}

fn static_call(
    image: &Image,
    link: &dyn Link,
    va: u64,
    tail: bool,
    calls: &[Content],
    tails: &[Content],
) -> Option<Rewrite> {
    let (insn, bytes) = insn_at(image, va)?;
    if insn.is_jcc32() {
        let op = bytes.get(..2)?;
        let mut values = vec![branch(op, link.functions(), 0)];
        values.extend(branch_to(link, op, "__static_call_return"));
        values.extend(
            super::tables::RETURN_THUNKS
                .iter()
                .filter_map(|t| branch_to(link, op, t)),
        );
        return Some(poke(va, SiteKind::StaticCall, values));
    }
    let values = if tail { tails } else { calls };
    image.linked(va, 5)?;
    Some(poke(va, SiteKind::StaticCall, values.to_vec()))
}

/// `__jump_table`: code and target self-relative in 32 bits, key in 64. Two or five bytes: a no-op or a jump.
pub(crate) fn jump_labels(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let range = link.range("__start___jump_table", "__stop___jump_table");
    let Some((va, table)) = image.table("__jump_table", range) else {
        return Vec::new();
    };
    let mut entry = va;
    let mut found = Vec::new();
    for fields in table.chunks_exact(16) {
        let code = bytes::i32_at(fields, 0).map(|o| entry.wrapping_add_signed(o.into()));
        let target = bytes::i32_at(fields, 4).map(|o| entry.wrapping_add(4).wrapping_add_signed(o.into()));
        if let (Some(code), Some(target)) = (code, target) {
            found.extend(jump_label(image, code, target));
        }
        entry = entry.wrapping_add(16);
    }
    found
}

fn jump_label(image: &Image, code: u64, target: u64) -> Option<Rewrite> {
    let (insn, _) = insn_at(image, code)?;
    let distance = target
        .wrapping_sub(code.wrapping_add(bytes::wide(insn.len)))
        .cast_signed();
    let mut jump = Vec::new();
    match insn.len {
        2 => {
            jump.push(insn::JMP8);
            jump.extend(i8::try_from(distance).ok()?.to_le_bytes());
        }
        5 => {
            jump.push(insn::JMP32);
            jump.extend(i32::try_from(distance).ok()?.to_le_bytes());
        }
        _ => return None,
    }
    let values = vec![Content::fixed(&jump), Content::fixed(insn::nop(insn.len)?)];
    Some(poke(code, SiteKind::JumpLabel, values))
}

/// `__mcount_loc`, and the calls inside ftrace's own two trampolines.
pub(crate) fn ftrace(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let mut values: Vec<_> = insn::nop(5).map(Content::fixed).into_iter().collect();
    for caller in ["ftrace_caller", "ftrace_regs_caller"] {
        values.extend(branch_to(link, &[insn::CALL], caller));
    }
    let range = link.range("__start_mcount_loc", "__stop_mcount_loc");
    let mut found = Vec::new();
    if let Some((_, table)) = image.table("__mcount_loc", range) {
        let sites = table.chunks_exact(8).filter_map(|e| bytes::u64_at(e, 0));
        let sites = sites.filter(|va| insn_at(image, *va).is_some_and(|(insn, _)| insn.len == 5));
        found.extend(sites.map(|va| poke(va, SiteKind::Ftrace, values.clone())));
    }
    for (name, op) in [
        ("ftrace_call", insn::CALL),
        ("ftrace_regs_call", insn::CALL),
        ("ftrace_graph_call", insn::JMP32),
    ] {
        let here = link.address(name).filter(|va| image.executes(*va));
        found.extend(here.map(|va| poke(va, SiteKind::Ftrace, vec![branch(&[op], link.functions(), 0)])));
    }
    found
}
