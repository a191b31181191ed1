//! The image's own relocations, as `handle_relocations` in `arch/x86/boot/compressed/misc.c` reads them.
//!
//! ```text
//!  ELF │ 0 │ 64-bit … │ 0 │ inverse 32-bit … │ 0 │ 32-bit … │      read from the end; each a sign-extended address
//! ```

use super::bytes;
use super::image::Moving;
use crate::site::{Form, Target};

/// The slide is the first unknown of a kernel.
pub(crate) const SLIDE: Target = Target::Unknown(0);

/// Reads the table that follows the ELF file (`elf_len` bytes) in the payload. Empty if there is none: a kernel
/// that cannot be moved.
pub(crate) fn relocations(payload: &[u8], elf_len: usize) -> Vec<Moving> {
    let mut found = Vec::new();
    let mut at = payload.len() & !3;
    for form in [Form::Abs32, Form::Negative32, Form::Abs64] {
        loop {
            let Some(entry) = at.checked_sub(4).filter(|e| *e >= elf_len & !3) else {
                return found;
            };
            at = entry;
            match bytes::i32_at(payload, at) {
                None | Some(0) => break,
                Some(address) => {
                    let va = i64::from(address).cast_unsigned();
                    found.push(Moving {
                        va,
                        form,
                        to: SLIDE,
                        addend: 0,
                    });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_tables_are_read_from_the_end() {
        let words: [u32; 7] = [0, 0x8100_0300, 0, 0x8100_0200, 0, 0x8100_0100, 0x8100_0104];
        let payload: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let found: Vec<_> = relocations(&payload, 0).iter().map(|m| (m.va, m.form)).collect();
        assert_eq!(
            found,
            [
                (0xffff_ffff_8100_0104, Form::Abs32),
                (0xffff_ffff_8100_0100, Form::Abs32),
                (0xffff_ffff_8100_0200, Form::Negative32),
                (0xffff_ffff_8100_0300, Form::Abs64),
            ]
        );
    }

    #[test]
    fn a_table_that_runs_into_the_image_ends_there() {
        let payload = 0x8100_0100_u32.to_le_bytes().repeat(4);
        assert_eq!(relocations(&payload, 8).len(), 2);
    }
}
