//! Flash files, made piece by piece.

/// Little-endian fields at offsets.
pub(super) fn fields(bytes: &mut [u8], fields: &[(usize, u64, usize)]) {
    for (at, value, len) in fields {
        bytes[*at..*at + *len].copy_from_slice(&value.to_le_bytes()[..*len]);
    }
}

/// Bytes that say where they are from.
pub(super) fn code(len: usize, mut seed: u64) -> Vec<u8> {
    let next = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_le_bytes()[6]
    };
    (0..len).map(next).collect()
}

/// Where the images are linked to.
pub(super) const LINK: u64 = 0x1_0000;
/// The address of `.text` in them.
pub(super) const TEXT: u64 = 0x1000;
/// `.text`.
pub(super) const TEXT_LEN: usize = 0x300;
/// Fields in `.text`, 32 and 64 bits wide.
pub(super) const FIELDS: [u64; 2] = [0x20, 0x80];

/// `.text` with its fields, and the directory that names them.
pub(super) fn pieces(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let mut text = code(TEXT_LEN, seed);
    fields(
        &mut text,
        &[(0x20, LINK + TEXT + 1, 4), (0x80, LINK + TEXT + 2, 8)],
    );
    let mut reloc = vec![0; 12];
    fields(
        &mut reloc,
        &[
            (0, TEXT, 4),
            (4, 12, 4),
            (8, (3 << 12) | FIELDS[0], 2),
            (10, (10 << 12) | FIELDS[1], 2),
        ],
    );
    (text, reloc)
}

/// A PE32+ image: `.text` at 0x200 in the file and 0x1000 in memory, `.reloc` at 0x500 and 0x2000.
pub(super) fn pe(seed: u64) -> Vec<u8> {
    let (text, reloc) = pieces(seed);
    let mut file = vec![0; 0x600];
    file[..2].copy_from_slice(b"MZ");
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    fields(
        &mut file,
        &[
            (0x3c, 0x40, 4),
            (0x44, 0x8664, 2),
            (0x46, 2, 2),
            (0x54, 112 + 16 * 8, 2),
            // Optional header at 0x58.
            (0x58, 0x20b, 2),
            (0x58 + 24, LINK, 8),
            (0x58 + 32, 0x1000, 4),
            (0x58 + 36, 0x100, 4),
            (0x58 + 56, 0x3000, 4),
            (0x58 + 60, 0x200, 4),
            (0x58 + 108, 16, 4),
            (0x58 + 112 + 5 * 8, 0x2000, 4),
            (0x58 + 112 + 5 * 8 + 4, 12, 4),
        ],
    );
    let table = 0x58 + 112 + 16 * 8;
    for (at, va, raw, len) in [(table, TEXT, 0x200, TEXT_LEN), (table + 40, 0x2000, 0x500, 12)] {
        let len = len as u64;
        fields(
            &mut file,
            &[
                (at + 8, len, 4),
                (at + 12, va, 4),
                (at + 16, len, 4),
                (at + 20, raw, 4),
            ],
        );
    }
    file[0x200..0x200 + TEXT_LEN].copy_from_slice(&text);
    file[0x500..0x50c].copy_from_slice(&reloc);
    file
}

/// What a terse image lost of its headers.
pub(super) const STRIPPED: usize = 0x180;

/// The terse image of a PE whose sections are at the same place in the file and in memory.
pub(super) fn te(seed: u64) -> Vec<u8> {
    let (text, reloc) = pieces(seed);
    let ahead = STRIPPED - 40;
    let mut file = vec![0; 0x2100 - ahead];
    file[..2].copy_from_slice(b"VZ");
    fields(
        &mut file,
        &[
            (2, 0x8664, 2),
            (4, 2, 1),
            (6, STRIPPED as u64, 2),
            (16, LINK, 8),
            (24, 0x2000, 4),
            (28, 12, 4),
        ],
    );
    for (at, va, bytes) in [(40, 0x1000, &text), (80, 0x2000, &reloc)] {
        let len = bytes.len() as u64;
        fields(
            &mut file,
            &[
                (at + 8, len, 4),
                (at + 12, va, 4),
                (at + 16, len, 4),
                (at + 20, va, 4),
            ],
        );
        let from = va as usize - ahead;
        file[from..from + bytes.len()].copy_from_slice(bytes);
    }
    file
}

/// A section, padded as they are.
pub(super) fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    let len = (content.len() + 4) as u32;
    let [a, b, c, _] = len.to_le_bytes();
    let mut section = [&[a, b, c, kind], content].concat();
    section.resize(section.len().next_multiple_of(4), 0);
    section
}

/// A name.
pub(super) fn name(name: &str) -> Vec<u8> {
    let units = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    section(0x15, &units.collect::<Vec<u8>>())
}

/// A section that is compressed.
pub(super) fn lzma(sections: &[u8]) -> Vec<u8> {
    let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut plain = liblzma::read::XzEncoder::new_stream(sections, stream);
    let mut content =
        b"\x98\x58\x4e\xee\x14\x39\x59\x42\x9d\x6e\xdc\x7b\xd7\x94\x03\xcf\x18\0\x01\0".to_vec();
    std::io::Read::read_to_end(&mut plain, &mut content).unwrap();
    section(0x02, &content)
}

/// A file, padded as they are.
pub(super) fn file(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut file = vec![0x11; 16];
    let [a, b, c, _] = ((content.len() + 24) as u32).to_le_bytes();
    file.extend([0, 0xaa, kind, 0, a, b, c, 0]);
    file[16] = file.iter().fold(0xaa, |sum: u8, byte| sum.wrapping_sub(*byte));
    file[23] = 0xf8;
    file.extend(content);
    file.resize(file.len().next_multiple_of(8), 0xff);
    file
}

/// A volume of files, with free space up to a multiple of 4 KiB.
pub(super) fn volume(files: &[Vec<u8>]) -> Vec<u8> {
    let content = files.concat();
    let len = (72 + content.len()).next_multiple_of(4096);
    let mut volume = vec![0; 72];
    volume[16..32].copy_from_slice(b"\x78\xe5\x8c\x8c\x3d\x8a\x1c\x4f\x99\x35\x89\x61\x85\xc3\x2d\xd3");
    volume[40..44].copy_from_slice(b"_FVH");
    fields(&mut volume, &[(32, len as u64, 8), (48, 72, 2)]);
    let words = volume.as_chunks().0.iter().map(|word| u16::from_le_bytes(*word));
    let sum = words.fold(0, u16::wrapping_add).wrapping_neg();
    fields(&mut volume, &[(50, sum.into(), 2)]);
    volume.extend(content);
    volume.resize(len, 0xff);
    volume
}
