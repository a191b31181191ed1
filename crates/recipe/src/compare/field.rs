//! Fields as numbers, and what an unknown can be.

use crate::kernel::bytes::low32;
use crate::site::{Fix, Form, Site, Unknown, Values};

/// What is known of a field.
pub(super) enum Field {
    /// It must hold these bytes, as many as its form has.
    Is([u8; 8]),
    /// It holds what makes this unknown that.
    Solved(u16, u64),
    /// What it holds is legal.
    Accepted,
    /// Nobody can tell yet.
    Untold,
}

pub(super) fn mark(free: &mut [bool], fix: &Fix) {
    free.iter_mut()
        .skip(usize::from(fix.at))
        .take(fix.form.len())
        .for_each(|f| *f = true);
}

pub(super) fn site_end(site: &Site) -> i64 {
    i64::from(site.at).saturating_add(i64::from(site.len))
}

/// A field's bytes as a number.
pub(super) fn number(bytes: &[u8], form: Form) -> Option<u64> {
    let mut wide = [0; 8];
    for (into, from) in wide.iter_mut().zip(bytes.get(..form.len())?) {
        *into = *from;
    }
    Some(u64::from_le_bytes(wide))
}

pub(super) fn compute(form: Form, base: u64, to: u64, place: u64) -> [u8; 8] {
    match form {
        Form::Abs64 | Form::Abs32 | Form::Abs8 => base.wrapping_add(to),
        Form::Negative32 => base.wrapping_sub(to),
        Form::Pc24 | Form::Pc32 | Form::Pc64 => base.wrapping_add(to).wrapping_sub(place),
        Form::Segment16 => base.wrapping_add(to >> 4),
    }
    .to_le_bytes()
}

/// The low 32 bits, sign-extended.
pub(super) fn sign_extend(value: u64) -> u64 {
    i64::from(low32(value).cast_signed()).cast_unsigned()
}

/// Whether an address is listed.
pub(super) fn in_list(values: &Values, list: u16, target: u64) -> bool {
    let Some(list) = values.lists.get(usize::from(list)) else {
        return false;
    };
    let offset = u32::try_from(target.wrapping_sub(values.lists_from));
    offset.is_ok_and(|offset| list.binary_search(&offset).is_ok())
}

/// Whether an unknown can be this at all.
pub(super) fn plausible(about: &Unknown, value: u64) -> bool {
    const MIB2: u64 = 0x20_0000;
    // The kernel and its modules live in the top 2 GiB (`Documentation/arch/x86/x86_64/mm.rst`).
    const MODULES: u64 = 0xffff_ffff_8000_0000;
    match about {
        Unknown::Slide => value.is_multiple_of(MIB2) && value < 0x4000_0000,
        Unknown::Section { align, per_cpu, .. } => {
            let aligned = value.is_multiple_of((*align).max(1));
            aligned && (*per_cpu || value >= MODULES)
        }
        // Data of another module.
        Unknown::Symbol(_) => value >= MODULES,
        // Copies begin where their alignment allows, which is 16 at least.
        Unknown::Distance(_) => value.is_multiple_of(16),
        Unknown::RealModeBase => value.is_multiple_of(4096) && value < 0x10_0000,
        Unknown::RuntimePointer(name) if name == "USER_PTR_MAX" => {
            // With 4 levels, with 5, and with address masking: `arch/x86/kernel/cpu/common.c`.
            [0x7fff_ffff_f000, 0xff_ffff_ffff_f000, 0x7fff_ffff_ffff_f000].contains(&value)
        }
        // A boot-time allocation: `SMP_CACHE_BYTES`.
        Unknown::RuntimePointer(_) => value >> 56 == 0xff && value.is_multiple_of(64),
        Unknown::RuntimeShift(_) => (1..64).contains(&value),
    }
}
