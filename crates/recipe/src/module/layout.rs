//! Where a module's sections go: `layout_sections` and `module_get_offset` in `kernel/module/main.c`.
//!
//! Executable sections come first, in the order of the section headers, each at its own alignment; those whose names
//! begin with `.init` apart from the others. 6.1 puts the data after the text and 6.12 elsewhere, but the text begins
//! on a page of its own in both, and its last page is filled with zeros. Data sections get made-up addresses here:
//! each is an unknown of its own.

use super::elf::ModuleElf;
use crate::kernel::bytes;

/// Link address of the core text.
pub(crate) const CORE: u64 = 0;
/// Made-up link address of the init text.
pub(crate) const INIT: u64 = 0x2000_0000;
/// Made-up link addresses of data sections.
pub(crate) const DATA: u64 = 0x4000_0000;
/// Made-up addresses of symbols that are elsewhere.
pub(crate) const ELSEWHERE: u64 = 0x6000_0000;

/// The text of a module is in its file, but for the zeros between aligned sections: it may be so many times as long, and
/// 64 KiB. It stops headers that claim what is not there.
const MAX_TEXT_GROWTH: u64 = 4;

/// Where a section is, and what that depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Home {
    /// In the core text.
    Core,
    /// In the init text.
    Init,
    /// By itself.
    Data,
    /// Not loaded.
    Nowhere,
}

/// Every section's home and link address.
pub(crate) struct Layout {
    pub(crate) places: Vec<(Home, u64)>,
    pub(crate) core_len: u64,
    pub(crate) init_len: u64,
}

/// Lays the sections out. `None`: they are larger than the made-up addresses or the file of `file_len` bytes allow.
pub(crate) fn lay_out(elf: &ModuleElf<'_>, file_len: usize) -> Option<Layout> {
    let (mut core, mut init, mut data) = (CORE, INIT, DATA);
    let mut places = Vec::with_capacity(elf.sections.len());
    for section in &elf.sections {
        if !section.loaded() {
            places.push((Home::Nowhere, 0));
            continue;
        }
        let (home, next, end) = if section.executes() && section.name.starts_with(".init") {
            (Home::Init, &mut init, DATA)
        } else if section.executes() {
            (Home::Core, &mut core, INIT)
        } else {
            // The low bits of a static call's key are flags: keep what data is aligned.
            data = data.checked_next_multiple_of(4096)?;
            (Home::Data, &mut data, ELSEWHERE)
        };
        let align = section.align.max(1);
        if !align.is_power_of_two() || align > 1 << 21 {
            return None;
        }
        let at = next.checked_next_multiple_of(align)?;
        *next = at.checked_add(section.size).filter(|to| *to <= end)?;
        places.push((home, at));
    }
    let most = bytes::wide(file_len)
        .saturating_mul(MAX_TEXT_GROWTH)
        .saturating_add(64 << 10);
    let page = |len: u64| len.checked_next_multiple_of(4096).filter(|len| *len <= most);
    Some(Layout {
        places,
        core_len: page(core)?,
        init_len: page(init.checked_sub(INIT)?)?,
    })
}

/// Length of a section's bytes as a part of its home.
pub(crate) fn offset(at: u64, base: u64) -> usize {
    bytes::index(at.saturating_sub(base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::elf::{read, tests::module};

    #[test]
    fn max_text_growth_stops_text_that_is_not_in_the_file() {
        let laid_out = |size| {
            // Text that claims to be zeros, as only data is, and a symbol table.
            let file = module(&[(8, 6, 16, size, 0), (2, 0, 8, 0, 0)], 8192);
            lay_out(&read(&file).unwrap(), file.len()).map(|layout| layout.core_len)
        };
        let most = 8192 * MAX_TEXT_GROWTH + (64 << 10);
        assert_eq!(laid_out(most), Some(most));
        assert_eq!(laid_out(most + 1), None);
    }
}
