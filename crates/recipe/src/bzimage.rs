//! The file that a boot loader loads: set-up code, decompressor, payload.
//!
//! ```text
//!  0        (setup_sects + 1) * 512                payload_offset            payload_length
//!  │ set-up code, real mode │ decompressor's head … │ compressed vmlinux │ decompressor … │
//! ```
//!
//! `Documentation/arch/x86/boot.rst`.

use crate::compression::Format;
use crate::error::RecipeError;
use crate::kernel::bytes;

/// The largest image that is unpacked: Debian's is 60 MiB; `KERNEL_IMAGE_SIZE` bounds what can run at 1 GiB.
pub(crate) const MAX_KERNEL_BYTES: usize = if cfg!(fuzzing) { 8 << 20 } else { 512 << 20 };

/// The pieces of a bzImage.
pub(crate) struct BzImage<'a> {
    /// Real-mode code, from the file's start.
    pub(crate) setup: &'a [u8],
    /// The decompressor before the payload.
    pub(crate) head: &'a [u8],
    /// The decompressor after it.
    pub(crate) tail: &'a [u8],
    /// What was compressed.
    pub(crate) payload: Vec<u8>,
    /// `kernel_version`: `6.1.0-37-amd64 (debian-kernel@…) #1 SMP …`.
    pub(crate) version: Option<String>,
}

/// Whether the file has the boot protocol's header.
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    file.get(0x202..0x206) == Some(b"HdrS")
}

/// Takes it apart and decompresses the payload.
pub(crate) fn open(file: &[u8]) -> Result<BzImage<'_>, RecipeError> {
    let malformed = |at| RecipeError::Malformed {
        what: "the boot protocol's header",
        at,
    };
    if !is_bzimage(file) {
        return Err(RecipeError::Other {
            expected: "a bzImage",
        });
    }
    // payload_offset came with protocol 2.08.
    if bytes::u16_at(file, 0x206).is_none_or(|version| version < 0x208) {
        return Err(malformed(0x206));
    }
    let sectors = match file.get(0x1f1) {
        Some(0) => 4,
        Some(n) => usize::from(*n),
        None => return Err(malformed(0x1f1)),
    };
    let protected = sectors.saturating_add(1).saturating_mul(512);
    let offset = bytes::u32_at(file, 0x248).ok_or(malformed(0x248))?;
    let len = bytes::u32_at(file, 0x24c).ok_or(malformed(0x24c))?;
    let from = protected.saturating_add(bytes::index(offset.into()));
    let to = from.saturating_add(bytes::index(len.into()));
    let setup = file.get(..protected).ok_or(malformed(0x1f1))?;
    let head = file.get(protected..from).ok_or(malformed(0x248))?;
    let compressed = file.get(from..to).ok_or(malformed(0x24c))?;
    let tail = file.get(to..).ok_or(malformed(0x24c))?;
    let format = Format::of(compressed).ok_or(RecipeError::Malformed {
        what: "the compressed kernel",
        at: bytes::wide(from),
    })?;
    // The last four bytes are the uncompressed size, which the build appends.
    let stream = compressed
        .len()
        .checked_sub(4)
        .and_then(|end| compressed.get(..end))
        .unwrap_or(compressed);
    let payload = match format {
        Format::Gzip => format.decompress(compressed, MAX_KERNEL_BYTES)?,
        _ => format.decompress(stream, MAX_KERNEL_BYTES)?,
    };
    Ok(BzImage {
        setup,
        head,
        tail,
        payload,
        version: version(file),
    })
}

fn version(file: &[u8]) -> Option<String> {
    let at = usize::from(bytes::u16_at(file, 0x20e)?).checked_add(0x200)?;
    let text = file.get(at..)?;
    let text = text.get(..text.len().min(256))?;
    let len = memchr::memchr(0, text)?;
    Some(String::from_utf8_lossy(text.get(..len)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_the_header_is_no_kernel() {
        assert!(matches!(open(&[0; 4096]), Err(RecipeError::Other { .. })));
    }

    #[test]
    fn max_kernel_bytes_stops_a_payload_that_grows_without_end() {
        use std::io::Read;
        // The last four bytes are its length, and no part of the stream.
        let stream = zstd::encode_all(std::io::repeat(0).take(MAX_KERNEL_BYTES as u64 + 1), 1).unwrap();
        let payload = [stream, vec![0; 4]].concat();
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend(payload);
        assert!(matches!(
            open(&file),
            Err(RecipeError::TooLarge {
                limit: MAX_KERNEL_BYTES,
                ..
            })
        ));
    }

    #[test]
    fn a_payload_outside_the_file_is_malformed() {
        let mut file = vec![0; 4096];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&0xffff_u32.to_le_bytes());
        assert!(matches!(
            open(&file),
            Err(RecipeError::Malformed { at: 0x24c, .. })
        ));
    }
}
