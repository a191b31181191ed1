//! A kernel module stands in the way of a system call and hides a process, files and itself (`modules/umbra.c`).
//!
//! Right is, whatever the guest says of itself:
//!
//! - The module's own pages are unknown code of the kernel, byte for byte, and there is a finding about them.
//! - *By patching text*: the kernel's page is modified, with the image, the offset and the bytes. What was overwritten is a
//!   place that ftrace may rewrite, and it is found all the same: a jump into a module is nothing that ftrace writes.
//! - *By ftrace*: the place may hold a no-op or a call of the two trampolines that are in the image. For this hook the kernel
//!   makes a trampoline at run time and calls that. So the page of the kernel is modified, because the call leads to code
//!   that no image has, and the trampoline itself is unknown.

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::arrivals::Arrival;
use serde_json::Value;

use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::kernel_code::{
    hexadecimal, load, modified_at, own_pages, page_of, section, symbol, told, unknown_between, words,
};
use crate::said::{self, Change};
use crate::scene::{PATIENCE, Scene};
use crate::tools::FOLDER;

/// What stands in the way of listings.
const TARGET: &str = "__x64_sys_getdents64";

/// The length of a call and of a jump.
const INSTRUCTION: u64 = 5;

/// Number 5, by patching.
#[derive(Debug)]
pub(super) struct ByPatch;

/// Number 5, by ftrace.
#[derive(Debug)]
pub(super) struct ByFtrace;

impl Attack for ByPatch {
    fn number(&self) -> u8 {
        5
    }

    fn name(&self) -> &'static str {
        "rootkit-patch"
    }

    fn expected(&self) -> &'static str {
        "module: unknown code of the kernel; its jump: kernel modified there, byte for byte"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        attack(scene, true)
    }
}

impl Attack for ByFtrace {
    fn number(&self) -> u8 {
        5
    }

    fn name(&self) -> &'static str {
        "rootkit-ftrace"
    }

    fn expected(&self) -> &'static str {
        "module and trampoline: unknown code of the kernel; the call of it: kernel modified there"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        attack(scene, false)
    }
}

fn attack(scene: &mut Scene, patch: bool) -> Result<Seen> {
    let module = scene.module("umbra")?;
    let since = scene.now_ns();
    begin(scene, &module, patch)?;
    let seen = judge(scene, &module, patch, since);
    end(scene)?;
    seen
}

/// Loads the rootkit, which hides what it hides.
pub(super) fn begin(scene: &mut Scene, module: &[u8], patch: bool) -> Result<()> {
    let target = symbol(scene, TARGET)?;
    load(
        scene,
        "umbra",
        module,
        &format!("target={target:#x} patch={}", u8::from(patch)),
    )
}

/// Lets the rootkit hide a process.
pub(super) fn hide(scene: &mut Scene, pid: u32) -> Result<()> {
    scene
        .guest
        .run_ok(&format!("echo {pid} > /sys/module/umbra/parameters/pid"))?;
    let processes = scene.guest.run_ok("ls /proc")?;
    ensure!(
        !processes.lines().any(|name| name == pid.to_string()),
        "process {pid} is not hidden"
    );
    Ok(())
}

/// Takes the rootkit out again.
pub(super) fn end(scene: &mut Scene) -> Result<()> {
    scene
        .guest
        .run_ok("echo 0 > /sys/module/umbra/parameters/hooked && rmmod umbra")?;
    Ok(())
}

fn judge(scene: &mut Scene, module: &[u8], patch: bool, since: u64) -> Result<Seen> {
    let pid = scene.guest.start("sleep 600")?;
    scene.guest.run_ok(&format!("echo there > {FOLDER}/umbra-file"))?;
    hide(scene, pid)?;
    let listed = scene.guest.run_ok(&format!(
        "ls {FOLDER} /sys/module; cat /proc/modules; cat {FOLDER}/umbra-file"
    ))?;
    ensure!(
        listed.ends_with("there\n") && !listed.contains("umbra"),
        "not hidden: {listed}"
    );
    scene.kill(pid)?;

    let text = section(scene, "umbra", ".text")?;
    let pages = own_pages(scene, PATIENCE, module, ".text", text)?;
    let found = unknown_in_kernel(scene, text, since)?;
    let (site, change) = expected(scene, patch)?;
    let report = scene.control.report()?;
    let (path, changes) =
        modified_at(&report, site).with_context(|| format!("nothing is modified at {site:#x}"))?;
    let release = scene.image.release(scene.kernel)?;
    ensure!(path.ends_with(&format!("/vmlinuz-{release}")), "taken for {path}");
    ensure!(
        changes == change,
        "expected {}, seen {}",
        words(&change),
        words(&changes)
    );
    if !patch {
        let trampoline = trampoline(scene)?;
        let unknown = unknown_between(&report, trampoline, trampoline + 1);
        ensure!(
            !unknown.is_empty(),
            "the trampoline at {trampoline:#x} is not unknown"
        );
    }
    let arrival = modified_finding(scene, site, &change, since)?;
    let time = scene.to_finding(&arrival)?.max(scene.to_finding(&found)?);
    Ok(Seen::right(
        format!(
            "{pages} page(s) of the module unknown; {path} {}",
            words(&changes)
        ),
        Some(time),
    ))
}

/// Whether a finding is about what ran since the rootkit was loaded: it is loaded twice, maybe where it was before.
fn is_since(finding: &Value, since: u64) -> bool {
    finding["at_ns"].as_u64().is_some_and(|at| at >= since)
}

/// The finding about the kernel's unknown code in the page of this address.
fn unknown_in_kernel(scene: &mut Scene, address: u64, since: u64) -> Result<Arrival> {
    let found = scene.finding(PATIENCE, |_, finding| {
        let at = finding["evidence"]["va"].as_str().map(hexadecimal).transpose()?;
        let wanted = finding["rule"] == "unknown-code" && at == Some(page_of(address));
        Ok((wanted && is_since(finding, since)).then_some(()))
    })?;
    let (arrival, ()) = found.with_context(|| format!("no finding about the code at {address:#x}"))?;
    Ok(arrival)
}

/// The finding about the kernel's page of this address, with these changes.
fn modified_finding(scene: &mut Scene, address: u64, changes: &[Change], since: u64) -> Result<Arrival> {
    let found = scene.finding(PATIENCE, |_, finding| {
        let wanted = finding["rule"] == "modified-code" && told(&finding["evidence"])? == changes;
        Ok((wanted && is_since(finding, since)).then_some(()))
    })?;
    let (arrival, ()) = found.with_context(|| format!("no finding about the page of {address:#x}"))?;
    Ok(arrival)
}

/// The place that the hook rewrote, and what it holds now instead of what the image has there: a call of `__fentry__`.
fn expected(scene: &mut Scene, patch: bool) -> Result<(u64, Vec<Change>)> {
    let parameter = scene.guest.run_ok("cat /sys/module/umbra/parameters/place")?;
    let site = hexadecimal(&parameter)?;
    let fentry = symbol(scene, "__fentry__")?;
    let (opcode, to) = if patch {
        let hook = scene.guest.run_ok("cat /sys/module/umbra/parameters/hook")?;
        (0xe9, hexadecimal(&hook)?)
    } else {
        (0xe8, trampoline(scene)?)
    };
    let before = branch(0xe8, site, fentry);
    let changes = said::changes(&before, &branch(opcode, site, to));
    let offset = site - page_of(site);
    let changes = changes
        .into_iter()
        .map(|(at, before, after)| (offset + at, before, after));
    Ok((site, changes.collect()))
}

/// A call or a jump from one address to another.
fn branch(opcode: u8, from: u64, to: u64) -> Vec<u8> {
    let distance = to.wrapping_sub(from.wrapping_add(INSTRUCTION)).to_le_bytes();
    std::iter::once(opcode)
        .chain(distance.into_iter().take(4))
        .collect()
}

/// The trampoline that the kernel made for the hook, as it says itself.
fn trampoline(scene: &mut Scene) -> Result<u64> {
    let script = "awk '$3 == \"ftrace_trampoline\" { print $1; exit }' /proc/kallsyms";
    hexadecimal(&scene.guest.run_ok(script)?).context("the kernel made no trampoline")
}
