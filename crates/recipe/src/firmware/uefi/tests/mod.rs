#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]
mod limits;
mod made;
mod vectors;

use super::parts;
use crate::error::RecipeError;
use crate::object::Part;
use made::{FIELDS, LINK, STRIPPED, TEXT, TEXT_LEN, code, file, lzma, name, pe, pieces, section, te, volume};
use proptest::prelude::*;

const DRIVER: u8 = 0x07;

/// Flash as it is built: a volume whose drivers are compressed, and one that runs in place.
fn flash() -> Vec<u8> {
    let inner = volume(&[
        file(DRIVER, &[section(0x10, &pe(1)), name("First")].concat()),
        file(DRIVER, &section(0x10, &pe(2))),
    ]);
    let compressed = volume(&[file(0x0b, &lzma(&section(0x17, &inner)))]);
    let in_place = volume(&[
        file(0x06, &[name("Second"), section(0x12, &te(3))].concat()),
        file(0xf0, &[0xff; 100]),
        file(0x01, &code(0x100, 4)),
    ]);
    [vec![0; 4096], compressed, in_place].concat()
}

fn found(flash: &[u8]) -> Vec<Part> {
    parts(flash).unwrap().unwrap()
}

#[test]
fn images_are_found_in_flash_and_in_what_is_compressed_there() {
    let flash = flash();
    let parts = found(&flash);
    let guid = "11111111-1111-1111-1111-111111111111";
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["First", guid, "Second", guid]);
    let reset = &parts[3];
    assert_eq!(reset.bytes, code(0x100, 4));
    let at = flash
        .windows(0x100)
        .position(|window| window == reset.bytes)
        .unwrap();
    assert_eq!(reset.link, 0x1_0000_0000 - (flash.len() - at) as u64);
}

#[test]
fn an_image_is_laid_out_at_its_sections_addresses() {
    let parts = found(&flash());
    let (text, reloc) = pieces(1);
    let first = &parts[0];
    assert_eq!((first.link, first.bytes.len()), (LINK, 0x200c));
    assert_eq!(first.bytes[TEXT as usize..][..TEXT_LEN], text);
    assert_eq!(first.bytes[0x2000..], reloc);
    assert!(
        first.bytes[TEXT as usize + TEXT_LEN..0x2000]
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn base_relocations_are_sites() {
    for part in &found(&flash())[..3] {
        let text = LINK + TEXT - part.link;
        let sites: Vec<_> = part
            .sites
            .iter()
            .map(|s| (u64::from(s.at), s.len, s.set))
            .collect();
        assert_eq!(sites, [(text + FIELDS[0], 4, 0), (text + FIELDS[1], 8, 1)]);
    }
}

#[test]
fn a_terse_image_lies_after_what_was_stripped_of_it() {
    let part = &found(&flash())[2];
    assert_eq!(part.link, LINK + STRIPPED as u64 - 40);
    let text = (LINK + TEXT - part.link) as usize;
    assert_eq!(part.bytes[text..text + TEXT_LEN], pieces(3).0);
    assert_eq!(part.bytes[..2], *b"VZ");
}

#[test]
fn a_file_that_does_not_end_in_its_volume_is_malformed() {
    let mut flash = volume(&[file(DRIVER, &section(0x10, &pe(1)))]);
    // The length, and the checksum for it.
    flash[72 + 22] += 1;
    flash[72 + 16] -= 1;
    let what = "a firmware file";
    assert_eq!(parts(&flash), Err(RecipeError::Malformed { what, at: 72 }));
}

#[test]
fn a_header_whose_sum_is_wrong_is_no_volume_and_no_file() {
    let good = volume(&[file(DRIVER, &section(0x10, &pe(1)))]);
    let mut flash = good.clone();
    flash[47] ^= 1;
    assert_eq!(parts(&flash), Ok(None));
    let mut flash = good;
    flash[72] ^= 1;
    assert!(matches!(parts(&flash), Err(RecipeError::Malformed { .. })));
}

#[test]
fn a_volume_of_variables_has_no_images() {
    let mut flash = volume(&[file(DRIVER, &section(0x10, &pe(1)))]);
    flash[16] ^= 1;
    flash[50] ^= 1;
    let sum = |bytes: &[u8]| {
        bytes
            .as_chunks()
            .0
            .iter()
            .fold(0, |s: u16, w| s.wrapping_add(u16::from_le_bytes(*w)))
    };
    let off = sum(&flash[..72]);
    let was = u16::from_le_bytes([flash[50], flash[51]]);
    flash[50..52].copy_from_slice(&was.wrapping_sub(off).to_le_bytes());
    assert_eq!(parts(&flash), Ok(None));
}

#[test]
fn a_cut_flash_file_is_malformed_or_has_fewer_images() {
    let flash = flash();
    for len in (0..flash.len()).step_by(97) {
        if let Ok(Some(parts)) = parts(&flash[..len]) {
            assert!(parts.len() < 4, "{len:#x}");
        }
    }
}

#[test]
fn a_file_for_uefi_is_a_part_and_one_for_something_else_is_not() {
    use crate::firmware::recognise;
    let mut file = pe(1);
    for (subsystem, is_one) in [
        (0_u16, false),
        (2, false),
        (10, true),
        (11, true),
        (12, true),
        (13, true),
        (14, false),
    ] {
        made::fields(&mut file, &[(0x58 + 68, subsystem.into(), 2)]);
        let object = recognise(&file).unwrap();
        assert_eq!(object.is_some(), is_one, "{subsystem}");
        assert!(object.is_none_or(|object| object.parts[0].sites.len() == 2));
    }
}

#[test]
fn the_uefi_image_of_an_option_rom_is_a_part_unless_it_is_compressed() {
    let mut rom = vec![0; 0x100];
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    rom[0x1c..0x20].copy_from_slice(b"PCIR");
    made::fields(
        &mut rom,
        &[
            (4, 0x0ef1, 4),
            (0x16, 0x100, 2),
            (0x18, 0x1c, 2),
            (0x2c, 4, 2),
            (0x30, 3, 1),
            (0x31, 0x80, 1),
        ],
    );
    rom.extend(pe(1));
    rom.resize(2048, 0);
    let parts = |rom: &[u8]| {
        crate::firmware::recognise(rom)
            .unwrap()
            .map(|object| object.parts)
    };
    assert_eq!(parts(&rom).unwrap()[0].bytes.len(), 0x200c);
    made::fields(&mut rom, &[(0x14, 1, 2)]);
    assert_eq!(parts(&rom), None);
}

proptest! {
    #[test]
    fn flipped_bytes_are_survived(flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..8)) {
        let mut flash = flash();
        for (at, flip) in flips {
            let at = at.index(flash.len());
            flash[at] ^= flip;
        }
        let _ = parts(&flash);
    }

    #[test]
    fn images_of_noise_are_survived(
        mut head in proptest::collection::vec(any::<u8>(), 0x180),
        at in 2_usize..0x180,
        terse: bool,
    ) {
        let (good, kind) = if terse { (te(1), 0x12) } else { (pe(1), 0x10) };
        head[..at].copy_from_slice(&good[..at]);
        let noisy = [&head[..], &good[0x180..]].concat();
        for len in [at, 0x180, noisy.len()] {
            let _ = parts(&volume(&[file(DRIVER, &section(kind, &noisy[..len]))]));
        }
    }

    #[test]
    fn sections_of_noise_are_survived(kind in 0_u8..0x20, content in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = parts(&volume(&[file(DRIVER, &section(kind, &content))]));
    }
}
