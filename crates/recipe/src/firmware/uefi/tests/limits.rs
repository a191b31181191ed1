//! Every limit, and a file that it stops.

use super::super::{MAX_DEPTH, MAX_LOADED_BYTES, MAX_PARTS, MAX_RELOCATIONS, MAX_UNPACKED_BYTES};
use super::*;
use made::fields;

fn too_large(flash: &[u8]) -> usize {
    match parts(flash) {
        Err(RecipeError::TooLarge { limit, .. }) => limit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn max_parts_stops_a_file_of_nothing_but_images() {
    let image = file(DRIVER, &section(0x10, &pe(1)));
    let most = volume(&vec![image.clone(); MAX_PARTS]);
    assert_eq!(found(&most).len(), MAX_PARTS);
    assert_eq!(too_large(&volume(&vec![image; MAX_PARTS + 1])), MAX_PARTS);
    let one = file(DRIVER, &section(0x10, &pe(1)).repeat(MAX_PARTS + 1));
    assert_eq!(too_large(&volume(&[one])), MAX_PARTS);
}

#[test]
fn max_depth_stops_sections_in_sections() {
    let nested = |depth| {
        let image = section(0x10, &pe(1));
        let nested = (0..depth).fold(image, |inner, _| section(0x03, &inner));
        volume(&[file(DRIVER, &nested)])
    };
    assert_eq!(found(&nested(MAX_DEPTH)).len(), 1);
    assert_eq!(too_large(&nested(MAX_DEPTH + 1)), MAX_DEPTH);
    let compressed = (0..=MAX_DEPTH).fold(section(0x10, &pe(1)), |inner, _| lzma(&inner));
    assert_eq!(too_large(&volume(&[file(DRIVER, &compressed)])), MAX_DEPTH);
}

#[test]
fn max_unpacked_bytes_stops_what_grows_without_end() {
    let bomb = lzma(&vec![0; MAX_UNPACKED_BYTES + 1]);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(too_large(&volume(&[file(DRIVER, &bomb)])), MAX_UNPACKED_BYTES);
    let mut large = pe(1);
    let table = 0x58 + 112 + 16 * 8;
    fields(&mut large, &[(table + 52, MAX_LOADED_BYTES as u64 - 12, 4)]);
    let image = file(DRIVER, &section(0x10, &large));
    let count = MAX_UNPACKED_BYTES / MAX_LOADED_BYTES;
    assert_eq!(found(&volume(&vec![image.clone(); count])).len(), count);
    assert_eq!(too_large(&volume(&vec![image; count + 1])), MAX_UNPACKED_BYTES);
}

#[test]
fn max_loaded_bytes_stops_sections_at_addresses_that_nobody_would_allocate() {
    let mut large = pe(1);
    let table = 0x58 + 112 + 16 * 8;
    fields(&mut large, &[(table + 52, MAX_LOADED_BYTES as u64 - 11, 4)]);
    assert_eq!(parts(&volume(&[file(DRIVER, &section(0x10, &large))])), Ok(None));
}

#[test]
fn max_relocations_stops_a_directory_that_never_ends() {
    // One block of entries that are no fields here (`IMAGE_REL_BASED_HIGH`), then the field.
    let mut directory = [0, 1 << 4].repeat(4 + MAX_RELOCATIONS);
    directory[..8].fill(0);
    let len = directory.len() as u64;
    fields(&mut directory, &[(4, len, 4)]);
    let mut last = vec![0; 12];
    fields(&mut last, &[(4, 12, 4), (8, 3 << 12, 2)]);
    let sites = |directory: &[u8]| super::super::image::sites(directory, 0, 4096).len();
    assert_eq!(sites(&last), 1);
    assert_eq!(sites(&[directory, last].concat()), 0);
}

#[test]
fn max_name_cuts_a_name_that_goes_on() {
    use super::super::section::MAX_NAME;
    let image = [section(0x10, &pe(1)), made::name(&"x".repeat(MAX_NAME + 9))].concat();
    assert_eq!(found(&volume(&[file(DRIVER, &image)]))[0].name.len(), MAX_NAME);
}
