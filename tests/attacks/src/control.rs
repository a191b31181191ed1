//! The control run: the same guests, ordinary work, no attack, and no finding. Packages are upgraded meanwhile: what the
//! catalog has is known at once, what it has not is unknown, and nothing else is.
//!
//! Findings about code that is really made at run time by those who may (the kernel's eBPF programs, which systemd loads) are
//! right, and are told apart by what the guest's kernel itself names; PHP is asked to make none.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::command::output_of;
use nephoscope_e2e::living::{list, living, merged};
use nephoscope_e2e::{Kernel, Step};
use serde_json::Value;

use crate::campaign::Campaign;
use crate::group::COMMON;
use crate::row::Row;
use crate::scene::{PATIENCE, Scene, program_of};

/// A package of one program, in three versions: the guest begins with the first, is upgraded to the second, which is
/// catalogued, and to the third, which is not.
const PACKAGE: &str = "nephoscope-ticker";
const PROGRAM: &str = "/usr/bin/ticker";

/// Versions, and whether the catalog has them.
const VERSIONS: [(&str, bool); 3] = [("1.0", true), ("1.1", true), ("1.2", false)];

/// One round of what a small server does.
const ROUND: &str = "set -e
for i in 1 2 3 4 5 6 7 8 9 10; do curl -s -o /dev/null http://localhost/; curl -s -o /dev/null http://localhost/index.php; done
python3 /opt/nephoscope/work.py >/dev/null
ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new localhost hostname >/dev/null 2>&1
ls -lR /usr/share >/dev/null; tar -C /etc -cf - . 2>/dev/null | gzip | wc -c >/dev/null
/opt/nephoscope/shortlived 50
systemctl restart nginx; ps aux >/dev/null; dpkg -l >/dev/null; openssl version >/dev/null 2>&1 || true
";

/// Runs it for so long at least, and gives a row for each thing that had to be so.
///
/// # Errors
/// When the guest does not come up or does not answer.
pub fn run(campaign: &Campaign, kernel: Kernel, lasting: Duration) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let debs = packages(folder.path())?;
    let catalog = catalog(campaign, folder.path(), &debs)?;
    let mut scene = campaign.open_with(COMMON, kernel, catalog)?;
    let mut rows = Vec::new();
    let mut row = |what: &str, expected: &str, seen: Result<String, String>| {
        rows.push(Row {
            attack: format!("control {what}"),
            kernel: kernel.version(),
            expected: expected.to_owned(),
            ok: seen.is_ok(),
            seen: seen.unwrap_or_else(|why| why),
            to_finding: None,
        });
    };
    // PHP makes code for regular expressions, which is found, and rightly so.
    scene
        .guest
        .run_ok("echo pcre.jit=0 >/etc/php/8.2/fpm/conf.d/99-control.ini && systemctl restart php8.2-fpm")?;
    let begun = Instant::now();
    let step = Step::begin("Ordinary work");
    let mut rounds = 0;
    scene.guest.run_within(ROUND, Duration::from_secs(300))?;
    row(
        "upgrade",
        "each catalogued version by name at once",
        text(upgrades(&mut scene, &debs)),
    );
    loop {
        let output = scene.guest.run_within(ROUND, Duration::from_secs(300))?;
        ensure!(output.success(), "the work failed: {}", output.stderr_text());
        rounds += 1;
        if begun.elapsed() >= lasting {
            break;
        }
    }
    step.done(&format!("{rounds} round(s)"));
    let seen = false_alarms(&mut scene, &debs)
        .map(|right| format!("{rounds} round(s) in {} s, {right}", begun.elapsed().as_secs()));
    row("work", "no finding but of code made at run time", text(seen));
    let seen = unknown_upgrade(&mut scene, &debs);
    row(
        "unknown upgrade",
        "unknown-code: the version is not catalogued",
        text(seen),
    );
    let gaps = crate::scene::gaps(&scene.close()?, 0, false);
    let seen = if gaps.is_empty() {
        Ok("complete from power-on to power-off".to_owned())
    } else {
        Err(Value::Array(gaps).to_string())
    };
    row("coverage", "complete", seen);
    Ok(rows)
}

fn text(seen: Result<String>) -> Result<String, String> {
    seen.map_err(|error| format!("{error:#}"))
}

/// Installs each catalogued version and runs its program.
fn upgrades(scene: &mut Scene, debs: &[PathBuf]) -> Result<String> {
    let mut seen = Vec::new();
    for (deb, (version, _)) in debs.iter().zip(VERSIONS).filter(|(_, (_, known))| *known) {
        install(scene, deb)?;
        let since = scene.now_ns();
        let ticker = scene.launch(PROGRAM)?;
        scene.output(&ticker, |text| text.contains(version))?;
        let is_it = |space: &&Value| {
            merged(program_of(space)) == merged(PROGRAM) && space["first_ns"].as_u64() >= Some(since)
        };
        let space = scene.soon(PATIENCE, |report| living(report).find(is_it).cloned())?;
        let space = space.with_context(|| format!("version {version} is not named"))?;
        let told = list(&space["program"], "candidates");
        let right = told.len() == 1
            && told
                .iter()
                .all(|c| c["package"] == PACKAGE && c["version"] == version);
        ensure!(right, "version {version} is taken for {told:?}");
        if let Some(remark) = crate::check::no_remark(scene, &space)? {
            anyhow::bail!("of version {version} it is said: {remark}");
        }
        scene.kill(ticker.pid)?;
        seen.push(version);
    }
    Ok(format!("{PACKAGE} {}, by name", seen.join(" and then ")))
}

fn unknown_upgrade(scene: &mut Scene, debs: &[PathBuf]) -> Result<String> {
    let deb = debs.last().context("there is no such version")?;
    install(scene, deb)?;
    let since = scene.now_ns();
    let ticker = scene.launch(PROGRAM)?;
    scene.output(&ticker, |text| text.contains("1.2"))?;
    let found = scene.finding(PATIENCE, |_, finding| {
        let new = finding["at_ns"].as_u64() >= Some(since) && finding["rule"] == "unknown-code";
        Ok(new.then_some(()))
    })?;
    let (arrival, ()) = found.context("there is no finding")?;
    let space = scene.space(&arrival.finding["address_space"])?;
    ensure!(space["program"].is_null(), "taken for {}", space["program"]);
    scene.kill(ticker.pid)?;
    Ok(format!(
        "f{}: {}",
        arrival.finding["id"],
        crate::check::named(&space)
    ))
}

/// Findings of the guest so far: all have to be of eBPF programs that the guest's kernel has loaded.
fn false_alarms(scene: &mut Scene, _debs: &[PathBuf]) -> Result<String> {
    let findings = scene.findings()?;
    for finding in &findings {
        let origin = finding["evidence"]["origin"].as_str().unwrap_or_default();
        ensure!(origin.contains("eBPF"), "a false alarm: {}", finding["summary"]);
    }
    if !findings.is_empty() {
        let loaded = scene
            .guest
            .run_ok("ls /proc/*/fdinfo 2>/dev/null | wc -l; grep -l prog_tag /proc/*/fdinfo/* | wc -l")?;
        let count: u64 = loaded
            .split_whitespace()
            .last()
            .context("nothing counted")?
            .parse()?;
        ensure!(count > 0, "the guest has no eBPF program: {findings:?}");
    }
    Ok(format!(
        "{} finding(s), of eBPF programs that the guest has loaded",
        findings.len()
    ))
}

fn install(scene: &mut Scene, deb: &Path) -> Result<()> {
    scene.guest.put("/tmp/ticker.deb", &std::fs::read(deb)?)?;
    scene.guest.run_ok("dpkg -i /tmp/ticker.deb").map(drop)
}

/// The guest's catalog with the versions that it is to have.
fn catalog(campaign: &Campaign, folder: &Path, debs: &[PathBuf]) -> Result<PathBuf> {
    let catalog = folder.join("catalog");
    output_of(
        Command::new("cp")
            .args(["-r", "--link"])
            .arg(&campaign.place().catalog)
            .arg(&catalog),
    )?;
    let known = debs.iter().zip(VERSIONS).filter(|(_, (_, known))| *known);
    output_of(
        Command::new(&campaign.place().program)
            .args(["catalog", "add", "--catalog"])
            .arg(&catalog)
            .args(known.map(|(deb, _)| deb)),
    )?;
    Ok(catalog)
}

/// The package in each version.
fn packages(folder: &Path) -> Result<Vec<PathBuf>> {
    VERSIONS
        .iter()
        .map(|(version, _)| package(folder, version))
        .collect()
}

fn package(folder: &Path, version: &str) -> Result<PathBuf> {
    let root = folder.join(version);
    let program = root.join(PROGRAM.trim_start_matches('/'));
    std::fs::create_dir_all(program.parent().context("a program without a folder")?)?;
    std::fs::create_dir_all(root.join("DEBIAN"))?;
    // Each version has more to do than the one before; a few bytes of difference would be a changed program.
    let number: u32 = version.replace('.', "").parse()?;
    let work: String = (0..(number - 9) * 25)
        .map(|i| format!("n = n * {} + {i};\n", number + 2 * i + 1))
        .collect();
    let source = format!(
        "#include <stdio.h>\n#include <unistd.h>\nint main(void) {{ volatile unsigned n = 0; puts(\"{version}\");\n\
         fflush(stdout); for (;;) {{ usleep(20000);\n{work} }} }}\n"
    );
    std::fs::write(folder.join("ticker.c"), source)?;
    output_of(
        Command::new("gcc")
            .arg("-O1")
            .arg("-o")
            .arg(&program)
            .arg(folder.join("ticker.c")),
    )?;
    let control = format!(
        "Package: {PACKAGE}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <nobody@example.invalid>\n\
         Description: for a test\n"
    );
    std::fs::write(root.join("DEBIAN/control"), control)?;
    let deb = folder.join(format!("{PACKAGE}_{version}_amd64.deb"));
    output_of(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(&root)
            .arg(&deb),
    )?;
    Ok(deb)
}
