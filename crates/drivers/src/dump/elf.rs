//! ELF cores, as QEMU's `dump-guest-memory` writes them (QEMU `dump/dump.c`, `target/i386/arch_dump.c`): memory by
//! guest-physical address in `PT_LOAD` segments, and the registers of each CPU in a note `QEMU`.

use super::DumpError;
use super::pieces::{MAX_PIECES, Piece};
use crate::mapped_file::MappedFile;

pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// A core file (`ET_CORE`).
const CORE: u16 = 4;
const I386: u16 = 3;
const X86_64: u16 = 62;
const AARCH64: u16 = 183;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// There are more segments than the header has room to say: the first section's `sh_info` has the number (`PN_XNUM`).
const MANY: u16 = 0xffff;
/// Notes are read up to this length, all segments of them together; QEMU writes about 1 KiB for each CPU.
pub(super) const MAX_NOTES: u64 = 8 << 20;
/// The CPUs whose registers are kept, more than QEMU gives a PC.
pub(super) const MAX_CPUS: usize = 8192;

/// Which guest it is of, by the machine that the core is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// x86, not in long mode when the core was written.
    I386,
    /// x86 in long mode.
    X86_64,
    /// AArch64.
    Aarch64,
    /// Another, by its number in ELF (`e_machine`).
    Other(u16),
}

/// Registers of one CPU, as far as a core has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
}

/// What an ELF core has.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) machine: Machine,
    pub(super) pieces: Vec<Piece>,
    pub(super) cpus: Vec<CpuRegisters>,
    /// Bytes of notes that may still be read.
    notes_left: u64,
}

/// Reads one of fixed places, little-endian.
struct Fields<'a> {
    bytes: &'a [u8],
    /// Where they are in the file.
    at: u64,
    wide: bool,
}

impl Fields<'_> {
    fn number(&self, at: usize, size: usize) -> Result<u64, DumpError> {
        let malformed = DumpError::Malformed {
            what: "an ELF structure that is shorter than it has to be",
            at: self.at,
        };
        let bytes = at
            .checked_add(size)
            .and_then(|end| self.bytes.get(at..end))
            .ok_or(malformed)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn u16(&self, at: usize) -> Result<u16, DumpError> {
        Ok(u16::try_from(self.number(at, 2)?).unwrap_or(0))
    }

    fn u32(&self, at: usize) -> Result<u32, DumpError> {
        Ok(u32::try_from(self.number(at, 4)?).unwrap_or(0))
    }

    /// A field at one place in 64-bit files and at another in 32-bit ones, of the file's width.
    fn word(&self, wide: usize, narrow: usize) -> Result<u64, DumpError> {
        if self.wide {
            self.number(wide, 8)
        } else {
            self.number(narrow, 4)
        }
    }
}

/// Copies bytes of the file.
fn part(file: &MappedFile, at: u64, len: usize, what: &'static str) -> Result<Vec<u8>, DumpError> {
    let mut bytes = vec![0; len];
    file.read(at, &mut bytes)
        .ok_or(DumpError::Malformed { what, at })?;
    Ok(bytes)
}

/// Reads a core's headers and notes.
pub(super) fn core(file: &MappedFile) -> Result<Core, DumpError> {
    let malformed = |what, at| DumpError::Malformed { what, at };
    let ident = part(file, 0, 16, "an ELF header that the file ends in")?;
    let wide = match ident.get(4..6) {
        Some([1, 1]) => false,
        Some([2, 1]) => true,
        _ => {
            return Err(malformed(
                "neither a 32-bit nor a 64-bit little-endian ELF file",
                4,
            ));
        }
    };
    let header = part(
        file,
        0,
        if wide { 64 } else { 52 },
        "an ELF header that the file ends in",
    )?;
    let fields = Fields {
        bytes: &header,
        at: 0,
        wide,
    };
    if fields.u16(16)? != CORE {
        return Err(malformed("an ELF file that is no core", 16));
    }
    let machine = match fields.u16(18)? {
        I386 => Machine::I386,
        X86_64 => Machine::X86_64,
        AARCH64 => Machine::Aarch64,
        other => Machine::Other(other),
    };
    let table = fields.word(32, 28)?;
    let sections = fields.word(40, 32)?;
    let (size, count) = (
        fields.u16(if wide { 54 } else { 42 })?,
        fields.u16(if wide { 56 } else { 44 })?,
    );
    if size != if wide { 56 } else { 32 } {
        return Err(malformed("segment headers of an unknown size", 0));
    }
    let count = if count == MANY {
        let section = part(
            file,
            sections,
            if wide { 64 } else { 40 },
            "a section header that the file does not have",
        )?;
        let fields = Fields {
            bytes: &section,
            at: sections,
            wide,
        };
        fields.u32(if wide { 44 } else { 28 })? as usize
    } else {
        usize::from(count)
    };
    if count > MAX_PIECES {
        return Err(DumpError::TooMany);
    }
    let mut core = Core {
        machine,
        pieces: Vec::new(),
        cpus: Vec::new(),
        notes_left: MAX_NOTES,
    };
    for number in 0..count as u64 {
        let at = table.saturating_add(number * u64::from(size));
        let bytes = part(
            file,
            at,
            usize::from(size),
            "a segment header that the file does not have",
        )?;
        segment(
            file,
            &Fields {
                bytes: &bytes,
                at,
                wide,
            },
            &mut core,
        )?;
    }
    Ok(core)
}

fn segment(file: &MappedFile, fields: &Fields<'_>, core: &mut Core) -> Result<(), DumpError> {
    let at = fields.word(8, 4)?;
    let len = fields.word(32, 16)?;
    match fields.u32(0)? {
        LOAD => core.pieces.push(Piece {
            gpa: fields.word(24, 12)?,
            at,
            len,
            zeros: fields.word(40, 20)?.saturating_sub(len),
        }),
        NOTE => {
            let len = len.min(core.notes_left);
            core.notes_left -= len;
            let len = usize::try_from(len).unwrap_or(0);
            let bytes = part(file, at, len, "notes that the file does not have")?;
            core.cpus.extend(cpus(&bytes));
            core.cpus.truncate(MAX_CPUS);
        }
        _ => {}
    }
    Ok(())
}

/// The registers in notes `QEMU` of version 1: general registers, ten segment registers of 24 bytes, CR0 to CR4.
fn cpus(notes: &[u8]) -> Vec<CpuRegisters> {
    const REGISTERS: usize = 8 + 18 * 8;
    const CONTROLS: usize = REGISTERS + 10 * 24;
    let mut found = Vec::new();
    let mut rest = notes;
    while let Some((name, body, next)) = note(rest) {
        rest = next;
        let fields = Fields {
            bytes: body,
            at: 0,
            wide: true,
        };
        let control = |number: usize| fields.number(CONTROLS + number * 8, 8);
        if name == b"QEMU\0"
            && fields.u32(0) == Ok(1)
            && let (Ok(cr0), Ok(cr3), Ok(cr4)) = (control(0), control(3), control(4))
        {
            found.push(CpuRegisters { cr0, cr3, cr4 });
        }
    }
    found
}

/// The first note's name and contents, and what follows it. Both are padded to four bytes.
fn note(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let size = |at: usize| {
        let raw = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*raw)).ok()
    };
    let (name_len, body_len) = (size(0)?, size(4)?);
    let body_at = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
    let end = body_at.checked_add(body_len)?;
    let name = bytes.get(12..12 + name_len)?;
    let body = bytes.get(body_at..end)?;
    let next = bytes.get(end.checked_next_multiple_of(4)?..).unwrap_or_default();
    Some((name, body, next))
}
