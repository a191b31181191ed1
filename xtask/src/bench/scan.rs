//! `cargo xtask bench scan`: how long a look at a VM's memory takes.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::{Catalog, Guest, Image, Options, Step};
use serde_json::{Value, json};

use super::sheet::Out;
use crate::build;

/// Measure how long a look at the memory of a running guest takes, with nothing loaded.
///
/// For a guest whose memory its VMM shares and for one whose it keeps to itself, as each was booted and with all its memory in
/// use: the first look, and those after it.
#[derive(Debug, Args)]
pub(crate) struct ScanArgs {
    /// The guest's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = crate::arguments::some::<u32>)]
    memory: u32,
    /// Looks after the first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = crate::arguments::some::<usize>)]
    runs: usize,
    #[command(flatten)]
    out: Out,
}

/// Half of it zeros, half of it a library over and over: neither is a table, nor known by its first bytes.
const FILL: &str = "mount -t tmpfs -o size=95% none /mnt && \
    most=$(($(awk '/MemAvailable/{print $2}' /proc/meminfo) / 1024 - 100)) && \
    head -c $((most / 2))M /dev/zero > /mnt/zeros && \
    (while cat /usr/lib/x86_64-linux-gnu/libc.so.6; do :; done) 2>/dev/null | head -c $((most / 2))M > /mnt/files";

/// What was measured under one condition.
struct Measured {
    memory: &'static str,
    state: &'static str,
    first_ms: u64,
    /// Of the others, sorted: all of a look, and what of it was the search for roots.
    look_ms: Vec<u64>,
    search_ms: Vec<u64>,
    touched: u64,
    spaces: usize,
    frames: u64,
}

/// Runs it.
pub(crate) fn run(arguments: &ScanArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let image = Image::ensure()?;
    let catalog = Catalog::ensure(&image, &built.program)?.path();
    let mib = arguments.memory;
    let shared = [
        "-object".to_owned(),
        format!("memory-backend-memfd,id=ram,size={mib}M,share=on"),
        "-machine".to_owned(),
        "memory-backend=ram".to_owned(),
    ];
    let mut all = Vec::new();
    for (memory, extra) in [("shared", shared.to_vec()), ("its own", Vec::new())] {
        let step = Step::begin(&format!("A guest with {mib} MiB, {memory}"));
        let options = Options {
            memory_mib: mib,
            extra,
            ..Options::default()
        };
        let mut guest = Guest::boot_ready(&image, options)?;
        guest.run("systemctl is-system-running --wait; sleep 2")?;
        step.done("");
        for state in ["as booted", "all in use"] {
            if state == "all in use" {
                let step = Step::begin("Filling its memory");
                guest.run_ok(FILL)?;
                step.done("");
            }
            let mut step = Step::begin(&format!("Looking at {memory} memory, {state}"));
            let mut scan = Command::new(&built.program);
            scan.args(["scan", "--json", "--every", "100ms", "--catalog"])
                .arg(&catalog)
                .arg(format!("pid:{}", guest.pid()));
            let looks = looks(&mut scan, arguments.runs + 1)?;
            let measured = measured(memory, state, &looks)?;
            step.note("");
            step.done(&format!("{} ms in the middle", middle(&measured.look_ms)));
            all.push(measured);
        }
        guest.power_off()?;
    }
    let command = format!("cargo xtask bench scan --memory {mib} --runs {}", arguments.runs);
    let numbers = json!({"memory_mib": mib, "conditions": all.iter().map(json_of).collect::<Vec<_>>()});
    arguments.out.write(
        &command,
        "How long a look at memory takes",
        &told(mib, &all)?,
        numbers,
    )
}

/// The reports of so many looks.
fn looks(scan: &mut Command, count: usize) -> Result<Vec<Value>> {
    let mut child = scan.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no output")?;
    let lines = BufReader::new(output).lines().take(count);
    let reports: Result<Vec<Value>> = lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect();
    child.kill()?;
    child.wait()?;
    let reports = reports?;
    ensure!(reports.len() == count, "{} looks of {count}", reports.len());
    Ok(reports)
}

fn measured(memory: &'static str, state: &'static str, looks: &[Value]) -> Result<Measured> {
    let counter = |report: &Value, name: &str| {
        let value = report["counters"][name].as_u64();
        value.with_context(|| format!("a report without {name}"))
    };
    let (first, others) = looks.split_first().context("no look")?;
    let sorted = |name: &str| -> Result<Vec<u64>> {
        let mut all: Vec<u64> = others
            .iter()
            .map(|report| counter(report, name))
            .collect::<Result<_>>()?;
        all.sort_unstable();
        Ok(all)
    };
    let last = others.last().unwrap_or(first);
    Ok(Measured {
        memory,
        state,
        first_ms: counter(first, "look_ms")?,
        look_ms: sorted("look_ms")?,
        search_ms: sorted("root_search_ms")?,
        touched: counter(last, "searched_bytes")?,
        spaces: last["address_spaces"].as_array().map_or(0, Vec::len),
        frames: counter(last, "frames_read")?,
    })
}

fn middle(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn json_of(of: &Measured) -> Value {
    json!({
        "memory": of.memory, "state": of.state, "first_ms": of.first_ms, "look_ms": of.look_ms, "search_ms": of.search_ms,
        "touched_bytes": of.touched, "address_spaces": of.spaces, "frames": of.frames,
    })
}

fn told(mib: u32, all: &[Measured]) -> Result<String> {
    let mut text = format!(
        "A Debian guest of {mib} MiB that runs, has one vCPU and no work. One thread looks; its time is that of the wall. What the guest never\n\
         touched is not looked at. The first look also identifies every page, and opens what of the catalog it needs; those after it,\n\
         every tenth of a second, identify what is new.\n\n\
         | memory | state | in use, MiB | first look, ms | later looks, ms | of that the search for roots | address spaces | executable frames | in use per second |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for of in all {
        let (look, search) = (middle(&of.look_ms), middle(&of.search_ms));
        let range = |sorted: &[u64]| {
            let (least, most) = (sorted.first().unwrap_or(&0), sorted.last().unwrap_or(&0));
            format!("[{least}–{most}]")
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = of.touched as f64 / 1e6 / look.max(1) as f64;
        writeln!(
            text,
            "| {} | {} | {} | {} | {look} {} | {search} {} | {} | {} | {rate:.1} GB |",
            of.memory,
            of.state,
            of.touched >> 20,
            of.first_ms,
            range(&of.look_ms),
            range(&of.search_ms),
            of.spaces,
            of.frames,
        )?;
    }
    Ok(text)
}
