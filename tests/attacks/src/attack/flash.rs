//! A page of a known library is written, the written code executed and the page restored, at once and by the process itself:
//! faster than anybody could read memory in between.
//!
//! Right is `modified-code` with exactly those bytes: what is captured is what was translated to run, whatever memory holds
//! afterwards.

use anyhow::Result;

use super::{Attack, Seen};
use crate::group::{COMMON, Group};
use crate::scene::Scene;

/// Number 7.
#[derive(Debug)]
pub(super) struct Flash;

impl Attack for Flash {
    fn number(&self) -> u8 {
        7
    }

    fn name(&self) -> &'static str {
        "write-run-restore"
    }

    fn expected(&self) -> &'static str {
        "modified-code, libc, the bytes that ran"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let case = scene.planting()?.flashed()?;
        Ok(super::of_case(case))
    }
}
