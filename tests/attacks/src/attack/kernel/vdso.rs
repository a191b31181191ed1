//! A process patches the kernel's page of code that is mapped into every process, the vDSO, and runs it.
//!
//! Right is a modified page in that address space alone, byte for byte, and the vDSO of all others as it was.

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::list;

use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::kernel_code::{told, va, words};
use crate::said::{Said, changes};
use crate::scene::{PATIENCE, Scene};

/// Number 12.
#[derive(Debug)]
pub(super) struct Vdso;

impl Attack for Vdso {
    fn number(&self) -> u8 {
        12
    }

    fn name(&self) -> &'static str {
        "vdso"
    }

    fn expected(&self) -> &'static str {
        "the vDSO is modified in one address space, byte for byte"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("vdso")?;
        let pid = scene.guest.run_ok(&format!(
            "setsid {tool} </dev/null >/tmp/vdso 2>&1 & for i in $(seq 100); do grep -q '^page after' /tmp/vdso && break; \
             sleep 0.1; done; echo $!"
        ))?;
        let pages = Said::pages(&scene.guest.run_ok("cat /tmp/vdso")?)?;
        let [before, after] = pages.as_slice() else {
            anyhow::bail!("the attack did not work: it said {} pages", pages.len())
        };
        let wanted = changes(&before.bytes, &after.bytes);
        let found = scene.finding(PATIENCE, |_, finding| {
            let wanted = finding["rule"] == "modified-code" && told(&finding["evidence"])? == wanted;
            Ok(wanted.then_some(()))
        })?;
        let report = scene.control.report()?;
        scene.kill(pid.trim().parse()?)?;
        let (arrival, ()) = found.with_context(|| format!("no finding with {}", words(&wanted)))?;
        let spaces = list(&report, "address_spaces").iter();
        let with = spaces.flat_map(|space| {
            let pages = list(space, "modified").iter();
            pages
                .filter(|page| told(page).is_ok_and(|told| told == wanted))
                .map(move |page| (space, page))
        });
        let with: Vec<_> = with.collect();
        let [(space, page)] = with.as_slice() else {
            anyhow::bail!("{} address spaces have the patched page", with.len())
        };
        ensure!(
            space["id"] == arrival.finding["address_space"],
            "in another address space"
        );
        ensure!(
            va(page) == Some(after.address),
            "at {}, not at {:#x}",
            page["va"],
            after.address
        );
        let release = scene.image.release(scene.kernel)?;
        let path = page["path"].as_str().unwrap_or_default();
        ensure!(path.ends_with(&format!("/vmlinuz-{release}")), "taken for {path}");
        let time = scene.to_finding(&arrival)?;
        Ok(Seen::right(
            format!(
                "address space {}: {path} at {}, {}",
                space["id"],
                page["va"],
                words(&wanted)
            ),
            Some(time),
        ))
    }
}
