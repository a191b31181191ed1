//! A module as the ELF file that it is: sections, symbols, relocations.

use crate::error::RecipeError;
use crate::kernel::bytes;
use crate::kernel::elf::Room;

const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
/// More sections than any module has (`-ffunction-sections` is not used for modules): stops a hostile one.
const MAX_SECTIONS: usize = 8192;

/// A section header with what it names.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) size: u64,
    pub(crate) align: u64,
    info: u32,
    /// Empty for `SHT_NOBITS`.
    pub(crate) data: &'a [u8],
}

impl Header<'_> {
    /// `SHF_ALLOC`.
    pub(crate) fn loaded(&self) -> bool {
        self.flags & 2 != 0
    }

    /// `SHF_EXECINSTR`.
    pub(crate) fn executes(&self) -> bool {
        self.flags & 4 != 0
    }
}

/// A symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) function: bool,
    pub(crate) section: u16,
    pub(crate) value: u64,
}

/// A relocation of a section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relocation {
    pub(crate) section: usize,
    pub(crate) offset: u64,
    pub(crate) kind: u32,
    pub(crate) symbol: usize,
    pub(crate) addend: i64,
}

/// The file.
#[derive(Debug)]
pub(crate) struct ModuleElf<'a> {
    pub(crate) sections: Vec<Header<'a>>,
    pub(crate) symbols: Vec<Symbol<'a>>,
    pub(crate) relocations: Vec<Relocation>,
}

/// Whether a relocatable file is a module: it has the section that only modules have. Asked before anything else of
/// the file is, as an object file may do without what a module must have (symbols) and have more of the rest (sections).
pub(crate) fn is_module(file: &[u8]) -> Result<bool, RecipeError> {
    let table = table(file)?;
    let count = usize::from(bytes::u16_at(file, 0x3c).unwrap_or(0));
    // 0 stands for a count that does not fit (System V ABI, "ELF Header"), which no loader of modules understands.
    if count == 0 {
        return Ok(false);
    }
    marked(file, bytes::index(table), count).ok_or(RecipeError::Malformed {
        what: "the section table",
        at: table,
    })
}

fn marked(file: &[u8], table: usize, count: usize) -> Option<bool> {
    let headers = file.get(table..table.checked_add(count.checked_mul(64)?)?)?;
    let names = usize::from(bytes::u16_at(file, 0x3e)?);
    let names = headers.chunks_exact(64).nth(names)?;
    let from = bytes::index(bytes::u64_at(names, 0x18)?);
    let names = file.get(from..from.checked_add(bytes::index(bytes::u64_at(names, 0x20)?))?)?;
    Some(headers.chunks_exact(64).any(|header| {
        let name = bytes::u32_at(header, 0).map_or(0, |at| bytes::index(at.into()));
        string(names, name) == b".gnu.linkonce.this_module"
    }))
}

/// Where the section table is.
fn table(file: &[u8]) -> Result<u64, RecipeError> {
    // Class 64, little-endian; ET_REL, EM_X86_64.
    let ours = file.get(..6) == Some(b"\x7fELF\x02\x01") && file.get(16..20) == Some(&[1, 0, 62, 0]);
    let table = bytes::u64_at(file, 0x28).filter(|_| ours);
    table.ok_or(RecipeError::Other {
        expected: "an x86-64 kernel module",
    })
}

/// Reads a relocatable 64-bit x86 ELF file.
pub(crate) fn read(file: &[u8]) -> Result<ModuleElf<'_>, RecipeError> {
    let table = table(file)?;
    let malformed = |what| RecipeError::Malformed { what, at: table };
    let wrong = || malformed("the section table");
    let count = usize::from(bytes::u16_at(file, 0x3c).ok_or_else(wrong)?);
    if bytes::u16_at(file, 0x3a) != Some(64) || count > MAX_SECTIONS {
        return Err(wrong());
    }
    let mut headers = Vec::with_capacity(count);
    let mut room = Room::of(file);
    for number in 0..count {
        let at = number
            .checked_mul(64)
            .and_then(|o| o.checked_add(bytes::index(table)))
            .ok_or_else(wrong)?;
        let (link, header) = header(file, at).ok_or_else(wrong)?;
        room.take(header.data, bytes::wide(at))?;
        headers.push((link, header));
    }
    let names = usize::from(bytes::u16_at(file, 0x3e).ok_or_else(wrong)?);
    let names = headers.get(names).ok_or_else(wrong)?.1.data;
    let links: Vec<(u32, u32)> = headers.iter().map(|(link, h)| (*link, h.kind)).collect();
    let mut sections = Vec::with_capacity(count);
    for (_, mut section) in headers {
        let at = section.name.parse().unwrap_or(0);
        section.name = String::from_utf8_lossy(string(names, at)).into_owned();
        sections.push(section);
    }
    let symtab = links.iter().position(|(_, kind)| *kind == SHT_SYMTAB);
    let symtab = symtab.and_then(|n| Some((sections.get(n)?, links.get(n)?.0)));
    let (symtab, strings) = symtab.ok_or_else(|| malformed("the symbol table"))?;
    let strings = sections
        .get(bytes::index(strings.into()))
        .map_or(&[][..], |s| s.data);
    let symbols = symtab
        .data
        .chunks_exact(24)
        .filter_map(|s| symbol(s, strings))
        .collect();
    let relocations = relocations(&sections);
    Ok(ModuleElf {
        sections,
        symbols,
        relocations,
    })
}

/// One header with its link; its name is left as the offset, in digits.
fn header(file: &[u8], at: usize) -> Option<(u32, Header<'_>)> {
    let field = |offset: usize| bytes::u64_at(file, at.checked_add(offset)?);
    let half = |offset: usize| bytes::u32_at(file, at.checked_add(offset)?);
    let kind = half(4)?;
    let size = field(0x20)?;
    let from = bytes::index(field(0x18)?);
    let data = if kind == SHT_NOBITS || kind == 0 {
        &[]
    } else {
        file.get(from..from.checked_add(bytes::index(size))?)?
    };
    let header = Header {
        name: half(0)?.to_string(),
        kind,
        flags: field(8)?,
        size,
        align: field(0x30)?,
        info: half(0x2c)?,
        data,
    };
    Some((half(0x28)?, header))
}

fn string(table: &[u8], at: usize) -> &[u8] {
    let rest = table.get(at..).unwrap_or(&[]);
    rest.get(..memchr::memchr(0, rest).unwrap_or(0)).unwrap_or(&[])
}

fn symbol<'a>(fields: &[u8], strings: &'a [u8]) -> Option<Symbol<'a>> {
    Some(Symbol {
        name: string(strings, bytes::index(bytes::u32_at(fields, 0)?.into())),
        function: fields.get(4)? & 0xf == 2,
        section: bytes::u16_at(fields, 6)?,
        value: bytes::u64_at(fields, 8)?,
    })
}

fn relocations(sections: &[Header<'_>]) -> Vec<Relocation> {
    let mut found = Vec::new();
    for table in sections.iter().filter(|s| s.kind == SHT_RELA) {
        let section = bytes::index(table.info.into());
        if !sections.get(section).is_some_and(Header::loaded) {
            continue;
        }
        for fields in table.data.chunks_exact(24) {
            let (Some(offset), Some(info), Some(addend)) = (
                bytes::u64_at(fields, 0),
                bytes::u64_at(fields, 8),
                bytes::u64_at(fields, 16),
            ) else {
                continue;
            };
            let (kind, symbol) = (bytes::low32(info), bytes::index(info >> 32));
            found.push(Relocation {
                section,
                offset,
                kind,
                symbol,
                addend: addend.cast_signed(),
            });
        }
    }
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A module of these sections (type, flags, alignment, size claimed, offset), over a file of `len` bytes.
    pub(crate) fn module(sections: &[(u32, u64, u64, u64, u64)], len: usize) -> Vec<u8> {
        let mut file = vec![0; len.max(64 + 64 * sections.len())];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..20].copy_from_slice(&[1, 0, 62, 0]);
        file[0x28..0x30].copy_from_slice(&64_u64.to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&u16::try_from(sections.len()).unwrap().to_le_bytes());
        for (number, (kind, flags, align, size, offset)) in sections.iter().enumerate() {
            let at = 64 + 64 * number;
            file[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
            for (field, word) in [(8, flags), (0x18, offset), (0x20, size), (0x30, align)] {
                file[at + field..at + field + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        file
    }

    const SYMTAB: (u32, u64, u64, u64, u64) = (SHT_SYMTAB, 0, 8, 0, 0);

    #[test]
    fn max_sections_stops_a_table_without_end() {
        let table = |count| vec![SYMTAB; count];
        assert!(read(&module(&table(MAX_SECTIONS), 0)).is_ok());
        assert!(read(&module(&table(MAX_SECTIONS + 1), 0)).is_err());
    }

    #[test]
    fn sections_that_lie_over_each_other_do_not_multiply_a_file() {
        let whole = |count| [&vec![(1, 2, 8, 4096, 0); count][..], &[SYMTAB]].concat();
        assert!(read(&module(&whole(1), 4096)).is_ok());
        assert!(read(&module(&whole(2), 4096)).is_err());
    }
}
