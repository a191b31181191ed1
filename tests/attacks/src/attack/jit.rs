//! Code that is made at run time by those who may: PHP's JIT, and the kernel's for eBPF. No attack, and the test that
//! nothing else is said.
//!
//! Right, for PHP, is one `unknown-code` of low severity in PHP, which keeps its name, with every unknown page where the
//! guest has JIT memory mapped and nowhere in a file's code; for eBPF, an unknown page of the kernel whose origin says that it
//! is laid out like the eBPF JIT's output, at the address that the guest's kernel gives for the program, with the
//! program's own constant in it. Nothing about anybody else.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::{list, living, merged};
use serde_json::Value;

use super::{Attack, Seen};
use crate::check::named;
use crate::group::{COMMON, Group};
use crate::said::{self, PAGE_BYTES};
use crate::scene::{PATIENCE, Scene, address, program_of, unknown_digests};

/// Number 13, a program's JIT.
#[derive(Debug)]
pub(super) struct Php;

/// Number 13, the kernel's.
#[derive(Debug)]
pub(super) struct Ebpf;

const PROGRAM: &str = "/usr/bin/php8.2";

const SCRIPT: &str = "<?php\nfunction work($n) { $s = 0; for ($i = 0; $i < $n; $i++) { $s = ($s * 31 + $i) % 65521; } \
                      return $s; }\nwork(20000); $jit = opcache_get_status(false)['jit']; \
                      echo $jit['buffer_size'] - $jit['buffer_free'], \"\\n\"; while (true) { work(2000); usleep(20000); }\n";

/// Without the protection PHP does not compile a file that is younger than two seconds.
const OPTIONS: &str = "-d opcache.file_update_protection=0 -d opcache.enable_cli=1 -d opcache.jit_buffer_size=16M -d opcache.jit=function -d pcre.jit=0";

impl Attack for Php {
    fn number(&self) -> u8 {
        13
    }

    fn name(&self) -> &'static str {
        "jit-php"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, low, in PHP's JIT memory only"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let since = scene.now_ns();
        let known = scene.findings()?.len();
        scene.guest.put("/tmp/jit.php", SCRIPT.as_bytes())?;
        let attack = scene.launch(&format!("php {OPTIONS} /tmp/jit.php"))?;
        let compiled = scene.output(&attack, |text| text.ends_with('\n'))?;
        let compiled: u64 = compiled.trim().parse().with_context(|| compiled.clone())?;
        ensure!(compiled > 0, "the attack did not work: PHP compiled nothing");
        let jits = |space: &&Value| {
            merged(program_of(space)) == merged(PROGRAM)
                && space["first_ns"].as_u64() >= Some(since)
                && !unknown_digests(space).is_empty()
        };
        let Some(space) = scene.soon(PATIENCE, |report| living(report).find(jits).cloned())? else {
            return Ok(Seen::wrong("no new PHP runs unknown code"));
        };
        let mapped = scene.maps(attack.pid)?;
        for (va, _) in scene.unknown_pages(&space)? {
            let there = mapped
                .iter()
                .find(|m| (m.start..m.end).contains(&va) && m.executable());
            let there = there.with_context(|| format!("the guest has no code mapped at {va:#x}"))?;
            let is_made = there.path.is_empty() || there.path.contains("(deleted)");
            ensure!(is_made, "an unknown page in {}", there.path);
        }
        let Some(arrival) = scene.about(PATIENCE, "unknown-code", &space["id"])? else {
            return Ok(Seen::wrong(format!("no finding about {}", named(&space))));
        };
        let origin = arrival.finding["evidence"]["origin"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(
            arrival.finding["severity"] == "low",
            "severity {}",
            arrival.finding["severity"]
        );
        ensure!(origin.starts_with("user memory"), "its origin: {origin}");
        let others: Vec<Value> = scene.findings()?.into_iter().skip(known).collect();
        let other = others
            .iter()
            .find(|finding| finding["address_space"] != space["id"]);
        ensure!(other.is_none(), "a finding about somebody else: {other:?}");
        let to_finding = scene.to_finding(&arrival)?;
        scene.kill(attack.pid)?;
        let text = format!("f{}, low: {}; {origin}", arrival.finding["id"], named(&space));
        Ok(Seen::right(text, Some(to_finding)))
    }
}

/// A constant that no other code has.
const NUMBER: u32 = 0x1357_9bdf;

impl Attack for Ebpf {
    fn number(&self) -> u8 {
        13
    }

    fn name(&self) -> &'static str {
        "jit-ebpf"
    }

    fn expected(&self) -> &'static str {
        "kernel, unknown, origin eBPF, at the program's address"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("filter")?;
        let own = said::digests(&scene.tools.bytes("filter")?);
        scene
            .guest
            .run_ok("sysctl -q -w net.core.bpf_jit_kallsyms=1 net.core.bpf_jit_harden=0")?;
        let before = programs(scene)?;
        let known = scene.findings()?.len();
        let attack = scene.launch(&format!("{tool} {NUMBER:x}"))?;
        let mut new = BTreeSet::new();
        for _ in 0..50 {
            new = &programs(scene)? - &before;
            if !new.is_empty() {
                break;
            }
            scene.wait(std::time::Duration::from_millis(200));
        }
        ensure!(
            new.len() == 1,
            "the guest's kernel names {} new programs",
            new.len()
        );
        let program = new.first().copied().context("no program")?;
        let page = program - program % PAGE_BYTES as u64;
        // The page holds other programs too and may have been run before: the one with this program is wanted.
        let mut found = None;
        for _ in 0..100 {
            found = kernel_page(scene, page)?;
            if found.is_some() {
                break;
            }
            scene.wait(std::time::Duration::from_millis(200));
        }
        let Some(origin) = found else {
            return Ok(Seen::wrong(format!(
                "no unknown kernel page at {page:#x} has the program"
            )));
        };
        ensure!(origin.contains("eBPF"), "its origin: {origin}");
        let findings = scene.findings()?;
        let of_kernel = findings.iter().any(|f| {
            let origin = f["evidence"]["origin"].as_str().unwrap_or_default();
            f["rule"] == "unknown-code" && origin.contains("eBPF")
        });
        ensure!(of_kernel, "no finding says that the kernel runs eBPF programs");
        for finding in findings.iter().skip(known) {
            let page = finding["evidence"]["page"]
                .as_u64()
                .context("a finding without a page")?;
            let digest = scene.control.page(page)?["digest"].take();
            let is_own = own.iter().any(|known| digest == **known);
            let origin = finding["evidence"]["origin"].as_str().unwrap_or_default();
            ensure!(
                is_own || origin.contains("eBPF"),
                "a finding about somebody else: {finding}"
            );
        }
        scene.kill(attack.pid)?;
        Ok(Seen::right(format!("at {page:#x}: {origin}"), None))
    }
}

/// The eBPF programs that the guest's kernel names, by address.
fn programs(scene: &mut Scene) -> Result<BTreeSet<u64>> {
    let text = scene
        .guest
        .run_ok("grep -E ' bpf_prog_[0-9a-f]{16}' /proc/kallsyms || true")?;
    text.lines()
        .map(|line| {
            let address = line.split_whitespace().next().unwrap_or_default();
            u64::from_str_radix(address, 16).with_context(|| format!("`{line}`"))
        })
        .collect()
}

/// The origin of the kernel's unknown page at this address that holds the program's constant.
fn kernel_page(scene: &mut Scene, page: u64) -> Result<Option<String>> {
    let report = scene.control.report()?;
    let spaces = list(&report, "address_spaces").iter();
    for space in spaces.filter(|space| space["kind"] == "kernel") {
        for unknown in list(space, "unknown")
            .iter()
            .filter(|u| address(&u["va"]) == Some(page))
        {
            let number = unknown["page"].as_u64().context("a page without a number")?;
            let evidence = scene.control.page(number)?;
            let bytes = said::bytes(evidence["bytes"].as_str().unwrap_or_default())?;
            if bytes.windows(4).any(|four| four == NUMBER.to_le_bytes()) {
                return Ok(Some(unknown["origin"].as_str().unwrap_or_default().to_owned()));
            }
        }
    }
    Ok(None)
}
