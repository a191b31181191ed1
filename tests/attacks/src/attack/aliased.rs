//! One frame is mapped twice: one process writes to it, another executes it. No page is ever both writable and executable,
//! and what executes has the same address and the same page-table entry all the time.
//!
//! Right is `unknown-code` with every content that ran, in the address space of the process that executes: what counts is the
//! frame that is executed, by whatever address it was written.

use anyhow::{Context, Result};

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{COMMON, Group};
use crate::scene::Scene;

/// As `guest/aliased.c` has them.
const ROUNDS: usize = 5;

/// Number 9.
#[derive(Debug)]
pub(super) struct Aliased;

impl Attack for Aliased {
    fn number(&self) -> u8 {
        9
    }

    fn name(&self) -> &'static str {
        "aliased-frame"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, each of 5 contents, where it executes"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("aliased")?;
        let attack = scene.launch(&tool)?;
        let said = scene.said(&attack, ROUNDS)?;
        let text = scene.output(&attack, |_| true)?;
        let child = text.lines().find_map(|line| line.strip_prefix("child "));
        let child: u32 = child.context("the attack named no child")?.parse()?;
        let mapped = scene.maps(child)?;
        for page in &said {
            let there = mapped.iter().find(|mapping| mapping.start == page.address);
            let there = there.context("the child has nothing mapped there")?;
            anyhow::ensure!(
                there.permissions.starts_with("r-x"),
                "it is mapped {}",
                there.permissions
            );
        }
        let seen = check::unknown_pages(scene, &said, Host { program: None })?;
        scene.kill(attack.pid)?;
        scene.kill(child)?;
        Ok(seen)
    }
}
