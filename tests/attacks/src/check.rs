//! Judgements that several attacks have in common.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::{list, merged};
use serde_json::Value;

use crate::attack::Seen;
use crate::said::{Change, Said, bytes};
use crate::scene::{PATIENCE, Scene, program_of};

/// What an address space with a certain page has to be.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The program that must be named; `None`: none may be.
    pub program: Option<&'a str>,
}

/// Holds unknown pages to what a planted program says: all of them in one address space, each where that program ran it, in
/// an address space with that program and no other, with a finding about it.
///
/// # Errors
/// When the watch does not answer.
pub fn unknown_pages(scene: &mut Scene, said: &[Said], host: Host<'_>) -> Result<Seen> {
    let digests: Vec<String> = said.iter().map(Said::digest).collect();
    let Some(space) = scene.space_with(PATIENCE, &digests)? else {
        return Ok(Seen::wrong(format!(
            "no address space has all {} pages among its unknown ones",
            digests.len()
        )));
    };
    let Some(arrival) = scene.about(Duration::from_secs(5), "unknown-code", &space["id"])? else {
        return Ok(Seen::wrong(format!(
            "no finding about address space {}",
            space["id"]
        )));
    };
    let seen = scene.unknown_pages(&space)?;
    for (page, digest) in said.iter().zip(&digests) {
        if !seen
            .iter()
            .any(|(va, found)| found == digest && *va == page.address)
        {
            return Ok(Seen::wrong(format!(
                "the page that ran at {:#x} is elsewhere: {seen:x?}",
                page.address
            )));
        }
    }
    if let Err(why) = is_hosted(&space, host) {
        return Ok(Seen::wrong(format!("{why:#}")));
    }
    let to_finding = scene.to_finding(&arrival)?;
    let text = format!(
        "f{}: {} page(s) of the attack, byte for byte, in {}",
        arrival.finding["id"],
        said.len(),
        named(&space)
    );
    Ok(Seen::right(text, Some(to_finding)))
}

/// Whether an address space is named as it has to be.
///
/// # Errors
/// When it is not.
pub fn is_hosted(space: &Value, host: Host<'_>) -> Result<()> {
    let program = program_of(space);
    let right = merged(program) == host.program.map_or("", merged);
    ensure!(right, "named as {program:?}, not as {:?}", host.program);
    Ok(())
}

/// Holds a finding to a change of a known file's page: this file, this program, these bytes, at this address, once.
///
/// # Errors
/// When the watch does not answer.
pub fn modified_page(
    scene: &mut Scene,
    path: &str,
    at: Option<u64>,
    wanted: &[Change],
    program: &str,
) -> Result<Seen> {
    let found = scene.finding(PATIENCE, |_, finding| {
        let is_of_it = finding["rule"] == "modified-code" && same_path(&finding["evidence"]["path"], path);
        Ok((is_of_it && differences(&finding["evidence"])? == wanted).then_some(()))
    })?;
    let Some((arrival, ())) = found else {
        return Ok(Seen::wrong(format!(
            "no finding with {} changed bytes of {path}",
            wanted.len()
        )));
    };
    let space = scene.space(&arrival.finding["address_space"])?;
    let number = &arrival.finding["evidence"]["page"];
    let listed = list(&space, "modified")
        .iter()
        .find(|page| page["page"] == *number);
    let listed = listed.context("the finding's page is not in the report")?;
    if differences(listed)? != wanted || !same_path(&listed["path"], path) {
        return Ok(Seen::wrong(format!(
            "the report tells of another change: {listed}"
        )));
    }
    let va = scene.control.page(number.as_u64().unwrap_or(0))?["va"].as_u64();
    if at.is_some() && va != at {
        return Ok(Seen::wrong(format!("found at {va:x?}, changed at {at:x?}")));
    }
    if merged(program_of(&space)) != merged(program) {
        return Ok(Seen::wrong(format!(
            "found in {}, not in {program}",
            named(&space)
        )));
    }
    let to_finding = scene.to_finding(&arrival)?;
    let text = format!(
        "f{}: {} byte(s) of {path}, each where it was changed, in {}",
        arrival.finding["id"],
        wanted.len(),
        named(&space)
    );
    Ok(Seen::right(text, Some(to_finding)))
}

/// The bytes that a finding or a report's page says are different.
///
/// # Errors
/// When it says so in another way than reports do.
pub fn differences(told: &Value) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    for run in list(told, "differences") {
        let offset = run["offset"].as_u64().context("a difference without an offset")?;
        let text = |name: &str| run[name].as_str().unwrap_or_default();
        let (before, after) = (bytes(text("before"))?, bytes(text("after"))?);
        found.extend(
            (offset..)
                .zip(before.into_iter().zip(after))
                .map(|(at, (b, a))| (at, b, a)),
        );
    }
    Ok(found)
}

/// An address space in words: its number and program.
pub fn named(space: &Value) -> String {
    match program_of(space) {
        "" => format!("address space {} (no program)", space["id"]),
        program => format!("address space {} ({program})", space["id"]),
    }
}

fn same_path(told: &Value, path: &str) -> bool {
    told.as_str().is_some_and(|told| merged(told) == merged(path))
}

/// What is said against an address space of which nothing may be said: unknown or modified pages, or a finding.
///
/// # Errors
/// When the watch does not answer.
pub fn no_remark(scene: &mut Scene, space: &Value) -> Result<Option<String>> {
    let space = scene.space(&space["id"])?;
    for what in ["unknown", "modified"] {
        if !list(&space, what).is_empty() {
            return Ok(Some(format!(
                "{} has {what} pages: {}",
                named(&space),
                space[what]
            )));
        }
    }
    let findings = scene.findings()?;
    let about = findings
        .iter()
        .find(|finding| finding["address_space"] == space["id"]);
    Ok(about.map(|finding| format!("a finding: {}", finding["summary"])))
}
