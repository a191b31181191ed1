//! A library that is preloaded into every program hides processes and files from `ps` and `ls`: the guest's own tools deny
//! that a process exists.
//!
//! Right, for the library, is `unknown-code` in the processes that load it, which keep their names, with the library's pages;
//! for a known program that runs while it is hidden, an address space with its name, package and version: the inventory asks
//! nobody in the guest. One of the two hidden processes ran all its pages before anything was hidden.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nephoscope_e2e::living::{list, living, merged};
use serde_json::Value;

use super::{Attack, Seen};
use crate::check::named;
use crate::group::{COMMON, Group};
use crate::said;
use crate::scene::{PATIENCE, Scene, program_of, unknown_digests};

/// Number 4.
#[derive(Debug)]
pub(super) struct Preload;

/// Number 6, hidden by number 4.
#[derive(Debug)]
pub(super) struct HiddenNetcat;

const NETCAT: &str = "/usr/bin/nc.openbsd";
const NETCAT_PACKAGE: &str = "netcat-openbsd";

impl Attack for Preload {
    fn number(&self) -> u8 {
        4
    }

    fn name(&self) -> &'static str {
        "preloaded-library"
    }

    fn expected(&self) -> &'static str {
        "unknown-code in ls and ps, the library's pages"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let library = scene.tool("libhide.so")?;
        let pages = said::digests(&scene.tools.bytes("libhide.so")?);
        let since = scene.now_ns();
        scene
            .guest
            .run_ok("mkdir -p /tmp/show && touch /tmp/show/hidden-file /tmp/show/plain-file")?;
        let shown = scene.guest.run_ok(&format!(
            "LD_PRELOAD={library} ls /tmp/show; LD_PRELOAD={library} ps -e -o comm="
        ))?;
        ensure!(
            shown.contains("plain-file") && !shown.contains("hidden-file"),
            "the library hides nothing: {shown}"
        );
        let mut first = None;
        for program in ["/usr/bin/ls", "/usr/bin/ps"] {
            let loads = |space: &&Value| {
                let unknown = unknown_digests(space);
                is_named(space, program)
                    && space["first_ns"].as_u64() >= Some(since)
                    && !unknown.is_empty()
                    && unknown
                        .iter()
                        .all(|digest| pages.iter().any(|page| page == digest))
            };
            let space = scene.soon(PATIENCE, |report| {
                list(report, "address_spaces").iter().find(loads).cloned()
            })?;
            let Some(space) = space else {
                return Ok(Seen::wrong(format!("no {program} with the library's pages")));
            };
            let arrival = scene.about(PATIENCE, "unknown-code", &space["id"])?;
            let Some(arrival) = arrival else {
                return Ok(Seen::wrong(format!("no finding about {}", named(&space))));
            };
            first = first.or(Some(arrival));
        }
        let first = first.context("nothing was looked for")?;
        let to_finding = scene.to_finding(&first)?;
        let text = format!(
            "f{} and another: ls and ps run the library, by their names",
            first.finding["id"]
        );
        Ok(Seen::right(text, Some(to_finding)))
    }
}

/// Whether an address space is named after this program; what `ls` runs may be of `dir` and `vdir` too, and then it is said so.
fn is_named(space: &Value, program: &str) -> bool {
    let (named, program) = (merged(program_of(space)), merged(program));
    named == program || named.starts_with(&format!("{program} (or "))
}

impl Attack for HiddenNetcat {
    fn number(&self) -> u8 {
        6
    }

    fn name(&self) -> &'static str {
        "netcat-hidden-by-library"
    }

    fn expected(&self) -> &'static str {
        "netcat twice in the inventory, package and version"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let library = scene.tool("libhide.so")?;
        hidden_netcat(
            scene,
            |scene, _| {
                let preload = format!("echo {library} >/etc/ld.so.preload");
                scene.guest.run_ok(&preload).map(drop)
            },
            |scene| scene.guest.run_ok("rm /etc/ld.so.preload").map(drop),
        )
    }
}

/// Runs netcat, hides it (`conceal` gets its process), runs another, and looks for both in the inventory while `ps` and
/// `/proc` of the guest deny them; then `reveal` ends that. What hides must hide commands of the name `nc`.
///
/// # Errors
/// When the guest does not answer, or shows what has to be hidden.
pub fn hidden_netcat(
    scene: &mut Scene,
    conceal: impl FnOnce(&mut Scene, u32) -> Result<()>,
    reveal: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<Seen> {
    let version = scene.version_of(NETCAT_PACKAGE)?;
    let since = scene.now_ns();
    let before = scene.launch("nc -l -p 7801")?;
    scene.wait(Duration::from_secs(1));
    conceal(scene, before.pid)?;
    let after = scene.launch("nc -l -p 7802")?;
    scene.wait(Duration::from_secs(1));
    let seen = (|| {
        let shown = scene.guest.run_ok("ps -e -o pid=,comm=; ls /proc")?;
        for pid in [before.pid, after.pid] {
            let pid = pid.to_string();
            let denied = shown.split_whitespace().all(|word| word != pid && word != "nc");
            ensure!(denied, "the guest shows process {pid}: {shown}");
        }
        let is_it = |space: &&Value| {
            merged(program_of(space)) == merged(NETCAT) && space["first_ns"].as_u64() >= Some(since)
        };
        let both = scene.soon(PATIENCE, |report| {
            let spaces: Vec<Value> = living(report).filter(is_it).cloned().collect();
            (spaces.len() == 2).then_some(spaces)
        })?;
        let Some(both) = both else {
            return Ok(Seen::wrong("there are not two living address spaces of netcat"));
        };
        for space in &both {
            let candidates = list(&space["program"], "candidates");
            let right = candidates.len() == 1
                && candidates
                    .iter()
                    .all(|c| c["package"] == NETCAT_PACKAGE && c["version"] == version.as_str());
            if !right {
                return Ok(Seen::wrong(format!("{} is of {candidates:?}", named(space))));
            }
        }
        let numbers: Vec<String> = both.iter().map(|space| space["id"].to_string()).collect();
        Ok(Seen::right(
            format!(
                "address spaces {}: {NETCAT_PACKAGE} {version}",
                numbers.join(" and ")
            ),
            None,
        ))
    })();
    reveal(scene)?;
    for pid in [before.pid, after.pid] {
        if !scene.guest.run(&format!("kill -9 {pid}"))?.success() {
            bail!("netcat was not running all the time");
        }
    }
    seen
}
