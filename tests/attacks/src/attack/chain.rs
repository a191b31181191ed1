//! Code reuse: a process is made to create a file by return addresses on its stack, which lead through the ends of functions
//! that it has already. Not a byte of code is added or changed.
//!
//! Right is nothing: what runs is the C library, byte for byte, and saying anything else would be false. It is not promised
//! to be seen, and nothing that is said may claim that it did not happen: the design says that attacks without new code
//! are invisible to code identity, and a report says what ran and how complete the watch was, never that a VM is clean.

use anyhow::{Result, ensure};
use nephoscope_e2e::living::{living, merged};

use super::{Attack, Seen, inject};
use crate::check::{named, no_remark};
use crate::group::{COMMON, Group};
use crate::scene::{PATIENCE, Scene, program_of};

/// Number 21.
#[derive(Debug)]
pub(super) struct Chain;

/// Where it is documented.
const DESIGN: &str = include_str!("../../../../docs/design.md");

impl Attack for Chain {
    fn number(&self) -> u8 {
        21
    }

    fn name(&self) -> &'static str {
        "code-reuse"
    }

    fn expected(&self) -> &'static str {
        "not seen, documented; no finding, nothing claimed"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        ensure!(
            DESIGN.contains("attacks that add no code (ROP, data-only) are invisible"),
            "the design does not say that code reuse is not seen"
        );
        let tool = scene.tool("chain")?;
        let since = scene.now_ns();
        let victim = inject::victim(scene)?;
        let mine = |space: &serde_json::Value| {
            merged(program_of(space)) == "/bin/python3.11" && space["first_ns"].as_u64() >= Some(since)
        };
        let space = scene.soon(PATIENCE, |report| {
            living(report).find(|space| mine(space)).cloned()
        })?;
        let Some(space) = space else {
            return Ok(Seen::wrong("the victim is not in the inventory"));
        };
        let said = scene
            .guest
            .run_ok(&format!("{tool} {} /tmp/made-by-a-chain", victim.pid))?;
        scene.wait(std::time::Duration::from_secs(2));
        scene.guest.run_ok("test -e /tmp/made-by-a-chain")?;
        let mapped = scene.maps(victim.pid)?;
        let gadgets = said.lines().filter_map(|line| line.strip_prefix("gadget "));
        let mut count = 0;
        for gadget in gadgets {
            let at = u64::from_str_radix(gadget, 16)?;
            let of = mapped.iter().find(|m| (m.start..m.end).contains(&at));
            ensure!(
                of.is_some_and(|m| m.path.ends_with("libc.so.6")),
                "{at:#x} is of {of:?}"
            );
            count += 1;
        }
        ensure!(count == 4, "the chain used {count} ends of functions");
        if let Some(remark) = no_remark(scene, &space)? {
            return Ok(Seen::wrong(format!("something is said that is not so: {remark}")));
        }
        scene.kill(victim.pid)?;
        Ok(Seen::right(
            format!("the file is there; nothing about {}", named(&space)),
            None,
        ))
    }
}
