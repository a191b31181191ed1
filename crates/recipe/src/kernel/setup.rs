//! The real-mode set-up code, which rewrites two of its own instructions while it runs.
//!
//! ```text
//!  intcall               cmpb %al, at │ je │ movb %al, at │ jmp │ …  int $0            at: the interrupt's number
//!  protected_mode_jump   addl %ebx, at │ jmp │ …  ljmpl $__BOOT_CS, $in_pm32           at: += where it was loaded
//! ```
//!
//! `arch/x86/boot/bioscall.S` and `pmjump.S`. The code is linked at 0, so the addresses in it are offsets in the file;
//! each instruction that writes names the place, and the place must be an instruction of the kind that is expected.

use memchr::memmem;

use super::bytes::{array, u16_at};
use crate::object::{Part, PartKind, Placement};
use crate::site::{Fix, Form, Site, SiteKind, Target, Value, Values};

/// The BIOS services that `arch/x86/boot` asks: video, disk, system, keyboard, clock.
const INTERRUPTS: [u8; 5] = [0x10, 0x13, 0x15, 0x16, 0x1a];
/// `addl %ebx, moffs16`, and what follows the operand: a jump to the next instruction.
const ADD: [u8; 3] = [0x66, 0x01, 0x1e];
const JUMP: [u8; 2] = [0xeb, 0];
/// `ljmpl`.
const FAR_JUMP: [u8; 2] = [0x66, 0xea];

/// The part with what it rewrites.
pub(super) fn part(setup: &[u8]) -> Part {
    let numbers = INTERRUPTS.map(|number| Value::fixed([number]));
    let moved = Fix {
        at: 0,
        form: Form::Abs32,
        to: Target::Own,
        addend: 0,
    };
    let moved = Value {
        fixes: vec![moved],
        ..Value::own()
    };
    let sets = vec![
        std::iter::once(Value::own()).chain(numbers).collect(),
        vec![Value::own(), moved],
    ];
    let mut sites: Vec<Site> = interrupt(setup).into_iter().chain(far_jump(setup)).collect();
    sites.sort_by_key(|site| site.at);
    Part {
        kind: PartKind::BootCode,
        name: "setup".to_owned(),
        link: 0,
        placement: Placement::Anywhere,
        bytes: setup.to_vec(),
        sites,
        values: Values {
            sets,
            ..Values::default()
        },
    }
}

/// The operand of `int` that `intcall` writes.
fn interrupt(setup: &[u8]) -> Option<Site> {
    memmem::find_iter(setup, &[0x38, 0x06]).find_map(|found| {
        let code: [u8; 11] = array(setup, found)?;
        let [.., a, b, 0x74, 0x05, 0xa2, c, d, 0xeb, 0] = code else {
            return None;
        };
        let at = u16::from_le_bytes([a, b]);
        let instruction = array(setup, usize::from(at).checked_sub(1)?)?;
        ([a, b] == [c, d] && instruction == [0xcd, 0]).then(|| site(at, 1, 0))
    })
}

/// The offset in the far jump to protected mode.
fn far_jump(setup: &[u8]) -> Option<Site> {
    memmem::find_iter(setup, &ADD).find_map(|found| {
        let operand = found.checked_add(ADD.len())?;
        let at = u16_at(setup, operand)?;
        let follows = array(setup, operand.checked_add(2)?)?;
        let instruction = array(setup, usize::from(at).checked_sub(FAR_JUMP.len())?)?;
        (follows == JUMP && instruction == FAR_JUMP).then(|| site(at, 4, 1))
    })
}

fn site(at: u16, len: u16, set: u32) -> Site {
    Site {
        at: at.into(),
        len,
        kind: SiteKind::SelfModified,
        set,
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]
mod tests {
    use super::*;
    use crate::compare::Solver;
    use crate::floating::Supposed;

    /// Both functions in 8 KiB of other code: `intcall` with its operand at 0x2ff, `protected_mode_jump` with its at 0x3f2.
    fn setup() -> Vec<u8> {
        let mut setup: Vec<u8> = (0..8192_u32)
            .map(|at| (at.wrapping_mul(37) >> 3) as u8 | 0x80)
            .collect();
        let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x2d4, b"\x38\x06\xff\x02\x74\x05\xa2\xff\x02\xeb\0");
        put(0x2fe, b"\xcd\0");
        put(0x3d0, b"\x66\x01\x1e\xf2\x03\xeb\0");
        put(0x3f0, b"\x66\xea\x22\x3a\0\0\x10\0");
        setup
    }

    fn explains(part: &Part, page: &[u8; 4096], va: u64) -> bool {
        let solver = Solver::default();
        let supposed = Supposed {
            part,
            at: 0,
            va,
            solver: &solver,
        };
        supposed.explains(page, &[(0, 4096)]).is_some()
    }

    #[test]
    fn set_up_code_calls_the_interrupts_that_it_asks_and_no_others() {
        let part = part(&setup());
        let mut page: [u8; 4096] = part.bytes[..4096].try_into().unwrap();
        let legal: Vec<u8> = (0..=255)
            .filter(|number| {
                page[0x2ff] = *number;
                explains(&part, &page, 0x1_0000)
            })
            .collect();
        assert_eq!(legal, [0, 0x10, 0x13, 0x15, 0x16, 0x1a]);
    }

    #[test]
    fn the_jump_to_protected_mode_moves_with_the_code() {
        let part = part(&setup());
        let mut page: [u8; 4096] = part.bytes[..4096].try_into().unwrap();
        assert!(explains(&part, &page, 0x9_0000), "not moved yet");
        page[0x3f2..0x3f6].copy_from_slice(&0x9_3a22_u32.to_le_bytes());
        assert!(explains(&part, &page, 0x9_0000));
        assert!(!explains(&part, &page, 0x1_0000), "moved elsewhere");
    }

    #[test]
    fn a_place_that_is_no_such_instruction_is_none() {
        for at in [0x2d6, 0x2db, 0x2fe, 0x3d3, 0x3d5, 0x3f1] {
            let mut setup = setup();
            setup[at] ^= 1;
            assert_eq!(part(&setup).sites.len(), 1, "{at:#x}");
        }
        assert_eq!(part(&[]).sites, []);
        assert_eq!(part(&setup()[..0x3f1]).sites.len(), 1);
    }
}
