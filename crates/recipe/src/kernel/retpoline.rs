//! `.retpoline_sites` and `.return_sites`: `apply_retpolines` and `apply_returns` in `arch/x86/kernel/alternative.c`.
//!
//! Indirect-branch thunks that the kernel allocates page by page (ITS mitigation) are generated code and not
//! legal here; the static ones of the image are.

use std::collections::HashMap;

use super::content::{Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn::{self, Insn};
use super::tables::{Link, RETURN_THUNKS, branch, branch_target, branch_to, insn_at};
use crate::site::SiteKind;

/// The registers in the order of their numbers; a thunk is named after one.
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
/// `RETPOLINE_THUNK_SIZE` and `ITS_THUNK_SIZE`.
const THUNK_SIZE: u64 = 32;
const ITS_THUNK_SIZE: u64 = 64;
const LFENCE: [u8; 3] = [0x0f, 0xae, 0xe8];

/// Calls and jumps to `__x86_indirect_thunk_*`.
pub(crate) fn retpolines(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let mut registers = HashMap::new();
    let array = link.address("__x86_indirect_thunk_array");
    for (number, name) in (0u8..).zip(REGISTERS) {
        if let Some(va) = link.address(&format!("__x86_indirect_thunk_{name}")) {
            registers.insert(va, number);
        }
        if let Some(va) = array {
            registers.insert(
                va.wrapping_add(u64::from(number).wrapping_mul(THUNK_SIZE)),
                number,
            );
        }
    }
    let range = link.range("__retpoline_sites", "__retpoline_sites_end");
    let sites = image.relative_table(".retpoline_sites", range);
    sites
        .into_iter()
        .filter_map(|va| retpoline(image, link, &registers, va))
        .collect()
}

fn retpoline(image: &Image, link: &dyn Link, registers: &HashMap<u64, u8>, va: u64) -> Option<Rewrite> {
    let (insn, bytes) = insn_at(image, va)?;
    let register = *registers.get(&branch_target(va, &insn, bytes)?)?;
    let mut values = Vec::new();
    for lfence in [false, true] {
        values.extend(inline(&insn, bytes, register, lfence));
    }
    values.extend(to_thunks(link, &insn, bytes, register));
    Some(Rewrite {
        va,
        len: insn.len,
        stage: Stage::Retpoline,
        kind: SiteKind::Retpoline,
        how: How::Any(values),
        poked: false,
    })
}

/// `patch_retpoline`: the indirect branch itself. Both dialects of no-op agree on what is left over here, but for
/// runs that only the older one splits.
fn inline(insn: &Insn, bytes: &[u8], register: u8, lfence: bool) -> Vec<Content> {
    let mut new = Vec::new();
    let mut jump = insn.opcode[0] == insn::JMP32;
    if insn.is_jcc32() {
        // The inverse condition, over what follows.
        new.push(0x70 + ((insn.opcode[1] & 0xf) ^ 1));
        new.push(u8::try_from(insn.len.saturating_sub(2)).unwrap_or(0));
        jump = true;
    } else if !jump && insn.opcode[0] != insn::CALL {
        return Vec::new();
    }
    if lfence {
        new.extend(LFENCE);
    }
    if register >= 8 {
        new.push(0x41);
    }
    new.push(0xff);
    new.push(if jump { 0xe0 } else { 0xd0 } | (register & 7));
    if new.len() > bytes.len() {
        return Vec::new();
    }
    if jump && new.len() < bytes.len() {
        new.push(insn::INT3);
    }
    new.resize(bytes.len(), insn::NOP);
    let mut short = new.clone();
    insn::optimise_short_nops(&mut short);
    insn::optimise_any_nops(&mut new);
    let mut found = vec![Content::fixed(&new)];
    if short != new {
        found.push(Content::fixed(&short));
    }
    found
}

/// `__emit_trampoline`: the same branch to another thunk of the same register.
fn to_thunks(link: &dyn Link, insn: &Insn, bytes: &[u8], register: u8) -> Vec<Content> {
    let jump = insn.opcode[0] != insn::CALL;
    let depth = if jump {
        "__x86_indirect_jump_thunk_array"
    } else {
        "__x86_indirect_call_thunk_array"
    };
    let mut op = bytes.get(..bytes.len().saturating_sub(4)).unwrap_or(&[]).to_vec();
    if insn.len == 6 && !insn.is_jcc32() {
        op = vec![0x2e, insn.opcode[0]];
    }
    [
        (depth, THUNK_SIZE),
        ("__x86_indirect_its_thunk_array", ITS_THUNK_SIZE),
    ]
    .into_iter()
    .filter_map(|(array, size)| {
        let (to, addend) = link.target(array)?;
        let offset = u64::from(register).checked_mul(size)?;
        Some(branch(&op, to, addend.checked_add_unsigned(offset)?))
    })
    .collect()
}

/// `jmp __x86_return_thunk`: a return, or a jump to whichever thunk the mitigation chose.
pub(crate) fn returns(image: &Image, link: &dyn Link) -> Vec<Rewrite> {
    let values = return_values(link);
    let sites = image.relative_table(
        ".return_sites",
        link.range("__return_sites", "__return_sites_end"),
    );
    sites
        .into_iter()
        .filter(|va| insn_at(image, *va).is_some_and(|(insn, _)| insn.len == 5))
        .map(|va| Rewrite {
            va,
            len: 5,
            stage: Stage::Return,
            kind: SiteKind::ReturnThunk,
            how: How::Any(values.clone()),
            poked: false,
        })
        .collect()
}

/// What a five-byte return can be.
pub(crate) fn return_values(link: &dyn Link) -> Vec<Content> {
    let mut values = vec![Content::fixed(&[
        insn::RET,
        insn::INT3,
        insn::INT3,
        insn::INT3,
        insn::INT3,
    ])];
    values.extend(
        RETURN_THUNKS
            .iter()
            .filter_map(|name| branch_to(link, &[insn::JMP32], name)),
    );
    values
}
