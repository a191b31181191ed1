//! The way to the recipes: the one place that knows how they are asked for.

use std::ops::Range;

use nephoscope_recipe::{Object, Part, windows};

/// How many first bytes of a file [`may_hold_code`] wants.
pub(crate) const HEAD: u64 = 4096;

/// Whether a file that starts so can be of a kind that has recipes. Only spares reading what cannot.
pub(crate) fn may_hold_code(head: &[u8], path: &str) -> bool {
    let elf = head.starts_with(b"\x7fELF");
    // PE files, and Linux kernel images with an EFI stub.
    let mz = head.starts_with(b"MZ");
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202.
    let linux = head.get(0x202..0x206) == Some(b"HdrS");
    // A firmware volume: PI specification, volume 3, 3.2.1. In other flash files volumes begin later.
    let volume = head.get(40..44) == Some(b"_FVH");
    let option_rom = head.starts_with(&[0x55, 0xaa]);
    let name = path.rsplit('/').next().unwrap_or(path);
    let module = name.contains(".ko.");
    let firmware = [".bin", ".fd", ".rom", ".img", ".mod"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    elf || mz
        || linux
        || volume
        || option_rom
        || module
        || firmware
        || nephoscope_recipe::is_interpreted(path, head)
}

/// What a file is; `None` if it holds no code.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn recognise(bytes: &[u8], path: &str) -> Result<Option<Object>, String> {
    nephoscope_recipe::recognise(bytes, path).map_err(|error| error.to_string())
}

/// The content windows of a part: hash, and offset in the part. Places that may be rewritten give none.
pub(crate) fn windows(part: &Part) -> Vec<(u64, u32)> {
    let skip: Vec<Range<u32>> = part
        .sites
        .iter()
        .map(|site| site.at..site.at.saturating_add(site.len.into()))
        .collect();
    windows::kept(part.kind, &part.bytes, &skip).collect()
}
