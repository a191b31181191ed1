//! A running web server whose text is changed through ptrace.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Case, Planting, Sighting, address, list};
use crate::arrivals::Arrival;

/// A function of nginx that every request runs through.
const FUNCTION: &str = "ngx_http_finalize_request";

/// A library that every guest has and every catalog knows.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// Between two requests: with several workers, not every one reaches the one that was patched.
const REQUEST_EVERY: Duration = Duration::from_millis(250);

const PAGE_BYTES: u64 = 4096;

/// One changed byte: its offset in its page, what it was, what it is.
type Change = (u64, u8, u8);

/// What `plant-patch` says that it did.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Patch {
    path: String,
    /// The program that runs it; empty for one that nobody knows.
    program: String,
    /// Of the page, in the address space.
    page: u64,
    changes: Vec<Change>,
}

impl Planting<'_> {
    /// Rewrites one instruction of a running nginx worker, and lets it serve.
    ///
    /// # Errors
    /// When the guest or the watch does not answer.
    pub fn patched(&mut self) -> Result<Case> {
        let worker = self.guest.run_ok("pgrep -o -f 'nginx: worker'")?;
        let worker = worker.trim();
        let begun = Instant::now();
        let said = self
            .guest
            .run_ok(&format!("/opt/planted/plant-patch {worker} {FUNCTION}"))?;
        let patch = Patch::parse(&said)?;
        let mut arrival = None;
        while arrival.is_none() && begun.elapsed() < self.patience() {
            let (status, _) = self.guest.http_get("/")?;
            ensure!(status == 200, "the patched server answers {status}");
            arrival = self.arrivals.wait(REQUEST_EVERY, |finding| {
                let wanted = finding["rule"] == "modified-code" && patch.is_of_it(&finding["evidence"]);
                Ok(wanted.then_some(()))
            })?;
        }
        let found = self.held_to(&patch, arrival.map(|(arrival, ())| arrival), begun)?;
        Ok(Case {
            what: format!(
                "a running nginx worker (process {worker}), one instruction rewritten through ptrace"
            ),
            expected: format!(
                "modified-code in one address space: {} at {:#x}, {}",
                patch.path,
                patch.page,
                words(&patch.changes)
            ),
            found,
        })
    }
}

impl Planting<'_> {
    /// Lets a program map a page of a known library, change it, run the change and restore the page at once.
    ///
    /// # Errors
    /// When the guest or the watch does not answer.
    pub fn flashed(&mut self) -> Result<Case> {
        let begun = Instant::now();
        let said = self.guest.run_ok(&format!("/opt/planted/flash {LIBRARY} 1"))?;
        let patch = Patch {
            program: String::new(),
            ..Patch::parse(&said)?
        };
        let patience = self.patience();
        let arrival = self.arrivals.wait(patience, |finding| {
            let wanted = finding["rule"] == "modified-code" && patch.is_of_it(&finding["evidence"]);
            Ok(wanted.then_some(()))
        })?;
        let found = self.held_to(&patch, arrival.map(|(arrival, ())| arrival), begun)?;
        Ok(Case {
            what: "a page of a library, written, executed and restored at once".to_owned(),
            expected: format!(
                "modified-code: {} at {:#x}, {}",
                patch.path,
                patch.page,
                words(&patch.changes)
            ),
            found,
        })
    }
}

impl Planting<'_> {
    /// What came, if anything did, held to the patch.
    fn held_to(
        &mut self,
        patch: &Patch,
        arrival: Option<Arrival>,
        begun: Instant,
    ) -> Result<Result<Sighting, String>> {
        let Some(arrival) = arrival else {
            return Ok(Err(format!("nothing within {} s", self.patience().as_secs())));
        };
        let report = self.control.report()?;
        Ok(patch
            .compare(&arrival.finding, &report)
            .map_err(|error| format!("{error:#}"))
            .and_then(|equal| self.sighting(&arrival, begun, equal)))
    }
}

impl Patch {
    /// `PATH OFFSET ADDRESS BEFORE AFTER`
    fn parse(said: &str) -> Result<Self> {
        let fields: Vec<&str> = said.split_whitespace().collect();
        let [path, _, address, before, after] = fields.as_slice() else {
            bail!("plant-patch wrote {said:?}")
        };
        let address = u64::from_str_radix(address, 16)?;
        let page = address - address % PAGE_BYTES;
        Ok(Patch {
            path: (*path).to_owned(),
            program: (*path).to_owned(),
            page,
            changes: changes(address - page, before, after)?,
        })
    }

    /// Whether the finding and the report tell of this patch, in one address space of this program, and of no other change
    /// of it.
    fn compare(&self, finding: &Value, report: &Value) -> Result<String> {
        let changed = list(report, "address_spaces").iter().flat_map(|space| {
            let pages = list(space, "modified").iter();
            pages
                .filter(|page| self.is_of_it(page))
                .map(move |page| (space, page))
        });
        let changed: Vec<(&Value, &Value)> = changed.collect();
        let [(space, page)] = changed.as_slice() else {
            bail!("{} changed pages of {} in the report", changed.len(), self.path)
        };
        ensure!(
            space["id"] == finding["address_space"],
            "another address space: {}",
            space["id"]
        );
        let program = space["program"]["path"].as_str().unwrap_or_default();
        ensure!(merged(program) == merged(&self.program), "found in {program:?}");
        ensure!(
            page["page"] == finding["evidence"]["page"],
            "another page: {page}"
        );
        ensure!(address(&page["va"]) == Some(self.page), "found at {}", page["va"]);
        for told in [*page, &finding["evidence"]] {
            ensure!(self.is_of_it(told), "taken for {}", told["path"]);
            let mut found = Vec::new();
            for run in list(told, "differences") {
                let offset = run["offset"].as_u64().context("a difference without an offset")?;
                let text = |name: &str| run[name].as_str().unwrap_or_default();
                found.extend(changes(offset, text("before"), text("after"))?);
            }
            ensure!(found == self.changes, "found {}", words(&found));
        }
        Ok(format!(
            "{}, at the address where it was patched",
            words(&self.changes)
        ))
    }

    /// Whether something is told of the patched file.
    fn is_of_it(&self, told: &Value) -> bool {
        merged(told["path"].as_str().unwrap_or_default()) == merged(&self.path)
    }
}

/// The bytes that differ between two texts of hexadecimal digits, of which the first stands at `offset`.
fn changes(offset: u64, before: &str, after: &str) -> Result<Vec<Change>> {
    let (before, after) = (bytes(before)?, bytes(after)?);
    ensure!(before.len() == after.len(), "as many bytes before as after");
    Ok((offset..)
        .zip(before.into_iter().zip(after))
        .filter(|(_, (before, after))| before != after)
        .map(|(at, (before, after))| (at, before, after))
        .collect())
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| Ok(u8::from_str_radix(&pair, 16)?)).collect()
}

fn words(changes: &[Change]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|(at, before, after)| format!("+{at:#x} {before:02x}→{after:02x}"))
        .collect();
    words.join(", ")
}

/// Paths before and after `/usr` was merged are the same file.
fn merged(path: &str) -> &str {
    path.strip_prefix("/usr").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::{Patch, changes};

    #[test]
    fn only_the_bytes_that_changed_count_wherever_a_run_begins() {
        let patch = Patch::parse("/usr/sbin/nginx 45ffe 5555000a0ffe 4989fd 498bef\n").unwrap();
        assert_eq!(patch.page, 0x5555_000a_0000);
        assert_eq!(patch.changes, [(0xfff, 0x89, 0x8b), (0x1000, 0xfd, 0xef)]);
        assert_eq!(changes(0xfff, "89fd", "8bef").unwrap(), patch.changes);
        assert!(changes(0, "89", "8bef").is_err() && changes(0, "zz", "00").is_err());
    }
}
