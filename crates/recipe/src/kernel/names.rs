//! What the kernel's own symbol table says: thunks, functions, and what paravirt slots can hold.

use super::bytes;
use super::call_depth;
use super::content::Rewrite;
use super::image::{Image, Moving, Section};
use super::kallsyms::Kallsyms;
use super::tables::{Link, RETURN_THUNKS};
use crate::object::Part;
use crate::site::{FUNCTIONS, Form, PARAVIRT, Target, Unknown, Values};

/// Functions that `pv_ops` is filled with, besides those that it holds at link time: the hypervisors' at boot
/// (`arch/x86/kernel/paravirt.c`, `kvm.c`, `arch/x86/xen/`, `arch/x86/hyperv/`, `arch/x86/kernel/cpu/vmware.c`).
const PARAVIRT_PREFIXES: [&str; 14] = [
    "native_",
    "pv_native_",
    "_paravirt_",
    "paravirt_",
    "__raw_callee_save_",
    "kvm_",
    "__pv_",
    "pv_",
    "xen_",
    "__xen_",
    "hv_",
    "hyperv_",
    "vmware_",
    "BUG_func",
];

/// Names that modules' sites refer to although the kernel does not export them.
const UNEXPORTED: [&str; 9] = [
    "ftrace_caller",
    "ftrace_regs_caller",
    "__x86_indirect_thunk_array",
    "__x86_indirect_call_thunk_array",
    "__x86_indirect_jump_thunk_array",
    "__x86_indirect_its_thunk_array",
    "__static_call_return",
    "__static_call_return0",
    "BUG_func",
];

/// A kernel's names.
pub(crate) struct KernelNames {
    symbols: Kallsyms,
}

impl KernelNames {
    pub(crate) fn new(symbols: Kallsyms) -> Self {
        Self { symbols }
    }

    /// What `pv_ops` holds at link time.
    fn paravirt_slots(&self, image: &Image) -> Vec<u64> {
        let Some(start) = self.symbols.address("pv_ops") else {
            return Vec::new();
        };
        let len = self
            .symbols
            .next_after(start)
            .map_or(0, |next| next.saturating_sub(start))
            .min(4096);
        let table = image.linked(start, bytes::index(len)).unwrap_or(&[]);
        let slots = table.chunks_exact(8).filter_map(|slot| bytes::u64_at(slot, 0));
        slots.filter(|va| image.executes(*va)).collect()
    }

    /// The lists that fields' targets are looked up in, for a part of the image.
    pub(crate) fn lists(&self, image: &Image, values: &mut Values) {
        let from = self.symbols.functions().next().map_or(0, |(va, _)| va);
        let offset = |va: u64| u32::try_from(va.checked_sub(from)?).ok();
        let mut functions: Vec<u32> = self
            .symbols
            .functions()
            .filter_map(|(va, _)| offset(va))
            .collect();
        functions.dedup();
        let paravirt = self.symbols.functions().filter(|(_, name)| is_paravirt(name));
        let named = paravirt.map(|(va, _)| va);
        let mut paravirt: Vec<u32> = named
            .chain(self.paravirt_slots(image))
            .filter_map(offset)
            .collect();
        paravirt.sort_unstable();
        paravirt.dedup();
        values.lists_from = from;
        values.lists = vec![functions, paravirt];
    }

    /// Call-depth thunks in the padding before functions.
    pub(crate) fn paddings(&self, image: &Image) -> Vec<Rewrite> {
        let len = self.call_thunk_len(image);
        let (Some(template), true) = (self.symbols.address("skl_call_thunk_template"), len > 0) else {
            return Vec::new();
        };
        let mut before = 0;
        self.symbols
            .functions()
            .filter(|(va, _)| std::mem::replace(&mut before, *va) != *va)
            .filter_map(|(va, _)| call_depth::padding(image, template, len, va))
            .collect()
    }

    /// The exports, and what modules refer to besides.
    pub(crate) fn exports(&self, image: &Image, mut exports: Vec<(String, u64)>) -> Vec<(String, u64)> {
        let template = self.symbols.address("skl_call_thunk_template");
        if let Some(counter) = template.and_then(|va| call_depth::counter(image, va)) {
            exports.push((call_depth::COUNTER.to_owned(), counter));
        }
        for name in RETURN_THUNKS.iter().chain(&UNEXPORTED) {
            if let Some(va) = self.symbols.address(name) {
                exports.push(((*name).to_owned(), va));
            }
        }
        exports.sort();
        exports.dedup_by(|a, b| a.0 == b.0);
        exports
    }

    /// The real-mode trampoline, copied below 1 MiB at boot (`arch/x86/realmode/init.c`).
    pub(crate) fn real_mode(&self, image: &Image) -> Option<Part> {
        let (start, end) = self.symbols.range("real_mode_blob", "real_mode_blob_end")?;
        let blob = image.raw(start, bytes::index(end.checked_sub(start)?))?;
        let relocations = self.symbols.address("real_mode_relocs");
        Some(super::parts::real_mode(
            blob,
            &relocations
                .map(|va| real_mode_fields(image, va))
                .unwrap_or_default(),
        ))
    }
}

fn is_paravirt(name: &str) -> bool {
    PARAVIRT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl Link for KernelNames {
    fn address(&self, name: &str) -> Option<u64> {
        self.symbols.address(name)
    }

    fn target(&self, name: &str) -> Option<(Target, i64)> {
        Some((Target::Own, self.symbols.address(name)?.cast_signed()))
    }

    fn functions(&self) -> Target {
        Target::OneOf(FUNCTIONS)
    }

    fn paravirt(&self) -> Target {
        Target::OneOf(PARAVIRT)
    }

    fn trampolines(&self, image: &Image) -> Vec<u64> {
        let named = self
            .symbols
            .functions()
            .filter(|(_, name)| name.starts_with("__SCT__"));
        named.map(|(va, _)| va).filter(|va| image.executes(*va)).collect()
    }

    fn call_thunk_len(&self, _image: &Image) -> usize {
        let range = self
            .symbols
            .range("skl_call_thunk_template", "skl_call_thunk_tail");
        range
            .map_or(0, |(start, end)| bytes::index(end.saturating_sub(start)))
            .min(32)
    }
}

/// `real_mode_relocs`: a count and 16-bit segments' offsets, a count and 32-bit addresses' offsets.
fn real_mode_fields(image: &Image, va: u64) -> Vec<(u32, Form)> {
    let mut fields = Vec::new();
    let mut at = va;
    for form in [Form::Segment16, Form::Abs32] {
        let Some(count) = image.linked(at, 4).and_then(|b| bytes::u32_at(b, 0)) else {
            return fields;
        };
        at = at.wrapping_add(4);
        for _ in 0..count.min(4096) {
            let Some(offset) = image.linked(at, 4).and_then(|b| bytes::u32_at(b, 0)) else {
                return fields;
            };
            fields.push((offset, form));
            at = at.wrapping_add(4);
        }
    }
    fields
}

/// Runtime constants of one kernel: 6.12 has a hundred places. It stops a section of nothing else, each of which is looked
/// for in every other section.
const MAX_CONSTANTS: usize = 1 << 14;

/// `runtime_ptr_*` and `runtime_shift_*` (6.11 and later, `arch/x86/include/asm/runtime-const.h`): places whose 8 or 1
/// bytes are computed at boot.
pub(crate) fn runtime_constants(sections: &[Section], unknowns: &mut Vec<Unknown>, found: &mut Vec<Moving>) {
    for section in sections {
        let (form, unknown) = if let Some(name) = section.name.strip_prefix("runtime_ptr_") {
            (Form::Abs64, Unknown::RuntimePointer(name.to_owned()))
        } else if let Some(name) = section.name.strip_prefix("runtime_shift_") {
            (Form::Abs8, Unknown::RuntimeShift(name.to_owned()))
        } else {
            continue;
        };
        let Ok(number) = u16::try_from(unknowns.len()) else {
            return;
        };
        unknowns.push(unknown);
        let mut entry = section.va;
        for field in section.raw.chunks_exact(4) {
            if found.len() >= MAX_CONSTANTS {
                return;
            }
            if let Some(offset) = bytes::i32_at(field, 0) {
                let va = entry.wrapping_add_signed(offset.into());
                found.push(Moving {
                    va,
                    form,
                    to: Target::Unknown(number),
                    addend: 0,
                });
            }
            entry = entry.wrapping_add(4);
        }
    }
}

/// Zeroes a field: what is there is a placeholder, not an addend.
pub(crate) fn clear_field(sections: &mut [Section], field: &Moving) {
    for section in sections.iter_mut() {
        let Some(at) = field.va.checked_sub(section.va).map(bytes::index) else {
            continue;
        };
        let zeros = [0; 8];
        if section.execute && bytes::put(&mut section.raw, at, zeros.get(..field.form.len()).unwrap_or(&[])) {
            return;
        }
    }
}

/// The release in `linux_banner`, for an image without the boot protocol's header.
pub(crate) fn release(image: &Image) -> Option<String> {
    let data = &image.section(".rodata")?.raw;
    let at = memchr::memmem::find(data, b"Linux version ")?.checked_add(14)?;
    let text = data.get(at..at.checked_add(128)?)?;
    let len = memchr::memchr(b' ', text)?;
    Some(String::from_utf8_lossy(text.get(..len)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_constants_stops_a_section_of_nothing_else() {
        let found = |count: usize| {
            let section = Section {
                name: "runtime_ptr_x".to_owned(),
                va: 0x1000,
                execute: false,
                raw: vec![0; count * 4],
                linked: None,
            };
            let (mut unknowns, mut found) = (Vec::new(), Vec::new());
            runtime_constants(&[section], &mut unknowns, &mut found);
            found.len()
        };
        assert_eq!(found(100), 100);
        assert_eq!(found(MAX_CONSTANTS + 1), MAX_CONSTANTS);
    }
}
