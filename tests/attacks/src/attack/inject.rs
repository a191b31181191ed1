//! Code is brought into a running program of a package by another process: into a fresh page through ptrace, and over the
//! program's own instructions through `/proc/PID/mem`, which asks no page whether it may be written.
//!
//! Right is, for the fresh page, `unknown-code` in the address space of that program, which keeps its name, with the page's
//! bytes where they were put: the victim did not become another program, and its new code is nobody's. For the
//! overwritten instructions it is `modified-code`: the library that they are of, and exactly the bytes that the injector
//! wrote over others. The page was executed before it was changed, so that a monitor that looked once would not look again.

use anyhow::{Context, Result};

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{COMMON, Group};
use crate::said::{Said, changes};
use crate::scene::{Launched, Scene};

/// Number 3, through ptrace.
#[derive(Debug)]
pub(super) struct ThroughPtrace;

/// Number 3, through `/proc/PID/mem`.
#[derive(Debug)]
pub(super) struct ThroughMem;

/// The program that the victim is.
const PROGRAM: &str = "/usr/bin/python3.11";

/// What it sleeps in.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// A program of a package that works now and then.
pub(super) fn victim(scene: &mut Scene) -> Result<Launched> {
    let victim = scene.launch("python3 -u -c \"import time\nprint(1)\nwhile True: time.sleep(0.05)\"")?;
    scene.output(&victim, |text| text.contains('1'))?;
    // It has run what it will be running: the pages of its loop are captured as they are in the file.
    scene.wait(std::time::Duration::from_millis(500));
    Ok(victim)
}

fn inject(scene: &mut Scene, how: &str) -> Result<(Launched, Vec<Said>)> {
    let (tool, victim) = (scene.tool("inject")?, victim(scene)?);
    let said = scene.guest.run_ok(&format!("{tool} {how} {}", victim.pid))?;
    Ok((victim, Said::pages(&said)?))
}

impl Attack for ThroughPtrace {
    fn number(&self) -> u8 {
        3
    }

    fn name(&self) -> &'static str {
        "inject-ptrace"
    }

    fn expected(&self) -> &'static str {
        "unknown-code in python3, the injected page"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let (victim, said) = inject(scene, "ptrace")?;
        let host = Host {
            program: Some(PROGRAM),
        };
        let seen = check::unknown_pages(scene, &said, host)?;
        let mapped = scene.maps(victim.pid)?;
        let page = said.first().context("the injector said nothing")?;
        let there = mapped
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(&page.address));
        let there = there.context("the guest has nothing mapped at the injected page")?;
        scene.kill(victim.pid)?;
        anyhow::ensure!(
            there.executable() && there.path.is_empty(),
            "the injected page is of {there:?}"
        );
        Ok(seen)
    }
}

impl Attack for ThroughMem {
    fn number(&self) -> u8 {
        3
    }

    fn name(&self) -> &'static str {
        "inject-mem"
    }

    fn expected(&self) -> &'static str {
        "modified-code in python3, libc, the written bytes"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let (victim, said) = inject(scene, "mem")?;
        let [was, runs] = said.as_slice() else {
            anyhow::bail!("the injector said {} pages", said.len())
        };
        let wanted = changes(&was.bytes, &runs.bytes);
        let seen = check::modified_page(scene, LIBRARY, Some(runs.address), &wanted, PROGRAM)?;
        scene.kill(victim.pid)?;
        Ok(seen)
    }
}
