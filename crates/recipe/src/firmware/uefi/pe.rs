//! PE32 and PE32+ images.

use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_BASERELOC, IMAGE_NT_OPTIONAL_HDR32_MAGIC, IMAGE_NT_OPTIONAL_HDR64_MAGIC,
    IMAGE_SUBSYSTEM_EFI_APPLICATION, IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER, IMAGE_SUBSYSTEM_EFI_ROM,
    IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER, ImageDosHeader, ImageNtHeaders32, ImageNtHeaders64, Subsystem,
};
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader, optional_header_magic};

use super::image::{Loaded, Piece};
use crate::kernel::bytes::index;

/// What a UEFI image says that it is for.
const SUBSYSTEMS: [Subsystem; 4] = [
    IMAGE_SUBSYSTEM_EFI_APPLICATION,
    IMAGE_SUBSYSTEM_EFI_BOOT_SERVICE_DRIVER,
    IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER,
    IMAGE_SUBSYSTEM_EFI_ROM,
];

/// The image in this file, loaded; `None` if there is none.
pub(in crate::firmware) fn loaded(file: &[u8]) -> Option<Loaded> {
    match optional_header_magic(file).ok()? {
        IMAGE_NT_OPTIONAL_HDR32_MAGIC => lay_out::<ImageNtHeaders32>(file),
        IMAGE_NT_OPTIONAL_HDR64_MAGIC => lay_out::<ImageNtHeaders64>(file),
        _ => None,
    }
}

/// The same, if it says that it is for UEFI: other PE files are loaded by other rules.
pub(in crate::firmware) fn application(file: &[u8]) -> Option<Loaded> {
    let subsystem = match optional_header_magic(file).ok()? {
        IMAGE_NT_OPTIONAL_HDR32_MAGIC => subsystem::<ImageNtHeaders32>(file),
        IMAGE_NT_OPTIONAL_HDR64_MAGIC => subsystem::<ImageNtHeaders64>(file),
        _ => None,
    };
    SUBSYSTEMS.contains(&subsystem?).then(|| loaded(file)).flatten()
}

fn subsystem<Pe: ImageNtHeaders>(file: &[u8]) -> Option<Subsystem> {
    let mut at = ImageDosHeader::parse(file).ok()?.nt_headers_offset().into();
    let (headers, _) = Pe::parse(file, &mut at).ok()?;
    Some(headers.optional_header().subsystem())
}

fn lay_out<Pe: ImageNtHeaders>(file: &[u8]) -> Option<Loaded> {
    let mut at = ImageDosHeader::parse(file).ok()?.nt_headers_offset().into();
    let (headers, directories) = Pe::parse(file, &mut at).ok()?;
    let sections = headers.sections(file, at).ok()?;
    let optional = headers.optional_header();
    let head = file.get(..index(optional.size_of_headers().into()))?;
    let mut pieces = vec![Piece { at: 0, bytes: head }];
    for section in sections.iter() {
        let (at, raw) = (
            section.virtual_address.get(LE),
            section.pointer_to_raw_data.get(LE),
        );
        let raw_len = section.size_of_raw_data.get(LE);
        // A virtual size of none, or one that is larger than what there is, means all of it.
        let len = match section.virtual_size.get(LE) {
            0 => raw_len,
            len => len.min(raw_len),
        };
        let from = index(raw.into());
        pieces.push(Piece {
            at: at.into(),
            bytes: file.get(from..from.checked_add(index(len.into()))?)?,
        });
    }
    let relocations = directories
        .get(IMAGE_DIRECTORY_ENTRY_BASERELOC)
        .map_or(0..0, |directory| {
            let from = u64::from(directory.virtual_address.get(LE));
            from..from.saturating_add(directory.size.get(LE).into())
        });
    Loaded::lay_out(optional.image_base(), &pieces, relocations, 0)
}
