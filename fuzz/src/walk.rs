//! The page walk against a twin that is unrolled by hand, in every mode, on tables of any words.

use arbitrary::Unstructured;
use nephoscope_guest::{Gva, Root};
use nephoscope_isa::Walker;

use crate::memory::Sparse;
use crate::twin::{Kind, PHYSICAL_BITS, ROOT, Twin};

/// The mode that a byte stands for.
pub(crate) fn kind(byte: u8) -> Kind {
    match byte % 5 {
        0 => Kind::Five,
        1 => Kind::Four,
        2 => Kind::Pae,
        3 => Kind::Classic,
        _ => Kind::Aarch64,
    }
}

/// An address whose index is `slot` on each level in turn, or any.
fn address(kind: Kind, slots: &[u64], input: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    let pick: u8 = input.arbitrary()?;
    if slots.is_empty() || pick >= 0xf0 {
        return input.arbitrary();
    }
    let (shifts, sign): (&[u32], _) = match kind {
        Kind::Five => (&[48, 39, 30, 21, 12], Some(56)),
        Kind::Four | Kind::Aarch64 => (&[39, 30, 21, 12], Some(47)),
        Kind::Pae => (&[30, 21, 12], None),
        Kind::Classic => (&[22, 12], None),
    };
    let mut va = u64::from(input.arbitrary::<u16>()?) & 0xfff;
    for shift in shifts {
        let slot = slots[usize::from(input.arbitrary::<u8>()?) % slots.len()];
        va |= slot << shift;
    }
    Ok(match sign {
        Some(sign) if va >> sign & 1 == 1 => va | u64::MAX << sign,
        Some(_) => va,
        None => va & 0xffff_ffff,
    })
}

/// Translates up to eight addresses both ways.
pub fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

fn check(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let kind = kind(input.arbitrary()?);
    let nxe: bool = input.arbitrary()?;
    let memory = Sparse::read_from(input)?;
    let slots: Vec<u64> = memory.slots().collect();
    let walker = Walker::new(kind.mode(nxe), &memory);
    let twin = Twin {
        memory: &memory,
        physical_bits: u32::from(PHYSICAL_BITS),
        nxe,
    };
    for _ in 0..8 {
        let va = address(kind, &slots, input)?;
        let ours = walker.translate(Root(ROOT), Gva(va)).ok().map(|t| {
            let p = t.permissions;
            (t.gpa.0, t.size_bytes, p.write, p.user, p.execute_user)
        });
        assert_eq!(ours, kind.translate(&twin, va), "{kind:?} at {va:#x}");
    }
    Ok(())
}
