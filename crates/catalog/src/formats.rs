//! The way to the recipes: the one place that knows how they are asked for.

use nephoscope_recipe::{Facts, FilePage, Load, Object, ObjectKind, Part, PartKind, Placement};

/// How many first bytes of a file [`may_hold_code`] wants.
pub(crate) const HEAD: u64 = 4096;

/// Whether a file that starts so can be of a kind that has recipes. Only spares reading what cannot.
pub(crate) fn may_hold_code(head: &[u8], path: &str) -> bool {
    let elf = head.starts_with(b"\x7fELF");
    // PE files, and Linux kernel images with an EFI stub.
    let mz = head.starts_with(b"MZ");
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202.
    let linux = head.get(0x202..0x206) == Some(b"HdrS");
    let option_rom = head.starts_with(&[0x55, 0xaa]);
    let name = path.rsplit('/').next().unwrap_or(path);
    let module = name.contains(".ko.");
    let firmware = [".bin", ".fd", ".rom", ".img", ".mod"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    elf || mz || linux || option_rom || module || firmware
}

/// What a file is; `None` if it holds no code.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn recognise(bytes: &[u8], path: &str) -> Result<Option<Object>, String> {
    let _ = path;
    stand_in(bytes)
}

/// The content windows of a part: hash, and offset in the part.
pub(crate) fn windows(part: &Part) -> impl Iterator<Item = (u64, u32)> + '_ {
    (0u32..)
        .zip(part.bytes.chunks(512))
        .filter(|(_, w)| w.len() == 512)
        .filter_map(|(n, w)| {
            let hash = u64::from_le_bytes(*blake3::hash(w).as_bytes().first_chunk::<8>()?);
            Some((hash, n * 512))
        })
}

/// ELF64 alone, until the recipes can be asked.
fn stand_in(bytes: &[u8]) -> Result<Option<Object>, String> {
    if !bytes.starts_with(b"\x7fELF\x02") {
        return Ok(None);
    }
    let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk::<8>()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk::<2>()?));
    let header = || {
        Some((
            u64_at(0x20)?,
            u16_at(0x36)?,
            u16_at(0x38)?,
            u16_at(0x10)?,
            u64_at(0x18)?,
        ))
    };
    let (phoff, phsize, phnum, kind, entry) = header().ok_or("ELF header truncated")?;
    let mut object = Object {
        kind: if kind == 2 {
            ObjectKind::Executable
        } else {
            ObjectKind::SharedObject
        },
        facts: Facts {
            entry,
            ..Facts::default()
        },
        loads: Vec::new(),
        pages: Vec::new(),
        parts: Vec::new(),
    };
    for n in 0..usize::from(phnum) {
        let at = usize::try_from(phoff)
            .map_err(|e| e.to_string())?
            .saturating_add(n * usize::from(phsize));
        let field = |off: usize| at.checked_add(off).and_then(u64_at);
        let read = || Some((field(0)?, field(8)?, field(16)?, field(32)?, field(40)?));
        let (head, offset, va, file_len, mem_len) = read().ok_or("program header truncated")?;
        if head & 0xffff_ffff != 1 {
            continue;
        }
        let execute = head >> 32 & 1 == 1;
        object.loads.push(Load {
            va,
            offset,
            file_len,
            mem_len,
            execute,
            write: head >> 33 & 1 == 1,
        });
        let start = usize::try_from(offset & !4095).map_err(|e| e.to_string())?;
        let end = usize::try_from(offset.saturating_add(file_len)).map_err(|e| e.to_string())?;
        let end = end.div_ceil(4096).saturating_mul(4096).min(bytes.len());
        let part = bytes.get(start..end).ok_or("segment past the end")?;
        for (number, page) in
            (u32::try_from(start / 4096).map_err(|e| e.to_string())?..).zip(part.chunks(4096))
        {
            let mut whole = page.to_vec();
            whole.resize(4096, 0);
            let va = (va & !4095) + (u64::from(number) * 4096 - start as u64);
            object.pages.push(FilePage {
                digest: *blake3::hash(&whole).as_bytes(),
                number,
                va,
                execute,
            });
        }
        if execute {
            object.parts.push(Part {
                kind: PartKind::UserText,
                name: "text".to_owned(),
                link: va & !4095,
                placement: Placement::Aligned(4096),
                bytes: part.to_vec(),
                sites: Vec::new(),
                values: nephoscope_recipe::Values::default(),
            });
        }
    }
    Ok(Some(object))
}
