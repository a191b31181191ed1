//! A program that is in no package, run from a memfd or from a file that was copied from nowhere.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Planting, address, list};
use crate::truth::{Mapping, Truth};

const PAGE_BYTES: usize = 4096;

/// How long the program stays, in seconds: until the guest was asked where it is.
const STAYS: u32 = 60;

impl Planting<'_> {
    /// Runs an ELF from a memfd: there is no file that it could be compared with, in the guest or anywhere.
    ///
    /// # Errors
    /// When the guest or the watch does not answer.
    pub fn memfd(&mut self) -> Result<Case> {
        let script = format!("/opt/planted/plant-memfd /opt/planted/stranger {STAYS}");
        self.stranger("an ELF run from a memfd", &script, "/memfd:payload")
    }

    /// Copies a program into the guest and runs it.
    ///
    /// # Errors
    /// As [`Planting::memfd`].
    pub fn copied(&mut self) -> Result<Case> {
        let program = self.stranger.clone();
        self.guest.put("/tmp/stranger", &program)?;
        let script = format!("/tmp/stranger {STAYS}");
        self.stranger("a program copied from nowhere", &script, "/tmp/stranger")
    }

    fn stranger(&mut self, what: &str, script: &str, mapped_as: &str) -> Result<Case> {
        let pages: Vec<String> = self.stranger.chunks(PAGE_BYTES).map(digest).collect();
        let begun = Instant::now();
        let pid = self.guest.start(script)?;
        let patience = self.patience();
        let (arrivals, control) = (&mut self.arrivals, &mut self.control);
        let arrival = arrivals.wait(patience, |finding| {
            let page = finding["evidence"]["page"].as_u64();
            let (true, Some(page)) = (finding["rule"] == "unknown-code", page) else {
                return Ok(None);
            };
            let digest = control.page(page)?["digest"].take();
            Ok(pages.iter().any(|known| digest == **known).then_some(()))
        })?;
        let mapped = self.mappings(pid, mapped_as)?;
        let found = match arrival {
            None => Err(format!("nothing within {} s", patience.as_secs())),
            Some((arrival, ())) => {
                let space = self.address_space(&arrival.finding)?;
                let seen = self.unknown_pages(&space)?;
                compare(&space, &seen, &mapped, &pages)
                    .map_err(|error| format!("{error:#}"))
                    .and_then(|equal| self.sighting(&arrival, begun, equal))
            }
        };
        Ok(Case {
            what: format!("{what} (process {pid})"),
            expected: format!("unknown-code in an address space without a known program: {mapped_as}"),
            found,
        })
    }

    /// The address space's unknown pages: address and digest. Where an address space sees a page that it has just begun to
    /// run may not be in the report yet; then it is where the page first ran.
    fn unknown_pages(&mut self, space: &Value) -> Result<Vec<(u64, String)>> {
        let mut pages = Vec::new();
        for page in list(space, "unknown") {
            let va = match address(&page["va"]) {
                Some(va) => Some(va),
                None => {
                    let number = page["page"].as_u64().context("a page without a number")?;
                    self.control.page(number)?["va"].as_u64()
                }
            };
            let digest = page["digest"].as_str().unwrap_or_default();
            pages.push((
                va.with_context(|| format!("a page without an address: {page}"))?,
                digest.to_owned(),
            ));
        }
        Ok(pages)
    }

    /// Where the guest says that a process has this file's code.
    fn mappings(&mut self, pid: u32, path: &str) -> Result<Vec<Mapping>> {
        let maps = self.guest.run_ok(&format!("grep -H '' /proc/{pid}/maps"))?;
        let mut truth = Truth::parse(&format!("@maps\n{maps}@end\n"))?;
        let process = truth.processes.remove(&pid).unwrap_or_default();
        let mut mappings = process.mappings;
        mappings.retain(|mapping| mapping.executable() && mapping.path.starts_with(path));
        ensure!(!mappings.is_empty(), "process {pid} does not run {path}: {maps}");
        Ok(mappings)
    }
}

/// Whether an address space is that process: no program is named in it, and each of its unknown pages lies where the guest
/// has the program's code mapped (at an address that was drawn for this process) and has the bytes that the program has
/// there.
fn compare(space: &Value, seen: &[(u64, String)], mapped: &[Mapping], pages: &[String]) -> Result<String> {
    ensure!(space["kind"] == "user", "address space of kind {}", space["kind"]);
    ensure!(space["program"].is_null(), "taken for {}", space["program"]);
    ensure!(!seen.is_empty(), "the address space has no unknown page");
    for (va, digest) in seen {
        let offset = mapped
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(va))
            .and_then(|mapping| va.checked_sub(mapping.start)?.checked_add(mapping.offset))
            .with_context(|| format!("the guest has no code of it mapped at {va:#x}"))?;
        ensure!(
            pages.get(usize::try_from(offset)? / PAGE_BYTES) == Some(digest),
            "the page at {va:#x} is not what the program has there"
        );
    }
    Ok(format!(
        "{} page(s), byte for byte, where the guest has them mapped",
        seen.len()
    ))
}

/// As a page's digest stands in reports; the end of a file is filled up with zeros.
fn digest(block: &[u8]) -> String {
    let mut page = [0; PAGE_BYTES];
    if let Some(start) = page.get_mut(..block.len()) {
        start.copy_from_slice(block);
    }
    blake3::hash(&page).to_hex().to_string()
}
