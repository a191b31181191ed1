//! Exported symbols: `__ksymtab`, `__ksymtab_gpl` and their strings (`include/linux/export.h`, relative references).

use super::bytes;
use super::image::Image;

/// Names of exports are shorter than this; bounds the reads.
const MAX_NAME_BYTES: usize = 512;

/// (name, link address) of every export, sorted by name.
pub(crate) fn exports(image: &Image) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for table in ["__ksymtab", "__ksymtab_gpl"] {
        let Some((va, data)) = image.table(table, None) else {
            continue;
        };
        let mut entry = va;
        for fields in data.chunks_exact(12) {
            let value = bytes::i32_at(fields, 0).map(|o| entry.wrapping_add_signed(o.into()));
            let name = bytes::i32_at(fields, 4).map(|o| entry.wrapping_add(4).wrapping_add_signed(o.into()));
            if let (Some(value), Some(name)) = (value, name.and_then(|n| string(image, n))) {
                found.push((name, value));
            }
            entry = entry.wrapping_add(12);
        }
    }
    found.sort();
    found.dedup();
    found
}

fn string(image: &Image, va: u64) -> Option<String> {
    let bytes = image.linked_up_to(va, MAX_NAME_BYTES);
    let len = memchr::memchr(0, bytes)?;
    Some(String::from_utf8_lossy(bytes.get(..len)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::image::Section;

    #[test]
    fn max_name_bytes_leaves_out_an_export_whose_name_never_ends() {
        let exported = |len: usize| {
            let section = |name: &str, va, raw| Section {
                name: name.to_owned(),
                va,
                execute: false,
                raw,
                linked: None,
            };
            let entry = [0_i32, 0x1000 - 4, 0].map(i32::to_le_bytes).concat();
            let name = [&vec![b'f'; len][..], &[0]].concat();
            let sections = vec![
                section("__ksymtab", 0x1000, entry),
                section("__ksymtab_strings", 0x2000, name),
            ];
            exports(&Image::new(sections, Vec::new())).len()
        };
        assert_eq!(exported(MAX_NAME_BYTES - 1), 1);
        assert_eq!(exported(MAX_NAME_BYTES), 0);
    }
}
