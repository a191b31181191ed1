//! Code that writes into the page that it runs from, a few bytes ahead of itself, and runs what it wrote.
//!
//! Right is `unknown-code` with every content that the page had while it ran: a CPU executes what was written, so each is a
//! generation of its own. A monitor that looks at pages when they are first mapped, or from time to time, has one of them.

use anyhow::Result;

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{COMMON, Group};
use crate::scene::Scene;

/// The page before the first round, and after each (`guest/selfmod.c`).
const GENERATIONS: usize = 6;

/// Number 8.
#[derive(Debug)]
pub(super) struct SelfModifying;

impl Attack for SelfModifying {
    fn number(&self) -> u8 {
        8
    }

    fn name(&self) -> &'static str {
        "self-modifying"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, each of 6 contents of the page"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("selfmod")?;
        let attack = scene.launch(&tool)?;
        let said = scene.said(&attack, GENERATIONS)?;
        let seen = check::unknown_pages(scene, &said, Host { program: None })?;
        scene.kill(attack.pid)?;
        Ok(seen)
    }
}
