//! A program runs code in a page of 2 MiB, which its kernel gives to whoever asks for one: a large leaf of its page tables.
//!
//! Right is `unknown-code` with the two of the 512 pages of 4 KiB that ran, each where it ran, and with no other.

use anyhow::Result;
use nephoscope_e2e::living::list;

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{COMMON, Group};
use crate::said::Said;
use crate::scene::{PATIENCE, Scene};

/// Number 14, as any program can do it.
#[derive(Debug)]
pub(super) struct Huge;

impl Attack for Huge {
    fn number(&self) -> u8 {
        14
    }

    fn name(&self) -> &'static str {
        "leaf-2m-user"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, 2 pages of the 512, where they ran"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        // It takes whole 2 MiB of memory that nobody uses.
        scene.guest.run_ok(
            "echo 1 > /proc/sys/vm/compact_memory; echo 2 > /proc/sys/vm/nr_hugepages; grep -q '^HugePages_Free: *[1-9]' /proc/meminfo",
        )?;
        let tool = scene.tool("huge")?;
        let attack = scene.launch(&tool)?;
        let said = scene.said(&attack, 2)?;
        let seen = check::unknown_pages(scene, &said, Host { program: None })?;
        let digests: Vec<String> = said.iter().map(Said::digest).collect();
        let space = scene.space_with(PATIENCE, &digests)?;
        scene.kill(attack.pid)?;
        scene.guest.run_ok("echo 0 > /proc/sys/vm/nr_hugepages")?;
        // Its own page, and the two.
        let unknown = space.map_or(0, |space| list(&space, "unknown").len());
        if seen.ok && unknown > 3 {
            return Ok(Seen::wrong(format!(
                "{unknown} pages are unknown, of which 3 ran"
            )));
        }
        Ok(seen)
    }
}
