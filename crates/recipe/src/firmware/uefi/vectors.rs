//! The table of interrupt entries in x86-64 images, which the image completes before it uses them.
//!
//! ```text
//!  table:  push $0   │ push %rax │ movabs $0, %rax │ jmp *%rax
//!          push $1   │ push %rax │ movabs $0, %rax │ jmp *%rax
//!          …                               ▲ the common entry's address, written by:
//!  lea entry(%rip), %rax │ lea table(%rip), %rcx │ mov %rax, 8(%rcx) │ add $size, %rcx │ mov %rax, 8(%rcx) │ …
//! ```
//!
//! `AsmGetTemplateAddressMap` in EDK2's `UefiCpuPkg/Library/CpuExceptionHandlerLib/X64/ExceptionHandlerAsm.nasm`. The
//! code that writes says what it writes where; both must be in the image, and zero must be what is there before.

use memchr::memmem;

use super::MAX_RELOCATIONS;
use crate::kernel::bytes::{array, index, signed, wide};

/// `lea …(%rip), %rax`; `lea …(%rip), %rcx`.
const LEA_RAX: [u8; 3] = [0x48, 0x8d, 0x05];
const LEA_RCX: [u8; 3] = [0x48, 0x8d, 0x0d];
/// Length of both.
const LEA: usize = 7;
/// `mov %rax, 8(%rcx)`; `add $…, %rcx`.
const STORE: [u8; 7] = [0x48, 0x89, 0x41, 0x08, 0x48, 0x83, 0xc1];
/// Fewer entries than the CPU's own exceptions are no table.
const MIN_ENTRIES: usize = 32;
/// `movabs …, %rax`.
const MOVABS: [u8; 2] = [0x48, 0xb8];

/// The fields that one table completes, as offsets in the image, and the offset that they all come to refer to.
pub(super) struct Table {
    pub(super) fields: Vec<u32>,
    pub(super) entry: u64,
}

/// The tables of an image as it is loaded.
pub(super) fn tables(image: &[u8]) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut from = 0;
    while let Some(found) = image.get(from..).and_then(|rest| memmem::find(rest, &STORE)) {
        let at = from.saturating_add(found);
        let stores = stores(image, at);
        from = at.saturating_add(stores.len().max(1).saturating_mul(STORE.len().saturating_add(1)));
        if stores.len() >= MIN_ENTRIES {
            tables.extend(table(image, at, &stores));
        }
    }
    tables
}

/// What is added after each store, from `at` on.
fn stores(image: &[u8], at: usize) -> Vec<u8> {
    let rest = image.get(at..).unwrap_or(&[]);
    let steps = rest.chunks_exact(STORE.len().saturating_add(1));
    steps
        .map_while(|step| step.strip_prefix(&STORE)?.first().copied())
        .take(MAX_RELOCATIONS)
        .collect()
}

fn table(image: &[u8], at: usize, stores: &[u8]) -> Option<Table> {
    let rcx = at.checked_sub(LEA)?;
    let rax = rcx.checked_sub(LEA)?;
    let start = target(image, rcx, LEA_RCX)?;
    let entry = target(image, rax, LEA_RAX)?;
    let mut fields = Vec::new();
    let mut next = start;
    for step in stores {
        let field = next.checked_add(8)?;
        let before: [u8; 10] = array(image, index(field.checked_sub(2)?))?;
        if !before.starts_with(&MOVABS) || before.iter().skip(2).any(|byte| *byte != 0) {
            return None;
        }
        fields.push(u32::try_from(field).ok()?);
        next = next.checked_add((*step).into())?;
    }
    // Entries that overlap are none.
    let apart = fields
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.saturating_add(8) <= *b));
    (apart && entry < wide(image.len())).then_some(Table { fields, entry })
}

/// What an instruction at `at` loads the address of.
fn target(image: &[u8], at: usize, opcode: [u8; 3]) -> Option<u64> {
    let [a, b, c, distance @ ..] = array::<LEA>(image, at)?;
    let end = signed(at.checked_add(LEA)?);
    let target = end.checked_add(i32::from_le_bytes(distance).into())?;
    ([a, b, c] == opcode).then_some(target)?.try_into().ok()
}
