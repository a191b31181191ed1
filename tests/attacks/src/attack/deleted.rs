//! A program's file is removed while it runs: there is nothing left in the guest to compare it with.
//!
//! Right, for a copy of a catalogued program, is its name, package and version, and no finding: what it runs is what the
//! package brought, wherever the file was. It goes on to run pages that it had not run when the file went. For a program of
//! no package it is `unknown-code`, with the program's own bytes where the guest has the deleted file mapped.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::{list, living, merged};

use super::{Attack, Seen};
use crate::check::{named, no_remark};
use crate::group::{COMMON, Group};
use crate::said;
use crate::scene::{PATIENCE, Scene, program_of};

/// Number 2, a catalogued program.
#[derive(Debug)]
pub(super) struct Known;

/// Number 2, a program of no package.
#[derive(Debug)]
pub(super) struct Unknown;

const PROGRAM: &str = "/usr/bin/python3.11";
const PACKAGE: &str = "python3.11-minimal";

/// Waits for a word before it runs what it has not run before.
const WORK: &str = "import os, time\nwhile not os.path.exists('/tmp/go-on'): time.sleep(0.05)\n\
                    import json, re\nprint(re.sub('a', 'b', json.dumps(['a'])))\ntime.sleep(1000)";

impl Attack for Known {
    fn number(&self) -> u8 {
        2
    }

    fn name(&self) -> &'static str {
        "deleted-known"
    }

    fn expected(&self) -> &'static str {
        "named python3 with package and version, no finding"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let version = scene.version_of(PACKAGE)?;
        let since = scene.now_ns();
        scene.guest.put("/tmp/work.py", WORK.as_bytes())?;
        scene
            .guest
            .run_ok(&format!("rm -f /tmp/go-on; cp {PROGRAM} /tmp/gone"))?;
        let attack = scene.launch("/tmp/gone -u /tmp/work.py")?;
        scene.wait(Duration::from_secs(1));
        scene.guest.run_ok("rm /tmp/gone && touch /tmp/go-on")?;
        scene.output(&attack, |text| text.contains("[\"b\"]"))?;
        let exe = scene
            .guest
            .run_ok(&format!("readlink /proc/{}/exe", attack.pid))?;
        ensure!(exe.trim() == "/tmp/gone (deleted)", "the process is {exe}");
        let found = scene.soon(PATIENCE, |report| {
            let mut spaces = living(report).filter(|space| {
                merged(program_of(space)) == merged(PROGRAM) && space["first_ns"].as_u64() >= Some(since)
            });
            spaces.next().cloned()
        })?;
        let Some(space) = found else {
            return Ok(Seen::wrong("no new address space is named python3"));
        };
        let candidates = list(&space["program"], "candidates");
        let is_it = candidates.len() == 1
            && candidates
                .iter()
                .all(|c| c["package"] == PACKAGE && c["version"] == version.as_str());
        if !is_it {
            return Ok(Seen::wrong(format!(
                "named as of {candidates:?}, not {PACKAGE} {version}"
            )));
        }
        if let Some(remark) = no_remark(scene, &space)? {
            return Ok(Seen::wrong(remark));
        }
        scene.kill(attack.pid)?;
        Ok(Seen::right(
            format!("{}, {PACKAGE} {version}", named(&space)),
            None,
        ))
    }
}

impl Attack for Unknown {
    fn number(&self) -> u8 {
        2
    }

    fn name(&self) -> &'static str {
        "deleted-unknown"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, no program named, the file's pages"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        // A byte at its end makes it another program than those of other attacks: only its last page is its own.
        let mut program = std::fs::read(scene.image.plants().program("stranger"))?;
        program.push(1);
        scene.guest.put("/tmp/gone-too", &program)?;
        let attack = scene.launch("/tmp/gone-too 60")?;
        scene.wait(Duration::from_millis(300));
        scene.guest.run_ok("rm /tmp/gone-too")?;
        let mut mapped = scene.maps(attack.pid)?;
        mapped.retain(|mapping| mapping.executable() && mapping.path == "/tmp/gone-too (deleted)");
        ensure!(!mapped.is_empty(), "the program does not run");
        let pages = said::digests(&program);
        let there = |space: &serde_json::Value| {
            list(space, "unknown").iter().any(|page| {
                let va = crate::scene::address(&page["va"]);
                mapped
                    .iter()
                    .any(|m| va.is_some_and(|va| (m.start..m.end).contains(&va)))
            })
        };
        let space = scene.soon(PATIENCE, |report| {
            living(report).find(|space| there(space)).cloned()
        })?;
        let Some(space) = space else {
            return Ok(Seen::wrong(
                "no address space has unknown pages where it is mapped",
            ));
        };
        ensure!(space["program"].is_null(), "taken for {}", space["program"]);
        for (va, digest) in scene.unknown_pages(&space)? {
            let of = mapped
                .iter()
                .find(|mapping| (mapping.start..mapping.end).contains(&va));
            let of = of.with_context(|| format!("an unknown page at {va:#x}, where it is not mapped"))?;
            let number = usize::try_from((va - of.start + of.offset) / said::PAGE_BYTES as u64)?;
            ensure!(
                pages.get(number) == Some(&digest),
                "the page at {va:#x} is another"
            );
        }
        let arrival = scene.about(PATIENCE, "unknown-code", &space["id"])?;
        let arrival = arrival.context("there is no finding about it")?;
        let to_finding = scene.to_finding(&arrival)?;
        scene.kill(attack.pid)?;
        let text = format!("f{}: {}, byte for byte", arrival.finding["id"], named(&space));
        Ok(Seen::right(text, Some(to_finding)))
    }
}
