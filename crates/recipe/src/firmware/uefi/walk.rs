//! From a flash file down to its images.

use super::section::{Section, sections};
use super::volume::Volume;
use super::{Loaded, MAX_DEPTH, MAX_PARTS, MAX_UNPACKED_BYTES, pe, te};
use crate::compression;
use crate::error::RecipeError;
use crate::firmware::part;
use crate::kernel::bytes::wide;
use crate::object::Part;
use crate::site::Values;

/// Volumes begin where flash can be erased.
const GRANULE: usize = 4096;
/// `EFI_FV_FILETYPE_RAW`: without sections. In flash it is the reset vector, elsewhere data.
const RAW: u8 = 0x01;
/// The types of files that are made of sections; above them are the vendor's own, and padding.
const SECTIONED: std::ops::RangeInclusive<u8> = 0x02..=0x0f;
/// Flash ends where 32 bits do.
const END: u64 = 0x1_0000_0000;

/// The images in a flash file; `None` if it has none.
pub(in crate::firmware) fn parts(file: &[u8]) -> Result<Option<Vec<Part>>, RecipeError> {
    let mut walk = Walk {
        parts: Vec::new(),
        unpacked: 0,
    };
    let mut at = 0_usize;
    while let Some(rest) = file.get(at..).filter(|rest| !rest.is_empty()) {
        let len = match Volume::at(rest, wide(at))? {
            Some(volume) => {
                let link = END.wrapping_sub(wide(rest.len()));
                walk.volume(&volume, Some(link), 0)?;
                volume.bytes.len()
            }
            None => GRANULE,
        };
        at = at.saturating_add(len);
    }
    Ok((!walk.parts.is_empty()).then_some(walk.parts))
}

struct Walk {
    parts: Vec<Part>,
    unpacked: usize,
}

impl Walk {
    /// `flash`: the address of the volume, if it is executed in place.
    fn volume(&mut self, volume: &Volume<'_>, flash: Option<u64>, depth: usize) -> Result<(), RecipeError> {
        for file in volume.files() {
            let file = file?;
            if file.kind == RAW
                && let Some(base) = flash
            {
                self.unpack(file.content.len())?;
                let link = base.wrapping_add(wide(file.at));
                let name = file.name.to_string();
                self.push(part(&name, link, file.content, Vec::new(), Values::default()))?;
            }
            if !SECTIONED.contains(&file.kind) {
                continue;
            }
            let mut found = Vec::new();
            let mut name = None;
            self.sections(file.content, depth, &mut found, &mut name)?;
            let name = name.unwrap_or_else(|| file.name.to_string());
            for image in found {
                self.push(image.part(&name))?;
            }
        }
        Ok(())
    }

    fn sections(
        &mut self,
        bytes: &[u8],
        depth: usize,
        found: &mut Vec<Loaded>,
        name: &mut Option<String>,
    ) -> Result<(), RecipeError> {
        if depth > MAX_DEPTH {
            return Err(RecipeError::TooLarge {
                what: "the nesting of firmware sections",
                limit: MAX_DEPTH,
            });
        }
        let deeper = depth.saturating_add(1);
        for section in sections(bytes) {
            match section? {
                Section::Pe(file) => self.image(pe::loaded(file), found)?,
                Section::Te(file) => self.image(te::loaded(file), found)?,
                Section::Name(said) => *name = Some(said).filter(|said| !said.is_empty()),
                Section::Sections(inner) => self.sections(inner, deeper, found, name)?,
                Section::Volume(inner) => {
                    if let Some(volume) = Volume::at(inner, 0)? {
                        self.volume(&volume, None, deeper)?;
                    }
                }
                Section::Lzma(stream) => {
                    let left = MAX_UNPACKED_BYTES.saturating_sub(self.unpacked);
                    let plain = compression::lzma(stream, left)?;
                    self.unpack(plain.len())?;
                    self.sections(&plain, deeper, found, name)?;
                }
                Section::Other => {}
            }
        }
        Ok(())
    }

    fn image(&mut self, image: Option<Loaded>, found: &mut Vec<Loaded>) -> Result<(), RecipeError> {
        let Some(image) = image else { return Ok(()) };
        self.unpack(image.len())?;
        if self.parts.len().saturating_add(found.len()) >= MAX_PARTS {
            return Err(too_many());
        }
        found.push(image);
        Ok(())
    }

    fn push(&mut self, part: Part) -> Result<(), RecipeError> {
        if self.parts.len() >= MAX_PARTS {
            return Err(too_many());
        }
        self.parts.push(part);
        Ok(())
    }

    fn unpack(&mut self, len: usize) -> Result<(), RecipeError> {
        self.unpacked = self.unpacked.saturating_add(len);
        if self.unpacked > MAX_UNPACKED_BYTES {
            return Err(RecipeError::TooLarge {
                what: "unpacked firmware",
                limit: MAX_UNPACKED_BYTES,
            });
        }
        Ok(())
    }
}

fn too_many() -> RecipeError {
    RecipeError::TooLarge {
        what: "the number of firmware images",
        limit: MAX_PARTS,
    }
}
