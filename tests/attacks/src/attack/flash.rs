//! A page of a known library is written, the written code executed and the page restored, at once and by the process itself:
//! faster than anybody could read memory in between.
//!
//! Right is `modified-code` with exactly those bytes: what is captured is what was translated to run, whatever memory holds
//! afterwards.

use anyhow::{Result, bail};

use super::{Attack, Seen};
use crate::check;
use crate::group::{COMMON, Group};
use crate::said::{Change, PAGE_BYTES, bytes, changes};
use crate::scene::Scene;

/// A library that every guest has and every catalog knows.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

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
        let said = scene.guest.run_ok(&format!("/opt/planted/flash {LIBRARY} 1"))?;
        let fields: Vec<&str> = said.split_whitespace().collect();
        let [path, _, address, before, after] = fields.as_slice() else {
            bail!("flash wrote {said:?}")
        };
        let address = u64::from_str_radix(address, 16)?;
        let inside = address % PAGE_BYTES as u64;
        let wanted: Vec<Change> = changes(&bytes(before)?, &bytes(after)?)
            .into_iter()
            .map(|(at, before, after)| (at + inside, before, after))
            .collect();
        check::modified_page(scene, path, Some(address - inside), &wanted, "")
    }
}
