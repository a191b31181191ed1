//! The compressions that kernels and modules come in, with a bound on what comes out.

use std::io::Read;

use crate::error::RecipeError;

/// A format, told by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Xz,
    Zstd,
    Gzip,
    /// The legacy frame of the `lz4` tool, which the kernel's build uses (`lz4 -l`).
    Lz4,
}

/// The memory that an xz stream may ask for: the kernel's build asks for a dictionary of 32 MiB (128 from 6.10 on),
/// `xz -9` for 64.
const MAX_XZ_MEMORY: u64 = 256 << 20;
/// The window that a zstd stream may ask for: the kernel's build asks for 2^27 (`zstd -22 --ultra`).
const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// A block of the legacy lz4 frame: 8 MiB (`doc/lz4_Frame_format.md` of lz4).
const LZ4_BLOCK: usize = 8 << 20;

impl Format {
    /// The format of a stream, if it is compressed.
    pub(crate) fn of(data: &[u8]) -> Option<Self> {
        match data {
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }

    /// At most `limit` bytes. What follows the stream is left alone.
    pub(crate) fn decompress(self, data: &[u8], limit: usize) -> Result<Vec<u8>, RecipeError> {
        let error = |e: &dyn std::fmt::Display| self.error(e);
        match self {
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, 0);
                let stream = stream.map_err(|e| error(&e))?;
                self.read(liblzma::read::XzDecoder::new_stream(data, stream), limit)
            }
            Self::Zstd => {
                let mut reader = zstd::Decoder::with_buffer(data)
                    .map_err(|e| error(&e))?
                    .single_frame();
                reader
                    .window_log_max(MAX_ZSTD_WINDOW_LOG)
                    .map_err(|e| error(&e))?;
                self.read(reader, limit)
            }
            Self::Gzip => self.read(flate2::read::GzDecoder::new(data), limit),
            Self::Lz4 => self.lz4(data, limit),
        }
    }

    fn read(self, reader: impl Read, limit: usize) -> Result<Vec<u8>, RecipeError> {
        read(reader, limit, &|e| self.error(e))
    }

    fn lz4(self, data: &[u8], limit: usize) -> Result<Vec<u8>, RecipeError> {
        let mut out = Vec::new();
        let mut rest = data.get(4..).unwrap_or(&[]);
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
            // The kernel's build appends the uncompressed size, which is no block of this length.
            let Some(block) = after.get(..len).filter(|_| len > 0) else {
                break;
            };
            let plain = lz4_flex::block::decompress(block, LZ4_BLOCK).map_err(|e| self.error(&e))?;
            if out.len().saturating_add(plain.len()) > limit {
                return Err(RecipeError::TooLarge {
                    what: "a decompressed file",
                    limit,
                });
            }
            out.extend_from_slice(&plain);
            rest = after.get(len..).unwrap_or(&[]);
        }
        Ok(out)
    }

    fn error(self, reason: &dyn std::fmt::Display) -> RecipeError {
        RecipeError::Compression {
            format: self.name(),
            reason: reason.to_string(),
        }
    }
}

/// A stream of the older `.lzma` format, as firmware has it: it bears no magic number. At most `limit` bytes.
pub(crate) fn lzma(data: &[u8], limit: usize) -> Result<Vec<u8>, RecipeError> {
    let error = |e: &dyn std::fmt::Display| RecipeError::Compression {
        format: "lzma",
        reason: e.to_string(),
    };
    let stream = liblzma::stream::Stream::new_lzma_decoder(MAX_XZ_MEMORY).map_err(|e| error(&e))?;
    read(liblzma::read::XzDecoder::new_stream(data, stream), limit, &error)
}

fn read(
    reader: impl Read,
    limit: usize,
    error: &dyn Fn(&dyn std::fmt::Display) -> RecipeError,
) -> Result<Vec<u8>, RecipeError> {
    let mut out = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(&mut out).map_err(|e| error(&e))?;
    if out.len() > limit {
        return Err(RecipeError::TooLarge {
            what: "a decompressed file",
            limit,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn every_format(data: &[u8]) -> [(Format, Vec<u8>); 4] {
        let block = lz4_flex::block::compress(data);
        let len = u32::try_from(block.len()).unwrap().to_le_bytes();
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18], len.as_slice(), block.as_slice()].concat();
        [
            (Format::Gzip, gzip(data)),
            (Format::Zstd, zstd::encode_all(data, 1).unwrap()),
            (Format::Xz, liblzma::encode_all(data, 1).unwrap()),
            (Format::Lz4, lz4),
        ]
    }

    #[test]
    fn every_format_is_told_and_read() {
        let data = b"text ".repeat(1000);
        for (format, stream) in every_format(&data) {
            assert_eq!(Format::of(&stream), Some(format));
            assert_eq!(
                format.decompress(&stream, data.len()).unwrap(),
                data,
                "{format:?}"
            );
        }
    }

    #[test]
    fn max_zstd_window_log_stops_a_window_of_gigabytes() {
        let stream = |log: u32| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(b"some").unwrap();
            // The head is written before the length is known.
            encoder.flush().unwrap();
            encoder.finish().unwrap()
        };
        let read = |log| Format::Zstd.decompress(&stream(log), 100);
        assert_eq!(read(MAX_ZSTD_WINDOW_LOG).unwrap(), b"some");
        assert!(read(MAX_ZSTD_WINDOW_LOG + 1).is_err());
    }

    #[test]
    fn max_xz_memory_stops_a_dictionary_of_gigabytes() {
        let stream = |dictionary: u32| {
            let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
            options.dict_size(dictionary);
            // What the encoder asks for is not the question: the head says how much the decoder needs.
            let mut filters = liblzma::stream::Filters::new();
            filters.lzma2(&options);
            let encoder = liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::None);
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), encoder.unwrap());
            encoder.write_all(b"some").unwrap();
            encoder.finish().unwrap()
        };
        let read = |dictionary| Format::Xz.decompress(&stream(dictionary), 100);
        assert_eq!(read(128 << 20).unwrap(), b"some");
        assert!(
            read(u32::try_from(MAX_XZ_MEMORY).unwrap()).is_err(),
            "a dictionary of all of it, and the rest"
        );
    }

    #[test]
    fn a_stream_that_grows_past_the_limit_is_refused() {
        let data = vec![0; 10_000];
        for (format, stream) in every_format(&data) {
            let refused = format.decompress(&stream, data.len() - 1);
            assert!(matches!(refused, Err(RecipeError::TooLarge { .. })), "{format:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error_or_shorter() {
        let data = b"text ".repeat(1000);
        for (format, stream) in every_format(&data) {
            let cut = format.decompress(&stream[..stream.len() / 2], data.len());
            assert!(
                cut.is_err() || cut.is_ok_and(|d| d.len() < data.len()),
                "{format:?}"
            );
        }
    }
}
