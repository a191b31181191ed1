//! The little that the patching rules need to know of x86 instructions, and the kernel's own no-ops.

use iced_x86::{Decoder, DecoderOptions};

/// `BYTES_NOP1` to `BYTES_NOP11` for 64-bit kernels: `arch/x86/include/asm/nops.h`.
const NOPS: [&[u8]; 11] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

pub(crate) const CALL: u8 = 0xe8;
pub(crate) const JMP32: u8 = 0xe9;
pub(crate) const JMP8: u8 = 0xeb;
pub(crate) const INT3: u8 = 0xcc;
pub(crate) const RET: u8 = 0xc3;
pub(crate) const NOP: u8 = 0x90;

/// The kernel's one-instruction no-op of this length, 1 to 11.
pub(crate) fn nop(len: usize) -> Option<&'static [u8]> {
    NOPS.get(len.checked_sub(1)?).copied()
}

/// One decoded instruction, in the kernel's terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn {
    pub(crate) len: usize,
    /// The first two opcode bytes, after prefixes.
    pub(crate) opcode: [u8; 2],
    pub(crate) first_prefix: Option<u8>,
    /// Offset and size of the immediate (a branch's displacement counts as one).
    pub(crate) immediate: Option<(usize, usize)>,
    /// Offset and size of a rip-relative displacement.
    pub(crate) rip_relative: Option<(usize, usize)>,
}

impl Insn {
    /// `None`: not an instruction, or cut off.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let window = bytes.get(..bytes.len().min(15))?;
        let mut decoder = Decoder::new(64, window, DecoderOptions::NONE);
        let insn = decoder.decode();
        if insn.is_invalid() {
            return None;
        }
        let offsets = decoder.get_constant_offsets(&insn);
        let (prefixes, first_prefix) = prefixes(window);
        let byte = |at: usize| window.get(at).copied().unwrap_or(0);
        Some(Self {
            len: insn.len(),
            opcode: [byte(prefixes), byte(prefixes.saturating_add(1))],
            first_prefix,
            immediate: offsets
                .has_immediate()
                .then(|| (offsets.immediate_offset(), offsets.immediate_size())),
            rip_relative: (offsets.has_displacement() && insn.is_ip_rel_memory_operand())
                .then(|| (offsets.displacement_offset(), offsets.displacement_size())),
        })
    }

    /// `insn_is_nop` of 6.7 and later: NOP and NOPL, but no `rep nop`.
    pub(crate) fn is_nop(&self) -> bool {
        (self.opcode[0] == NOP && self.first_prefix != Some(0xf3)) || self.opcode == [0x0f, 0x1f]
    }

    /// `jcc rel32`.
    pub(crate) fn is_jcc32(&self) -> bool {
        self.opcode[0] == 0x0f && self.opcode[1] & 0xf0 == 0x80
    }

    /// A relative branch: `jcc`, `jmp` or `call`.
    pub(crate) fn is_relative_branch(&self) -> bool {
        self.is_jcc32() || matches!(self.opcode[0], 0x70..=0x7f | JMP8 | JMP32 | CALL)
    }
}

/// How many bytes of legacy and REX prefixes, and the first legacy one.
fn prefixes(bytes: &[u8]) -> (usize, Option<u8>) {
    let legacy = bytes
        .iter()
        .take_while(|b| {
            matches!(
                b,
                0x66 | 0x67 | 0xf2 | 0xf3 | 0xf0 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65
            )
        })
        .count();
    let rex = usize::from(bytes.get(legacy).is_some_and(|b| b & 0xf0 == 0x40));
    (
        legacy.saturating_add(rex),
        bytes.first().copied().filter(|_| legacy > 0),
    )
}

/// `optimize_nops` up to 6.6: runs of one-byte no-ops become the longest no-ops, at most 8 bytes each.
pub(crate) fn optimise_short_nops(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(insn) = bytes.get(at..).and_then(Insn::decode) {
        let run = bytes.iter().skip(at).take_while(|b| **b == NOP).count();
        if insn.len == 1 && run > 1 {
            fill_with_nops(bytes, at, run, 8);
        }
        at = at.saturating_add(if insn.len == 1 && run > 0 { run } else { insn.len });
        if at >= bytes.len() {
            return;
        }
    }
}

/// Writes no-ops of at most `longest` bytes over a range.
pub(crate) fn fill_with_nops(bytes: &mut [u8], at: usize, len: usize, longest: usize) {
    let mut left = len;
    let mut at = at;
    while left > 0 {
        let this = left.min(longest);
        let (Some(nop), Some(into)) = (nop(this), bytes.get_mut(at..at.saturating_add(this))) else {
            return;
        };
        into.copy_from_slice(nop);
        at = at.saturating_add(this);
        left = left.saturating_sub(this);
    }
}

/// `optimize_nops` of 6.7 and later: a run of any no-ops becomes one instruction, a jump if it is long.
pub(crate) fn optimise_any_nops(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let Some(insn) = bytes.get(at..).and_then(Insn::decode) else {
            return;
        };
        let mut next = at.saturating_add(insn.len);
        if insn.is_nop() {
            if next == bytes.len() {
                return;
            }
            while next < bytes.len() {
                match bytes.get(next..).and_then(Insn::decode) {
                    Some(more) if more.is_nop() => next = next.saturating_add(more.len),
                    _ => break,
                }
            }
            one_nop(bytes, at, next.saturating_sub(at));
        }
        at = next;
    }
}

/// `add_nop` of 6.7 and later.
fn one_nop(bytes: &mut [u8], at: usize, len: usize) {
    let Some(into) = bytes.get_mut(at..at.saturating_add(len)) else {
        return;
    };
    if let Some(nop) = nop(len) {
        into.copy_from_slice(nop);
        return;
    }
    into.fill(INT3);
    let jump: [u8; 5] = match u8::try_from(len.saturating_sub(2)) {
        Ok(distance) if len < 128 => [JMP8, distance, INT3, INT3, INT3],
        _ => {
            let [a, b, c, d] = u32::try_from(len.saturating_sub(5)).unwrap_or(0).to_le_bytes();
            [JMP32, a, b, c, d]
        }
    };
    if let Some(head) = into.get_mut(..5) {
        head.copy_from_slice(&jump);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_one_byte_no_ops_becomes_eight_byte_ones_in_old_kernels() {
        let mut bytes = vec![0x90; 11];
        optimise_short_nops(&mut bytes);
        assert_eq!(bytes, [NOPS[7], NOPS[2]].concat());
    }

    #[test]
    fn a_run_of_one_byte_no_ops_becomes_one_instruction_in_new_kernels() {
        let mut bytes = vec![0x90; 11];
        optimise_any_nops(&mut bytes);
        assert_eq!(bytes, NOPS[10]);
        let mut long = vec![0x90; 14];
        optimise_any_nops(&mut long);
        assert_eq!(long[..4], [JMP8, 12, INT3, INT3]);
    }

    #[test]
    fn other_instructions_are_left_alone() {
        let mut bytes = vec![0x48, 0x89, 0xc3, 0x90, 0x90, 0xc3];
        let mut new = bytes.clone();
        optimise_short_nops(&mut bytes);
        assert_eq!(bytes, [0x48, 0x89, 0xc3, 0x66, 0x90, 0xc3]);
        optimise_any_nops(&mut new);
        assert_eq!(new, bytes);
    }

    #[test]
    fn a_pause_is_not_a_no_op() {
        assert!(!Insn::decode(&[0xf3, 0x90]).unwrap().is_nop());
    }
}
