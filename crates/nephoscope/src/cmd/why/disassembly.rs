//! Bytes of a page as instructions. The bytes are hostile: whatever they are, there is text, and no panic.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Formatter, NasmFormatter};

use crate::text::escape;

/// One instruction, or one byte that is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// From the start of the page.
    pub(super) at: usize,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// As an assembler writes it.
    pub(super) text: String,
}

impl Line {
    /// One past its last byte.
    pub(super) fn end(&self) -> usize {
        self.at + self.bytes.len()
    }
}

/// Instructions from one offset up to the first that begins at `to` or later. The page's first byte is at `va`.
pub(super) fn sweep(page: &[u8], va: u64, bits: u32, from: usize, to: usize) -> Vec<Line> {
    let bits = if matches!(bits, 16 | 32) { bits } else { 64 };
    let (mut lines, mut at) = (Vec::new(), from);
    let mut formatter = formatter();
    while at < to.min(page.len()) {
        let rest = page.get(at..).unwrap_or_default();
        let line = one(rest, va, bits, at, &mut formatter);
        at = line.end();
        lines.push(line);
    }
    lines
}

fn one(rest: &[u8], va: u64, bits: u32, at: usize, formatter: &mut NasmFormatter) -> Line {
    let address = va.wrapping_add(u64::try_from(at).unwrap_or(0));
    let mut decoder = Decoder::with_ip(bits, rest, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        let cut = decoder.last_error() == DecoderError::NoMoreBytes;
        let len = if cut { rest.len() } else { 1 };
        let text = if cut {
            "(goes on in the next page)"
        } else {
            "(no instruction)"
        };
        return Line {
            at,
            bytes: rest.iter().take(len).copied().collect(),
            text: text.to_owned(),
        };
    }
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    Line {
        at,
        bytes: rest.iter().take(instruction.len().max(1)).copied().collect(),
        text: escape(&text).into_owned(),
    }
}

fn formatter() -> NasmFormatter {
    let mut formatter = NasmFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_add_leading_zero_to_hex_numbers(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_space_after_operand_separator(true);
    formatter
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(page: &[u8], bits: u32) -> Vec<String> {
        sweep(page, 0x1000, bits, 0, page.len())
            .into_iter()
            .map(|line| line.text)
            .collect()
    }

    #[test]
    fn instructions_are_written_as_nasm_writes_them() {
        let page = [0x48, 0x89, 0x5c, 0x24, 0x08, 0xe9, 0x1b, 0, 0, 0, 0xc3];
        assert_eq!(texts(&page, 64), ["mov [rsp+8], rbx", "jmp 0x1025", "ret"]);
    }

    #[test]
    fn the_width_of_the_code_segment_decides() {
        let page = [0xb8, 0x34, 0x12, 0xc3, 0x90, 0x90];
        assert_eq!(texts(&page, 16).first().unwrap(), "mov ax, 0x1234");
        assert_eq!(texts(&page, 32).first().unwrap(), "mov eax, 0x90c31234");
    }

    #[test]
    fn what_is_no_instruction_is_a_byte_and_what_is_cut_says_so() {
        assert_eq!(texts(&[0x06, 0x90], 64), ["(no instruction)", "nop"]);
        assert_eq!(texts(&[0x90, 0xe8, 0], 64), ["nop", "(goes on in the next page)"]);
    }

    proptest! {
        #[test]
        fn any_bytes_become_lines_without_gaps(
            page in proptest::collection::vec(any::<u8>(), 0..200),
            va: u64,
            bits in prop_oneof![Just(16_u32), Just(32), Just(64), any::<u32>()],
            from in 0_usize..250,
        ) {
            let lines = sweep(&page, va, bits, from, page.len());
            let mut at = from;
            for line in &lines {
                prop_assert_eq!(line.at, at);
                prop_assert!(!line.bytes.is_empty());
                at = line.end();
            }
            prop_assert_eq!(at, page.len().max(from));
        }
    }
}
