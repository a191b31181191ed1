//! A known program, netcat, runs while a kernel module keeps it out of every listing of the guest (`modules/umbra.c`).
//!
//! Right is that both of its processes stand among the living, with package and version: the one that had run before it was
//! hidden, and the one that was started after, whose pages had all run before. Nobody asks the guest.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::rootkit::{begin, end, hide};
use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::kernel_code::living;
use crate::scene::{PATIENCE, Scene};

const PROGRAM: &str = "/bin/nc.openbsd";
const PACKAGE: &str = "netcat-openbsd";

/// Number 6, by a module.
#[derive(Debug)]
pub(super) struct RootkitHidden;

impl Attack for RootkitHidden {
    fn number(&self) -> u8 {
        6
    }

    fn name(&self) -> &'static str {
        "rootkit-hides-netcat"
    }

    fn expected(&self) -> &'static str {
        "two living address spaces of netcat, with package and version"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let module = scene.module("umbra")?;
        let others = netcats(&scene.control.report()?, "").len();
        let first = scene.guest.start("nc -l 127.0.0.1 4001")?;
        // It runs, and is seen to, before anything is hidden.
        let version = scene.version_of(PACKAGE)?;
        let seen = scene.soon(PATIENCE, |report| {
            (netcats(report, &version).len() == others + 1).then_some(())
        })?;
        ensure!(
            seen.is_some(),
            "netcat is not in the inventory before it is hidden"
        );
        begin(scene, &module, true)?;
        hide(scene, first)?;
        let second = scene.guest.start("nc -l 127.0.0.1 4002")?;
        hide(scene, second)?;
        let seen = scene.soon(PATIENCE, |report| {
            let spaces = netcats(report, &version);
            (spaces.len() == others + 2).then_some(spaces)
        })?;
        end(scene)?;
        scene.kill(first)?;
        scene.kill(second)?;
        Ok(match seen {
            Some(spaces) => Seen::right(format!("{PACKAGE} {version} in address spaces {spaces:?}"), None),
            None => Seen::wrong("the two are not both in the inventory"),
        })
    }
}

/// The living address spaces that run netcat, of this version alone; of any version, if it is empty.
fn netcats(report: &Value, version: &str) -> BTreeSet<u64> {
    let spaces = living(report, "user").filter(|space| {
        let path = space["program"]["path"].as_str().unwrap_or_default();
        let candidates = space["program"]["candidates"].as_array();
        path.ends_with(PROGRAM)
            && candidates.is_some_and(|candidates| {
                let right =
                    |c: &Value| c["package"] == PACKAGE && (version.is_empty() || c["version"] == version);
                !candidates.is_empty() && candidates.iter().all(right)
            })
    });
    spaces.filter_map(|space| space["id"].as_u64()).collect()
}
