//! `cargo xtask bench disk`: a served disk beside QEMU's own.

use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nephoscope_e2e::{Guest, Image, Options, Step};
use serde_json::{Value, json};

use super::ratio::Spread;
use super::sheet::Out;
use crate::build;

/// Measure a disk that this program serves beside QEMU's own virtio-blk, in one guest, with `fio`.
///
/// Both disks have the same contents and lie on the same file system. Each job runs on one of them and then on the other, the other way
/// round in the next round, and each pair makes a ratio. Nothing is followed: that is the server alone.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// Pairs of each job.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = crate::arguments::some::<usize>)]
    rounds: usize,
    /// How long a job runs on one disk.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::arguments::some::<u64>)]
    seconds: u64,
    /// The guest's vCPUs, and queues of each disk.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::vcpus)]
    vcpus: u32,
    #[command(flatten)]
    out: Out,
}

/// A job of `fio`: its name, the access, bytes of a request, requests at a time.
const JOBS: [(&str, &str, &str, u32); 8] = [
    ("sequential read", "read", "1M", 4),
    ("sequential write", "write", "1M", 4),
    ("random read", "randread", "4k", 1),
    ("random write", "randwrite", "4k", 1),
    ("random read, 16 at a time", "randread", "4k", 16),
    ("random write, 16 at a time", "randwrite", "4k", 16),
    ("sequential read, small", "read", "16k", 1),
    ("sequential write, small", "write", "16k", 1),
];

/// Of each disk. It fits into the host's cache: what is measured is the way there.
const DISK_MIB: usize = 512;

/// The disks, by what the guest calls them.
const DISKS: [&str; 2] = ["served", "own"];

/// Ends with what started it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it.
pub(crate) fn run(arguments: &DiskArgs) -> Result<()> {
    crate::setup::run()?;
    let program = server()?;
    let image = Image::with_scripts()?;
    let folder = tempfile::tempdir()?;
    fill(folder.path())?;
    let socket = folder.path().join("disk.sock");
    let served = Command::new(&program)
        .arg(folder.path().join("served"))
        .arg(&socket)
        .arg(arguments.vcpus.to_string())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let _server = Server(served);
    let begun = Instant::now();
    while !socket.exists() {
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "the server does not begin"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut step = Step::begin("A guest with two disks");
    let mut guest = Guest::boot_ready(&image, options(arguments, folder.path(), &socket))?;
    step.done("");
    step = Step::begin("Reading and writing");
    let mut rows = Vec::new();
    for round in 0..arguments.rounds {
        for (name, access, bytes, depth) in JOBS {
            step.note(&format!("round {} of {}: {name}", round + 1, arguments.rounds));
            let mut told = [Value::Null, Value::Null];
            for turn in 0..2 {
                let which = (turn + round) % 2;
                told[which] = job(
                    &mut guest,
                    DISKS[which],
                    (access, bytes, depth),
                    arguments.seconds,
                )?;
            }
            let [served, own] = told;
            rows.push(json!({"job": name, "round": round, "served": served, "own": own}));
        }
    }
    step.done("");
    guest.power_off()?;
    tell(arguments, rows)
}

/// The server alone, as it is shipped.
fn server() -> Result<PathBuf> {
    let mut step = Step::begin("Building the server");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "nephoscope-disk",
            "--example",
            "serve",
        ])
        .current_dir(build::workspace());
    let log = nephoscope_e2e::cache::folder()?.join("bench-disk-build.log");
    nephoscope_e2e::command::run_logged(&mut step, &mut cargo, &log)?;
    step.done("");
    Ok(build::target_folder().join("release/examples/serve"))
}

/// Both disks, the same bytes.
fn fill(folder: &Path) -> Result<()> {
    let mut bytes = vec![0; 1 << 20];
    let mut seed = 7_u64;
    let mut files = DISKS
        .iter()
        .map(|name| File::create(folder.join(name)))
        .collect::<Result<Vec<_>, _>>()?;
    for _ in 0..DISK_MIB {
        for piece in bytes.chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            piece.copy_from_slice(&seed.to_le_bytes());
        }
        for file in &mut files {
            file.write_all(&bytes)?;
        }
    }
    Ok(())
}

fn options(arguments: &DiskArgs, folder: &Path, socket: &Path) -> Options {
    let options = Options {
        plants: false,
        smp: arguments.vcpus,
        ..Options::default()
    };
    let queues = arguments.vcpus;
    let extra = [
        "-object",
        &format!(
            "memory-backend-memfd,id=ram,size={}M,share=on",
            options.memory_mib
        ),
        "-machine",
        "memory-backend=ram",
        "-chardev",
        &format!("socket,id=served,path={}", socket.display()),
        "-device",
        &format!("vhost-user-blk-pci,chardev=served,num-queues={queues}"),
        "-drive",
        // As a provider has it who looks for speed and safety: the host's cache, and a flush is a flush.
        &format!(
            "if=none,id=own,format=raw,cache=writeback,file={}",
            folder.join("own").display()
        ),
        "-device",
        &format!("virtio-blk-pci,drive=own,serial=own,num-queues={queues}"),
    ];
    Options {
        extra: extra.map(str::to_owned).to_vec(),
        ..options
    }
}

/// What `fio` says of a job: bytes a second, requests a second, and how long one took, in nanoseconds.
fn job(
    guest: &mut Guest,
    disk: &str,
    (access, bytes, depth): (&str, &str, u32),
    seconds: u64,
) -> Result<Value> {
    // The example's serial number.
    let serial = if disk == "served" { "disk0" } else { disk };
    let script = format!(
        "fio --output-format=json --name=job --filename=/dev/disk/by-id/virtio-{serial} --direct=1 --ioengine=libaio \
         --rw={access} --bs={bytes} --iodepth={depth} --size={DISK_MIB}M --time_based --runtime={seconds} --ramp_time=1 --randseed=7"
    );
    let said: Value = serde_json::from_str(&guest.run_ok(&script)?).context("fio says something else")?;
    let way = if access.ends_with("read") { "read" } else { "write" };
    let told = &said["jobs"][0][way];
    let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
    let (speed, latency) = number(&told["bw_bytes"])
        .zip(number(&told["lat_ns"]["mean"]))
        .with_context(|| format!("fio measured nothing: {told}"))?;
    Ok(json!({
        "bytes_per_second": speed,
        "latency_ns": latency,
        "latency_p99_ns": told["clat_ns"]["percentile"]["99.000000"],
    }))
}

const ABOUT: &str = "\
The served disk against QEMU's own virtio-blk (`cache=writeback`, threads) in one guest under TCG: each pair of runs makes a ratio. Both files
are in the host's cache. Throughput: more is better; latency: less is.

";

fn tell(arguments: &DiskArgs, rows: Vec<Value>) -> Result<()> {
    let mut text = ABOUT.to_owned();
    text.push_str("| job | QEMU's own, MB/s | throughput, ratio [least–greatest] | QEMU's own, µs | latency, ratio [least–greatest] |\n");
    text.push_str("|---|---:|---|---:|---|\n");
    for (name, ..) in JOBS {
        let of: Vec<&Value> = rows.iter().filter(|row| row["job"] == name).collect();
        let number = |row: &Value, disk: &str, what: &str| row[disk][what].as_f64().unwrap_or(f64::NAN);
        let middle = |what: &str| Spread::of(of.iter().map(|row| number(row, "own", what)));
        let ratio = |what: &str| {
            Spread::of(
                of.iter()
                    .map(|row| number(row, "served", what) / number(row, "own", what)),
            )
        };
        let all = middle("bytes_per_second")
            .zip(ratio("bytes_per_second"))
            .zip(middle("latency_ns").zip(ratio("latency_ns")));
        let Some(((own, speed), (own_latency, latency))) = all else {
            continue;
        };
        writeln!(
            text,
            "| {name} | {:.1} | {:.3} [{:.3}–{:.3}] | {:.0} | {:.3} [{:.3}–{:.3}] |",
            own.median / 1e6,
            speed.median,
            speed.min,
            speed.max,
            own_latency.median / 1e3,
            latency.median,
            latency.min,
            latency.max
        )?;
    }
    let (rounds, seconds, vcpus) = (arguments.rounds, arguments.seconds, arguments.vcpus);
    let command = format!("cargo xtask bench disk --rounds {rounds} --seconds {seconds} --vcpus {vcpus}");
    arguments.out.write(
        &command,
        "A served disk beside QEMU's own",
        &text,
        json!({"rows": rows}),
    )
}
