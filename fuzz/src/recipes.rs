//! Executable files of every kind: whatever they claim, there is an answer, and its parts are what the rest relies on.

use nephoscope_recipe::{Object, RecipeError, elf, firmware, kernel, module};

/// What holds of every recipe.
pub(crate) fn check(object: &Object) {
    for part in &object.parts {
        let mut end = 0;
        for site in &part.sites {
            assert!(
                site.at >= end,
                "sites of {} are sorted and apart: {site:?}",
                part.name
            );
            end = site.at.saturating_add(u32::from(site.len));
            assert!(end as usize <= part.bytes.len(), "a site is in its part");
            let set = part
                .values
                .sets
                .get(site.set as usize)
                .expect("a site has its set");
            for value in set {
                assert!(value.bytes.is_empty() || value.bytes.len() == usize::from(site.len));
            }
        }
    }
}

fn held(object: Result<Object, RecipeError>) {
    match object {
        Ok(object) => check(&object),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// A user program.
pub fn elf(bytes: &[u8]) {
    held(elf::recognise(bytes));
}

/// A kernel module.
pub fn module(bytes: &[u8]) {
    if bytes.starts_with(b"\x7fELF") {
        held(module::recognise(bytes));
    }
}

/// A kernel, as its `vmlinux` or its bzImage.
pub fn kernel(bytes: &[u8]) {
    held(kernel::recognise(bytes));
}

/// Firmware of any kind. A byte in front says how it is padded: what is no multiple of 64 KiB is no BIOS.
pub fn firmware(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let found = if how & 1 == 0 {
        firmware::recognise(bytes)
    } else {
        // The input's last bytes at the end, where the reset vector is; the others at the start.
        let tail = bytes.len().min(16);
        let (head, tail) = bytes.split_at(bytes.len() - tail);
        let mut file = vec![0; 64 << 10];
        let head = &head[..head.len().min(32 << 10)];
        file[..head.len()].copy_from_slice(head);
        let at = file.len() - tail.len();
        file[at..].copy_from_slice(tail);
        firmware::recognise(&file)
    };
    if let Ok(Some(object)) = found {
        check(&object);
    }
}

/// A vDSO, as a kernel's data has it.
#[cfg(fuzzing)]
pub fn vdso(bytes: &[u8]) {
    for part in nephoscope_recipe::fuzzing::vdsos(bytes) {
        assert!(part.bytes.len().is_multiple_of(4096));
    }
}
