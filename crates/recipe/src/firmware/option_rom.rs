//! Option ROMs: one file, several images, each for another kind of machine.
//!
//! ```text
//!  0     55 AA, length / 512        0x18  offset of "PCIR": … 0x10 length / 512, 0x14 code type, 0x15 bit 7: last
//!  length  55 AA …                  the next image
//! ```
//!
//! PCI Firmware Specification 3.0, section 5.1. An ISA ROM has the first line only.

use super::{part, uefi};
use crate::error::RecipeError;
use crate::kernel::bytes::{u16_at, u32_at};
use crate::object::Part;
use crate::site::Values;

/// What every image begins with.
pub(super) const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// `PCIR`.
const PCIR: u32 = 0x5249_4350;
/// Code type: x86, as a BIOS runs it.
const X86: u8 = 0;
/// Code type: a UEFI image, as its firmware loads it.
const UEFI: u8 = 3;
/// `EFI_PCI_EXPANSION_ROM_HEADER_EFISIGNATURE`, at 4.
const UEFI_SIGNATURE: u32 = 0x0ef1;
/// More images than a ROM has: one per kind of machine.
const MAX_IMAGES: usize = 16;
const BLOCK: usize = 512;

/// An image's header.
struct Header {
    len: usize,
    /// `None` for an ISA ROM.
    code: Option<u8>,
    last: bool,
}

/// The images that x86 can run, and UEFI; `None` if it is no option ROM at all.
pub(super) fn parts(file: &[u8]) -> Result<Option<Vec<Part>>, RecipeError> {
    let mut parts = Vec::new();
    let mut at = 0_usize;
    for number in 0..MAX_IMAGES {
        let Some(image) = file.get(at..).filter(|image| image.starts_with(&SIGNATURE)) else {
            break;
        };
        let Some(header) = header(image) else {
            break;
        };
        let Some(image) = image.get(..header.len) else {
            // A first image that is cut is not known to be one.
            if number == 0 && header.code.is_none() {
                break;
            }
            return Err(RecipeError::Malformed {
                what: "an option ROM's image",
                at: u64::try_from(at).unwrap_or(u64::MAX),
            });
        };
        if header.code.is_none_or(|code| code == X86) {
            parts.push(part("rom", 0, image, Vec::new(), Values::default()));
        }
        if header.code == Some(UEFI) {
            parts.extend(uefi_image(image).map(|image| image.part("efi")));
        }
        if header.last {
            break;
        }
        at = at.saturating_add(header.len);
    }
    Ok((!parts.is_empty()).then_some(parts))
}

/// UEFI specification 2.10, 14.4.2: compression at 0x14, offset of the image at 0x16. Compressed images are not read.
fn uefi_image(image: &[u8]) -> Option<uefi::Loaded> {
    let plain = u32_at(image, 4) == Some(UEFI_SIGNATURE) && u16_at(image, 0x14) == Some(0);
    let file = image.get(usize::from(u16_at(image, 0x16)?)..)?;
    plain.then(|| uefi::pe_image(file)).flatten()
}

fn header(image: &[u8]) -> Option<Header> {
    let structure = u16_at(image, 0x18)
        .and_then(|at| image.get(usize::from(at)..))
        .filter(|structure| u32_at(structure, 0) == Some(PCIR));
    let blocks = |len: u16| usize::from(len).checked_mul(BLOCK).filter(|len| *len > 0);
    let Some(structure) = structure else {
        return Some(Header {
            len: blocks(u16::from(*image.get(2)?))?,
            code: None,
            last: true,
        });
    };
    Some(Header {
        len: blocks(u16_at(structure, 0x10)?)?,
        code: Some(*structure.get(0x14)?),
        last: structure.get(0x15)? & 0x80 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of `blocks` blocks filled with `fill`.
    fn image(blocks: u8, code: u8, last: bool, fill: u8) -> Vec<u8> {
        let mut image = vec![fill; usize::from(blocks) * BLOCK];
        image[..3].copy_from_slice(&[0x55, 0xaa, blocks]);
        image[0x18..0x1a].copy_from_slice(&[0x1c, 0]);
        image[0x1c..0x20].copy_from_slice(b"PCIR");
        image[0x2c..0x2e].copy_from_slice(&[blocks, 0]);
        image[0x30..0x32].copy_from_slice(&[code, if last { 0x80 } else { 0 }]);
        image
    }

    #[test]
    fn every_x86_image_of_a_rom_is_a_part() {
        let file = [
            image(2, 0, false, 1),
            image(3, 1, false, 2),
            image(1, 0, true, 3),
            image(1, 0, true, 4),
        ]
        .concat();
        let parts = parts(&file).unwrap().unwrap();
        let shape: Vec<_> = parts
            .iter()
            .map(|p| (p.bytes.len(), p.bytes[600 % p.bytes.len()]))
            .collect();
        assert_eq!(shape, [(1024, 1), (512, 3)]);
    }

    #[test]
    fn an_isa_rom_is_one_part() {
        let mut file = vec![7; 1536];
        file[..3].copy_from_slice(&[0x55, 0xaa, 2]);
        assert_eq!(parts(&file).unwrap().unwrap()[0].bytes, file[..1024]);
        file.truncate(1023);
        assert_eq!(parts(&file).unwrap(), None, "a file that happens to begin so");
    }

    #[test]
    fn a_cut_rom_is_malformed() {
        let file = [image(2, 0, false, 1), image(3, 0, true, 2)].concat();
        let cut = parts(&file[..file.len() - 1]);
        assert_eq!(
            cut,
            Err(RecipeError::Malformed {
                what: "an option ROM's image",
                at: 1024
            })
        );
    }

    #[test]
    fn max_images_stops_a_rom_that_never_ends() {
        let file = image(1, 0, false, 1).repeat(1000);
        assert_eq!(parts(&file).unwrap().unwrap().len(), MAX_IMAGES);
        let mut endless = image(1, 0, false, 1);
        endless[0x2c..0x2e].copy_from_slice(&[0, 0]);
        assert_eq!(parts(&endless).unwrap(), None, "an image without length");
    }
}
