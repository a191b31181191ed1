//! Firmware: flash files piece by piece, option ROMs, a BIOS whose initialisation code moves.

use super::Seed;
use super::flash::{fields, file, lzma, name, pe, section, te, volume};

/// A byte in front, as the target wants it.
fn framed(how: u8, file: &[u8]) -> Vec<u8> {
    [&[how], file].concat()
}

fn option_rom(code: u8, blocks: u8, content: &[u8]) -> Vec<u8> {
    let mut image = vec![0; usize::from(blocks) * 512];
    image[..3].copy_from_slice(&[0x55, 0xaa, blocks]);
    image[0x18..0x1a].copy_from_slice(&[0x1c, 0]);
    image[0x1c..0x20].copy_from_slice(b"PCIR");
    image[0x2c..0x2e].copy_from_slice(&[blocks, 0]);
    image[0x30..0x32].copy_from_slice(&[code, 0x80]);
    if code == 3 {
        image[4..8].copy_from_slice(&0x0ef1_u32.to_le_bytes());
        image[0x16..0x18].copy_from_slice(&[0x40, 0]);
        image[0x40..0x40 + content.len()].copy_from_slice(content);
    }
    image
}

/// SeaBIOS's three tables, 17 fields each, in the first half of an image that the target pads to 64 KiB.
fn moving() -> Vec<u8> {
    const BASE: u64 = 0xf_0000;
    let (flat, start, end) = (0x100, 0x800, 0xd00);
    let mut image = vec![0; 0x1400];
    for (at, byte) in image.iter_mut().enumerate().skip(start) {
        *byte = (at * 37 >> 3) as u8 | 0x80;
    }
    let mut table = flat;
    for (kind, from) in [(0, 0x10), (1, 0x14), (2, end + 0x100 - flat)] {
        for number in 0..17 {
            let offset = from + number * 0x40;
            fields(&mut image, &[(table, offset as u64, 4)]);
            table += 4;
            let (at, value) = match kind {
                0 => (start + offset, BASE + (start + number * 8) as u64),
                1 => (
                    start + offset,
                    ((end + number) as u64).wrapping_sub((start + offset + 4) as u64),
                ),
                _ => (flat + offset, BASE + (start + number) as u64),
            };
            if at + 4 <= image.len() {
                fields(&mut image, &[(at, value & 0xffff_ffff, 4)]);
            }
        }
    }
    fields(&mut image, &[(table, 0, 4)]);
    image
}

pub(crate) fn seeds() -> Vec<Seed> {
    let one = |kind, content: Vec<u8>| volume(&[file(kind, &content)]);
    let named = [section(0x10, &pe(1)), name("Pe")].concat();
    let reset = [0xea, 0x5b, 0xe0, 0, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let nested = section(0x17, &one(7, section(0x10, &pe(2))));
    [
        ("pe", framed(0, &one(7, named.clone()))),
        ("te", framed(0, &one(4, section(0x12, &te(1))))),
        ("lzma", framed(0, &one(7, lzma(&named)))),
        ("nested", framed(0, &one(0xb, nested))),
        ("raw", framed(0, &one(1, vec![0xcc; 32]))),
        ("application", framed(0, &pe(3))),
        ("rom-x86", framed(0, &option_rom(0, 2, &[]))),
        ("rom-uefi", framed(0, &option_rom(3, 4, &pe(1)))),
        ("bios", framed(1, &[&[1, 2, 3, 4][..], &reset].concat())),
        ("seabios", framed(1, &[&moving()[..], &reset].concat())),
    ]
    .map(|(name, bytes)| ("firmware", name.to_owned(), bytes))
    .to_vec()
}
