//! Insides that `fuzz` looks into.

use crate::kernel::image::{Image, Section};
use crate::object::Part;

/// Every vDSO in a kernel's data that holds these bytes, filled up to whole pages.
#[must_use]
pub fn vdsos(bytes: &[u8]) -> Vec<Part> {
    let mut raw = bytes.to_vec();
    raw.resize(raw.len().next_multiple_of(4096), 0);
    let data = Section {
        name: ".data".to_owned(),
        va: 0xffff_ffff_8200_0000,
        execute: false,
        raw,
        linked: None,
    };
    crate::vdso::find(&Image::new(vec![data], Vec::new()))
}
