//! Process hollowing: a program of a package is started, stopped before its first instruction, and all its code replaced in
//! memory. Name, arguments, file and mappings say `sleep`; nothing of `sleep` ever runs.
//!
//! Right is `unknown-code` in an address space without a program: a process is named by the code that runs, not by the file
//! that the guest's kernel says is mapped. Naming it `sleep`, even with a remark, would be a false identity.

use anyhow::{Context, Result, ensure};

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{COMMON, Group};
use crate::scene::Scene;

/// Number 10.
#[derive(Debug)]
pub(super) struct Hollow;

impl Attack for Hollow {
    fn number(&self) -> u8 {
        10
    }

    fn name(&self) -> &'static str {
        "hollowed-process"
    }

    fn expected(&self) -> &'static str {
        "unknown-code at sleep's entry point, not named sleep"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("hollow")?;
        let attack = scene.launch(&format!("{tool} /usr/bin/sleep 1000"))?;
        let said = scene.said(&attack, 1)?;
        let text = scene.output(&attack, |_| true)?;
        let pid = text.lines().find_map(|line| line.strip_prefix("process "));
        let pid: u32 = pid.context("the attack named no process")?.parse()?;
        let exe = scene.guest.run_ok(&format!("readlink /proc/{pid}/exe"))?;
        ensure!(exe.trim() == "/usr/bin/sleep", "the process is {exe}");
        let seen = check::unknown_pages(scene, &said, Host { program: None })?;
        scene.kill(pid)?;
        Ok(seen)
    }
}
