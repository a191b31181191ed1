//! Firmware, option ROMs and what is packed in them.
//!
//! ```text
//!  55 AA …                  option ROM: its images, each as it is copied
//!  MZ … PE, for UEFI        a boot loader, as it is once loaded
//!  _FVH                     UEFI flash: its images, each as it is once loaded
//!  … far jump at the end    system BIOS: the image, and SeaBIOS's initialisation code, which moves itself
//! ```
//!
//! Firmware runs in place and in copies of itself, so its parts can lie anywhere.

mod bios;
mod option_rom;
mod seabios;
mod uefi;

use crate::error::RecipeError;
use crate::object::{Facts, Object, ObjectKind, Part, PartKind, Placement};
use crate::site::{Site, Values};

/// The largest firmware image: flash parts of PCs are 32 MiB at most. It stops a file that only ends like one.
const MAX_IMAGE_BYTES: usize = 64 << 20;

/// The recipe of a firmware file; `None` for any other file.
///
/// # Errors
/// [`RecipeError`] if it is firmware, but malformed.
pub fn recognise(file: &[u8]) -> Result<Option<Object>, RecipeError> {
    if file.len() > MAX_IMAGE_BYTES {
        return Ok(None);
    }
    if file.starts_with(&option_rom::SIGNATURE) {
        return Ok(option_rom::parts(file)?.map(object));
    }
    if let Some(image) = uefi::application(file) {
        return Ok(Some(object(vec![image.part("efi")])));
    }
    let parts = uefi::parts(file)?.or_else(|| bios::parts(file));
    Ok(parts.map(object))
}

fn object(parts: Vec<Part>) -> Object {
    Object {
        kind: ObjectKind::Firmware,
        facts: Facts::default(),
        loads: Vec::new(),
        pages: Vec::new(),
        parts,
    }
}

fn part(name: &str, link: u64, bytes: &[u8], sites: Vec<Site>, values: Values) -> Part {
    Part {
        kind: PartKind::Firmware,
        name: name.to_owned(),
        link,
        placement: Placement::Anywhere,
        bytes: bytes.to_vec(),
        sites,
        values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_files_are_no_firmware() {
        for file in [
            &b""[..],
            b"\x55",
            b"\x55\xaa",
            b"#!/bin/sh\n",
            &[0; 65536],
            &[0xff; 65536],
        ] {
            assert_eq!(recognise(file).unwrap(), None);
        }
    }

    #[test]
    fn max_image_bytes_stops_a_file_that_only_ends_like_firmware() {
        let image = |len: usize| {
            let mut file = vec![0x11; len];
            file[len - 16..len - 11].copy_from_slice(&[0xea, 0x5b, 0xe0, 0, 0xf0]);
            recognise(&file).unwrap()
        };
        assert!(image(MAX_IMAGE_BYTES).is_some());
        assert!(image(MAX_IMAGE_BYTES + (64 << 10)).is_none());
    }

    proptest! {
        #[test]
        fn noise_behind_a_signature_is_survived(mut file in proptest::collection::vec(any::<u8>(), 0..2048), bios: bool) {
            if bios {
                file.resize(65536, 0x11);
                file[65520..65525].copy_from_slice(&[0xea, 0x5b, 0xe0, 0, 0xf0]);
            } else if file.len() > 2 {
                file[..2].copy_from_slice(&[0x55, 0xaa]);
            }
            let _ = recognise(&file);
        }
    }
}
