//! Ways to load code into a guest's kernel and to ask the report about it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::list;
use object::{Object, ObjectSection, RelocationTarget};
use serde_json::Value;

use crate::said::{self, Change, PAGE_BYTES};
use crate::scene::Scene;
use crate::tools::FOLDER;

/// A page of the guest is so large.
const PAGE: u64 = PAGE_BYTES as u64;

/// How many bytes around a relocation the kernel may rewrite with it: the opcode before the field, what follows it up to
/// the end of the instruction.
const AROUND: usize = 6;

/// Loads a module into the guest's kernel.
///
/// # Errors
/// When the guest cannot load it.
pub(crate) fn load(scene: &mut Scene, name: &str, bytes: &[u8], arguments: &str) -> Result<()> {
    let path = format!("{FOLDER}/{name}.ko");
    scene.guest.put(&path, bytes)?;
    let load = scene
        .guest
        .run_ok(&format!("insmod {path} {arguments}; rm {path}"));
    load.map(drop)
        .with_context(|| format!("the guest's kernel does not take {name}"))
}

/// Where a symbol of the guest's kernel is, as the guest says.
///
/// # Errors
/// When it has no such symbol.
pub(crate) fn symbol(scene: &mut Scene, name: &str) -> Result<u64> {
    let script = format!("awk '$3 == \"{name}\" {{ print $1; exit }}' /proc/kallsyms");
    hexadecimal(&scene.guest.run_ok(&script)?).with_context(|| format!("the guest's kernel has no {name}"))
}

/// Where a loaded module has a section.
///
/// # Errors
/// When it is not loaded, or has no such section.
pub(crate) fn section(scene: &mut Scene, module: &str, section: &str) -> Result<u64> {
    let path = format!("/sys/module/{module}/sections/{section}");
    hexadecimal(&scene.guest.run_ok(&format!("cat {path}"))?).with_context(|| format!("{path} is no address"))
}

/// A number as the kernel writes addresses.
///
/// # Errors
/// When it is none.
pub(crate) fn hexadecimal(text: &str) -> Result<u64> {
    let text = text.trim();
    Ok(u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)?)
}

/// The address of the page that an address is in.
pub(crate) fn page_of(address: u64) -> u64 {
    address - address % PAGE
}

/// The address spaces of a kind that have not ended.
pub(crate) fn living<'v>(report: &'v Value, kind: &str) -> impl Iterator<Item = &'v Value> {
    let spaces = list(report, "address_spaces").iter();
    spaces.filter(move |space| space["kind"] == kind && space["ended"].is_null())
}

/// The address of an entry of a report.
pub(crate) fn va(entry: &Value) -> Option<u64> {
    hexadecimal(entry["va"].as_str()?).ok()
}

/// The kernel's unknown pages that lie between two addresses: page number and address.
pub(crate) fn unknown_between(report: &Value, from: u64, to: u64) -> Vec<(u64, u64)> {
    let unknown = living(report, "kernel").flat_map(|space| list(space, "unknown"));
    let pages = unknown.filter_map(|page| Some((page["page"].as_u64()?, va(page)?)));
    pages.filter(|(_, va)| (page_of(from)..to).contains(va)).collect()
}

/// The changed bytes of the kernel's modified page at an address, with the path of the file: the latest generation.
pub(crate) fn modified_at(report: &Value, address: u64) -> Option<(String, Vec<Change>)> {
    let modified = living(report, "kernel").flat_map(|space| list(space, "modified"));
    let here = modified.filter(|page| va(page) == Some(page_of(address)));
    let page = here.max_by_key(|page| page["page"].as_u64())?;
    Some((page["path"].as_str()?.to_owned(), told(page).ok()?))
}

/// The changes that an entry or a finding's evidence tells.
///
/// # Errors
/// When they are none.
pub(crate) fn told(entry: &Value) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    for run in list(entry, "differences") {
        let offset = run["offset"].as_u64().context("a difference without an offset")?;
        let bytes = |name: &str| said::bytes(run[name].as_str().unwrap_or_default());
        let changes = said::changes(&bytes("before")?, &bytes("after")?);
        found.extend(
            changes
                .into_iter()
                .map(|(at, before, after)| (offset + at, before, after)),
        );
    }
    Ok(found)
}

/// Changes in words, the first few of them.
pub(crate) fn words(changes: &[Change]) -> String {
    let words = changes
        .iter()
        .take(8)
        .map(|(at, before, after)| format!("+{at:#x} {before:02x}→{after:02x}"));
    words.collect::<Vec<_>>().join(", ")
}

/// Waits until the kernel is seen to run code that is in no file between two addresses, and holds the pages to the section
/// of the module that was loaded there. Says how many they are.
///
/// # Errors
/// When nothing is seen, or the pages are not the module's.
pub(crate) fn own_pages(
    scene: &mut Scene,
    limit: Duration,
    module: &[u8],
    name: &str,
    at: u64,
) -> Result<usize> {
    let object = object::File::parse(module)?;
    let section = object
        .section_by_name(name)
        .with_context(|| format!("the module has no {name}"))?;
    let data = section.data()?;
    let mut fixed = vec![true; data.len()];
    for (field, relocation) in section.relocations() {
        // All of them refer to symbols; what refers to nothing moves nothing.
        if relocation.target() != RelocationTarget::Absolute {
            forget(&mut fixed, usize::try_from(field)?);
        }
    }
    for other in object
        .sections()
        .filter(|other| REWRITES.contains(&other.name().unwrap_or_default()))
    {
        for (_, relocation) in other.relocations() {
            if let RelocationTarget::Section(target) = relocation.target()
                && target == section.index()
            {
                forget(&mut fixed, usize::try_from(relocation.addend().max(0))?);
            }
        }
    }
    let end = at + section.size();
    let pages = scene.soon(limit, |report| {
        let pages = unknown_between(report, at, end);
        (!pages.is_empty()).then_some(pages)
    })?;
    let pages =
        pages.with_context(|| format!("no unknown page of the kernel at {at:#x}, where its code is"))?;
    for (page, va) in &pages {
        let told = scene.control.page(*page)?;
        let bytes = said::bytes(told["bytes"].as_str().unwrap_or_default())?;
        ensure!(
            bytes.len() == PAGE_BYTES,
            "the bytes of page {page} were not kept"
        );
        for (offset, (byte, fixed)) in data.iter().zip(&fixed).enumerate() {
            let address = at + u64::try_from(offset)?;
            if *fixed && page_of(address) == *va {
                let seen = bytes.get(usize::try_from(address - va)?);
                ensure!(
                    seen == Some(byte),
                    "the page at {va:#x} is not the module's: {seen:02x?} at {address:#x}, not {byte:02x}"
                );
            }
        }
    }
    Ok(pages.len())
}

/// Sections that say where the kernel rewrites code.
const REWRITES: [&str; 5] = [
    ".altinstructions",
    ".return_sites",
    ".retpoline_sites",
    ".ibt_endbr_seal",
    "__mcount_loc",
];

/// What is around a field may be rewritten.
fn forget(fixed: &mut [bool], field: usize) {
    let from = field.saturating_sub(2);
    let to = field.saturating_add(AROUND).min(fixed.len());
    if let Some(range) = fixed.get_mut(from..to) {
        range.fill(false);
    }
}
