//! The tables of facts, one file per architecture's family of modes.

mod aarch64;
mod i386;
mod i386_pae;
mod x86_64;

pub(crate) use aarch64::AARCH64_4K_48;
pub(crate) use i386::{I386, I386_PSE};
pub(crate) use i386_pae::I386_PAE;
pub(crate) use x86_64::{X86_64_4_LEVEL, X86_64_5_LEVEL};

use crate::facts::{Denials, Test, bits};

/// Present: bit 0 in every x86 mode.
const PRESENT: Test = Test::set(0);
/// Accessed and dirty: bits 5 and 6 of the entry that maps the page.
const ACCESSED: Test = Test::set(5);
const DIRTY: Test = Test::set(6);
/// Page size: bit 7 of a PDE or PDPTE.
const PS: u8 = 7;
/// Global: bit 8 of the entry that maps the page.
const GLOBAL: Test = Test::set(8);
/// Execute disable: bit 63.
const XD: u8 = 63;

/// R/W and U/S (bits 1 and 2) allow when set.
const READ_WRITE_USER: Denials = Denials {
    write: Test::clear(1),
    user: Test::clear(2),
    ..Denials::NONE
};
/// The same with XD, which denies when set.
const READ_WRITE_USER_XD: Denials = Denials {
    execute_user: Test::set(XD),
    execute_supervisor: Test::set(XD),
    ..READ_WRITE_USER
};

/// What a CPU writes (accessed) or an operating system sets on one side only (XD) in page-table isolation.
const ISOLATION_IGNORES: u64 = bits(XD, XD) | bits(5, 5);
