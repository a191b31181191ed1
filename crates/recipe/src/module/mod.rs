//! Linux kernel modules.
//!
//! A module is relocated wherever it is loaded, and patched like the kernel. Its core text is linked at 0 here and
//! its init text and data at addresses that the loader never uses ([`layout`]); each data section's real base is an
//! unknown of the instance, which all fields must agree on, and symbols of the kernel and of other modules are asked of
//! the environment.

mod elf;
mod layout;
mod link;

use crate::Solver;
use crate::compression::Format;
use crate::error::RecipeError;
use crate::kernel::build::{Recipe, Skipped};
use crate::kernel::call_depth::module_padding;
use crate::kernel::elf::note_build_id;
use crate::kernel::image::Image;
use crate::kernel::ksymtab;
use crate::kernel::tables::{self, Link};
use crate::object::{Facts, Object, ObjectKind, Part, PartKind, Placement};
use crate::site::{SiteKind, Unknown};
use elf::ModuleElf;
use link::ModuleNames;

/// The largest module that is unpacked: Debian's largest (`amdgpu`) takes 40 MiB.
const MAX_MODULE_BYTES: usize = if cfg!(fuzzing) { 8 << 20 } else { 256 << 20 };

/// The recipe of a module: `.ko`, or compressed with xz, zstd or gzip.
///
/// # Errors
///
/// [`RecipeError`] if it is no x86-64 module, or if what it claims does not hold.
pub fn recognise(file: &[u8]) -> Result<Object, RecipeError> {
    recognise_counting(file).map(|(object, _)| object)
}

/// The same, with what was left out.
///
/// # Errors
///
/// As [`recognise`].
pub fn recognise_counting(file: &[u8]) -> Result<(Object, Skipped), RecipeError> {
    match Format::of(file) {
        Some(format) => of_elf(&format.decompress(file, MAX_MODULE_BYTES)?),
        None if file.len() > MAX_MODULE_BYTES => Err(RecipeError::TooLarge {
            what: "a module",
            limit: MAX_MODULE_BYTES,
        }),
        None => of_elf(file),
    }
}

fn of_elf(file: &[u8]) -> Result<(Object, Skipped), RecipeError> {
    if !elf::is_module(file)? {
        return Err(RecipeError::Other {
            expected: "a kernel module",
        });
    }
    let elf = elf::read(file)?;
    let malformed = |what| RecipeError::Malformed { what, at: 0 };
    let layout = layout::lay_out(&elf, file.len()).ok_or(malformed("the sections' layout"))?;
    let names = ModuleNames::new(&elf, &layout);
    let image = names.image();
    let (mut rewrites, _) = tables::rewrites(&image, &names).ok_or(malformed(".altinstructions"))?;
    // Even if this module calls nothing: others may call it.
    let functions = names.functions();
    rewrites.extend(
        functions
            .iter()
            .filter_map(|f| module_padding(&image, &names, u64::from(*f))),
    );
    rewrites.sort_by_key(|r| (r.va, r.stage));
    let recipe = Recipe {
        image: &image,
        rewrites,
        moving: SiteKind::Relocation,
        paravirt: Link::paravirt(&names),
        writers: Default::default(),
    };
    let mut skipped = Skipped::default();
    let texts = [
        (PartKind::ModuleText, "core", layout::CORE, layout.core_len),
        (PartKind::ModuleInit, "init", layout::INIT, layout.init_len),
    ];
    let mut parts = Vec::new();
    for (kind, name, base, len) in texts.into_iter().filter(|(.., len)| *len > 0) {
        parts.push(part(&recipe, &names, kind, name, base, len, &mut skipped));
    }
    let facts = facts(&elf, &image);
    let object = Object {
        kind: ObjectKind::KernelModule,
        facts,
        loads: Vec::new(),
        pages: Vec::new(),
        parts,
    };
    Ok((object, skipped))
}

fn part(
    recipe: &Recipe<'_>,
    names: &ModuleNames<'_>,
    kind: PartKind,
    name: &str,
    base: u64,
    len: u64,
    skipped: &mut Skipped,
) -> Part {
    let bytes = link::text(recipe.image, base, len);
    let (sites, mut values) = recipe.sites(base, bytes.len(), skipped);
    values.unknowns = names.unknowns();
    values.lists = vec![names.functions(), Vec::new()];
    let placement = Placement::Aligned(4096);
    Part {
        kind,
        name: name.to_owned(),
        link: base,
        placement,
        bytes,
        sites,
        values,
    }
}

fn facts(elf: &ModuleElf<'_>, image: &Image) -> Facts {
    let info = |key: &str| {
        let data = elf.sections.iter().find(|s| s.name == ".modinfo")?.data;
        let mut entries = data
            .split(|b| *b == 0)
            .filter_map(|e| std::str::from_utf8(e).ok());
        entries
            .find_map(|e| e.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
    };
    let notes = elf.sections.iter().find(|s| s.name == ".note.gnu.build-id");
    let vermagic = info("vermagic");
    Facts {
        build_id: notes.and_then(|s| note_build_id(s.data)),
        name: info("name"),
        interpreter: None,
        entry: 0,
        kernel_release: vermagic.and_then(|v| v.split(' ').next().map(str::to_owned)),
        exports: ksymtab::exports(image),
    }
}

/// Where an address that the recipe made up is in an instance: an export of the module, say. `base`: where its core text
/// begins.
#[must_use]
pub fn resolve(module: &Object, base: u64, solver: &Solver, address: u64) -> Option<u64> {
    if address < layout::INIT {
        return base.checked_add(address);
    }
    let unknowns = module.parts.first()?.values.unknowns.iter();
    unknowns.zip(0u16..).find_map(|(unknown, number)| match unknown {
        Unknown::Section { link, len, .. } if (*link..link.saturating_add(*len)).contains(&address) => {
            Some(solver.get(number)?.wrapping_add(address.wrapping_sub(*link)))
        }
        _ => None,
    })
}

/// Whether an address that the recipe made up is in a data section.
#[must_use]
pub fn is_data(address: u64) -> bool {
    (layout::DATA..layout::ELSEWHERE).contains(&address)
}

/// The number of the unknown that stands for a part's own base in another part's fields (`core text`, `init text`),
/// to be set in the [`Solver`] by whoever knows where the part is.
#[must_use]
pub fn text_unknown(module: &Object, kind: PartKind) -> Option<u16> {
    let wanted = match kind {
        PartKind::ModuleText => layout::CORE,
        PartKind::ModuleInit => layout::INIT,
        _ => return None,
    };
    let unknowns = module.parts.first()?.values.unknowns.iter();
    unknowns.zip(0u16..).find_map(|(unknown, number)| match unknown {
        Unknown::Section { link, .. } if *link == wanted => Some(number),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_module_bytes_stops_a_file_larger_than_any_module() {
        let refused = recognise(&vec![0; MAX_MODULE_BYTES + 1]);
        assert!(matches!(
            refused,
            Err(RecipeError::TooLarge {
                limit: MAX_MODULE_BYTES,
                ..
            })
        ));
        let read = recognise(&vec![0; 1 << 20]);
        assert!(matches!(read, Err(RecipeError::Other { .. })));
    }
}
