//! Code that no instruction of the guest wrote: the disk's DMA brings a page of a file into a frame that held other code,
//! which had run (`guest/dma.c`). Twice it is code that nobody knows, then a page of a library, then the first again.
//!
//! Right is a generation for each, in the order in which they ran: the frame's old identity is never kept, in neither
//! direction.

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::said::{PAGE_BYTES, Said};
use crate::scene::{PATIENCE, Scene};

const KNOWN: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// Pages that other code of the guest may bring in between.
const BETWEEN: u64 = 4096;

/// Number 15.
#[derive(Debug)]
pub(super) struct Dma;

impl Attack for Dma {
    fn number(&self) -> u8 {
        15
    }

    fn name(&self) -> &'static str {
        "dma"
    }

    fn expected(&self) -> &'static str {
        "four generations of one frame: unknown, unknown, the library's, unknown; each with its bytes"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("dma")?;
        let offset = a_return(&std::fs::read(
            scene.image.root().join(KNOWN.trim_start_matches('/')),
        )?)?;
        // On the disk: a file system in memory has no device that could write.
        let pid = scene.guest.run_ok(&format!(
            "setsid {tool} /var/tmp/dma1 /var/tmp/dma2 {KNOWN} {offset} </dev/null >/tmp/dma 2>&1 & \
             for i in $(seq 200); do grep -q '^page again' /tmp/dma && break; sleep 0.1; done; echo $!"
        ))?;
        let said = Said::pages(&scene.guest.run_ok("cat /tmp/dma")?)?;
        ensure!(
            said.len() == 4,
            "the attack did not work: it said {} pages",
            said.len()
        );
        let digests: Vec<String> = said.iter().map(Said::digest).collect();
        let verdicts = ["unknown", "unknown", "identified", "unknown"];
        let (first, second) = match digests.as_slice() {
            [first, second, ..] => (first.clone(), second.clone()),
            _ => anyhow::bail!("no pages"),
        };
        let space = scene.space_with(PATIENCE, &[first, second])?;
        let space = space.context("no address space has run both unknown pages")?;
        let arrival = scene.about(PATIENCE, "unknown-code", &space["id"])?;
        let seen = generations(scene, &space, &digests, &verdicts);
        let time = arrival.map(|arrival| scene.to_finding(&arrival)).transpose()?;
        scene.kill(pid.trim().parse()?)?;
        let frame = seen?;
        ensure!(time.is_some(), "there is no finding");
        Ok(Seen::right(
            format!("four generations of the frame at {frame:#x}"),
            time,
        ))
    }
}

/// Looks for each page in the order of their numbers, in one frame; where that is.
fn generations(
    scene: &mut Scene,
    space: &serde_json::Value,
    digests: &[String],
    verdicts: &[&str],
) -> Result<u64> {
    let unknown = space["unknown"].as_array().into_iter().flatten();
    let first = unknown.filter(|page| {
        Some(page["digest"].as_str().unwrap_or_default()) == digests.first().map(String::as_str)
    });
    let mut number = first
        .filter_map(|page| page["page"].as_u64())
        .min()
        .context("the first page has no number")?;
    let frame = scene.control.page(number)?["gpa"].clone();
    let mut generation = None;
    let end = number + BETWEEN;
    for (digest, verdict) in digests.iter().zip(verdicts) {
        let page = loop {
            ensure!(
                number < end,
                "no page of the frame with the digest {digest}, which is {verdict}"
            );
            let page = scene.control.page(number);
            number += 1;
            if let Ok(page) = page
                && page["digest"] == digest.as_str()
                && page["gpa"] == frame
            {
                break page;
            }
        };
        ensure!(
            page["verdict"] == *verdict,
            "{} instead of {verdict}",
            page["verdict"]
        );
        let next = page["generation"].as_u64();
        ensure!(next > generation, "generation {next:?} after {generation:?}");
        generation = next;
    }
    frame.as_u64().context("the frame has no place")
}

/// The offset of a `ret` in a file's text, well inside a page.
fn a_return(file: &[u8]) -> Result<usize> {
    const RET: u8 = 0xc3;
    let object = object::File::parse(file)?;
    let text = object.section_by_name(".text").context("no .text")?;
    let (from, size) = text.file_range().context("no .text")?;
    let from = usize::try_from(from)?.next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
    let to = from + usize::try_from(size)? / 2;
    let code = file.get(from..to).context("a short .text")?;
    code.iter()
        .position(|byte| *byte == RET)
        .map(|at| from + at)
        .context("no ret")
}
