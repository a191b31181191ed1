//! Linux kernel images.
//!
//! ```text
//!  bzImage ─► payload ─► ELF ─► sections ─► tables ─► rewrites ─► sites of .text, .init.text, …
//!                         └─► relocations after it          └─► the vDSO images inside
//! ```
//!
//! Section names survive in the payload, symbols do not; the image carries its own symbol table for back-traces
//! ([`kallsyms`]), which names what has no section.

pub(crate) mod alternative;
pub(crate) mod build;
pub(crate) mod bytes;
pub(crate) mod call_depth;
pub(crate) mod content;
pub(crate) mod elf;
pub(crate) mod image;
pub(crate) mod insn;
mod kallsyms;
mod kaslr;
pub(crate) mod ksymtab;
mod names;
mod parts;
pub(crate) mod pokes;
pub(crate) mod retpoline;
mod setup;
pub(crate) mod tables;
mod torn;

use crate::bzimage;
use crate::error::RecipeError;
use crate::object::{Facts, Object, ObjectKind, Part, PartKind, Placement};
use crate::site::{SiteKind, Unknown, Values};
pub use build::Skipped;
use image::Image;
use kallsyms::Kallsyms;
use names::KernelNames;

/// The recipe of a kernel image: a bzImage, or its vmlinux.
///
/// # Errors
///
/// [`RecipeError`] if it is neither, or if what it claims to be does not hold.
pub fn recognise(file: &[u8]) -> Result<Object, RecipeError> {
    recognise_counting(file).map(|(object, _)| object)
}

/// The same, with what was left out.
///
/// # Errors
///
/// As [`recognise`].
pub fn recognise_counting(file: &[u8]) -> Result<(Object, Skipped), RecipeError> {
    if !bzimage::is_bzimage(file) {
        return of_payload(file, None);
    }
    let boot = bzimage::open(file)?;
    let (mut object, skipped) = of_payload(&boot.payload, boot.version.as_deref())?;
    object.parts.push(setup::part(boot.setup));
    for (name, bytes) in [("decompressor.head", boot.head), ("decompressor", boot.tail)] {
        if !bytes.is_empty() {
            object.parts.push(boot_code(name, bytes));
        }
    }
    Ok((object, skipped))
}

fn boot_code(name: &str, bytes: &[u8]) -> Part {
    Part {
        kind: PartKind::BootCode,
        name: name.to_owned(),
        link: 0,
        placement: Placement::Anywhere,
        bytes: bytes.to_vec(),
        sites: Vec::new(),
        values: Values::default(),
    }
}

fn of_payload(payload: &[u8], version: Option<&str>) -> Result<(Object, Skipped), RecipeError> {
    if payload.len() > bzimage::MAX_KERNEL_BYTES {
        return Err(RecipeError::TooLarge {
            what: "a kernel image",
            limit: bzimage::MAX_KERNEL_BYTES,
        });
    }
    let elf = elf::read(payload)?;
    let mut sections = elf.sections.clone();
    let (mut unknowns, mut constants) = (vec![Unknown::Slide], Vec::new());
    names::runtime_constants(&sections, &mut unknowns, &mut constants);
    for constant in &constants {
        names::clear_field(&mut sections, constant);
    }
    let mut moving = kaslr::relocations(payload, elf.len);
    moving.extend(constants.iter().copied());
    let image = Image::new(sections, moving);
    let symbols = image
        .section(".rodata")
        .and_then(|s| Kallsyms::find(&s.raw))
        .unwrap_or_default();
    let names = KernelNames::new(symbols);
    let malformed = RecipeError::Malformed {
        what: ".altinstructions",
        at: 0,
    };
    let (mut rewrites, _) = tables::rewrites(&image, &names).ok_or(malformed)?;
    rewrites.extend(names.paddings(&image));
    rewrites.sort_by_key(|r| (r.va, r.stage));
    let recipe = build::Recipe {
        image: &image,
        rewrites,
        moving: SiteKind::Kaslr,
        paravirt: tables::Link::paravirt(&names),
        writers: torn::Writers::find(&names),
    };
    let mut skipped = Skipped::default();
    let mut parts = parts::text(&elf, &recipe, &names, &unknowns, &mut skipped);
    parts::runtime_constants(&mut parts, &constants);
    parts.extend(crate::vdso::find(&image));
    parts.extend(names.real_mode(&image));
    let exports = names.exports(&image, ksymtab::exports(&image));
    let release = version.and_then(|v| v.split(' ').next()).map(str::to_owned);
    let facts = Facts {
        build_id: elf.build_id.clone(),
        name: release.or_else(|| names::release(&image)),
        interpreter: None,
        entry: elf.entry,
        kernel_release: None,
        exports,
    };
    let object = Object {
        kind: ObjectKind::Kernel,
        facts,
        loads: Vec::new(),
        pages: Vec::new(),
        parts,
    };
    Ok((object, skipped))
}
