//! Another encoding of the same instruction.
//!
//! x86 has two opcodes for a move between registers, one for each direction: `89 /r` writes the register in the
//! r/m field, `8b /r` writes the one in the reg field. With the fields swapped (and REX.R with REX.B) both say the same, in
//! the same number of bytes (Intel SDM Vol. 2, MOV). So a program can be patched and go on as before.

use iced_x86::{Code, Decoder, DecoderOptions, OpKind};

/// A patch that changes no behaviour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Offset of the first changed byte in the function.
    pub offset: usize,
    /// The bytes before.
    pub before: Vec<u8>,
    /// The bytes after; as many.
    pub after: Vec<u8>,
}

/// The first 64-bit move between registers in the straight-line beginning of `function`, in its other encoding.
/// Instructions after the first branch may never run, and are not looked at.
pub fn first_move(function: &[u8]) -> Option<Patch> {
    let mut decoder = Decoder::new(64, function, DecoderOptions::NONE);
    while decoder.can_decode() {
        let offset = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() || instruction.flow_control() != iced_x86::FlowControl::Next {
            return None;
        }
        let is_move = instruction.code() == Code::Mov_rm64_r64 && instruction.op0_kind() == OpKind::Register;
        let before = function.get(offset..offset.checked_add(instruction.len())?)?;
        if let (true, [rex, 0x89, fields]) = (is_move, before) {
            let swapped = 0xc0 | (fields & 0x07) << 3 | (fields >> 3) & 0x07;
            let rex_swapped = (rex & !0x05) | (rex & 0x01) << 2 | (rex & 0x04) >> 2;
            return Some(Patch {
                offset,
                before: before.to_vec(),
                after: vec![rex_swapped, 0x8b, swapped],
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::first_move;

    #[test]
    fn the_patched_move_still_says_the_same() {
        // push rbp; mov r13, rdi; ret
        let patch = first_move(&[0x55, 0x49, 0x89, 0xfd, 0xc3]).unwrap();
        assert_eq!(
            (patch.offset, patch.before.as_slice()),
            (1, [0x49, 0x89, 0xfd].as_slice())
        );
        assert_ne!(patch.before, patch.after);
        let text = |bytes: &[u8]| Decoder::new(64, bytes, DecoderOptions::NONE).decode().to_string();
        assert_eq!(text(&patch.before), text(&patch.after));
    }

    #[test]
    fn a_move_behind_a_branch_is_left_alone() {
        assert_eq!(first_move(&[0x74, 0x00, 0x48, 0x89, 0xfb, 0xc3]), None);
    }
}
