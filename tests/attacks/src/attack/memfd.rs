//! An ELF is copied into a memfd and run from there: no file that anybody could look at holds what runs.
//!
//! Right is a finding `unknown-code` about an address space without a known program, with the program's own bytes where the
//! guest has the memfd mapped: the pages are captured as they are about to run, and no file is asked.

use anyhow::Result;

use super::{Attack, Seen};
use crate::group::{COMMON, Group};
use crate::scene::Scene;

/// Number 1.
#[derive(Debug)]
pub(super) struct Memfd;

impl Attack for Memfd {
    fn number(&self) -> u8 {
        1
    }

    fn name(&self) -> &'static str {
        "memfd"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, no program named, the ELF's own pages"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let case = scene.planting()?.memfd()?;
        Ok(super::of_case(case))
    }
}
