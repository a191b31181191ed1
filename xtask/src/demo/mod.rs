//! `cargo xtask demo`: from a fresh machine to an inventory and three findings, on the terminal.
//!
//! Everything but the story is what the tests use: the guest, its catalog, and the three planted cases with their
//! checks. So the demonstration cannot show what the tests would not accept.

mod show;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use nephoscope_e2e::guest;
use nephoscope_e2e::planted::Case;
use nephoscope_e2e::progress::line;
use nephoscope_e2e::{Catalog, Guest, Image, Kernel, Options, Planting, Step, Watched};

use crate::build;
use show::Shown;

/// The VM's name, as `nephoscope ps` shows it.
const VM: &str = "demo";

/// Set up, watch a Debian guest from power-on to power-off, and find three things in it that are in no catalog.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where the report goes; `demo-report.json` beside what is built when absent.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The guest's kernel: 6.1 or 6.12.
    #[arg(long, value_name = "VERSION", default_value = "6.1", value_parser = kernel)]
    kernel: Kernel,
    /// The guest's virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::vcpus)]
    smp: u32,
}

fn kernel(text: &str) -> Result<Kernel, String> {
    Kernel::ALL
        .into_iter()
        .find(|kernel| kernel.version() == text)
        .ok_or_else(|| "there are 6.1 and 6.12".to_owned())
}

/// Runs it; an error when one of the three is not found.
pub(crate) fn run(arguments: &DemoArgs) -> Result<()> {
    line("Setting up: packages, the program as it is shipped, a Debian guest");
    super::setup::run()?;
    let built = build::run(true)?;
    line("The program and its QEMU plugins are built");
    let image = Image::ensure()?;
    let catalog = Catalog::ensure(&image, &built.program)?;
    line(&format!("The catalog has {}", catalog.contents()?));

    let report = match &arguments.report {
        Some(path) => std::path::absolute(path)?,
        None => build::target_folder().join("demo-report.json"),
    };
    let watched = Watched {
        program: built.program.clone(),
        catalog: catalog.path(),
        name: VM.to_owned(),
        report: Some(report.clone()),
        extra: Vec::new(),
    };
    let options = Options {
        kernel: arguments.kernel,
        smp: arguments.smp,
        watched: Some(watched),
        alone: false,
        ..Options::default()
    };
    let step = Step::begin("Waiting until no other guest runs");
    let _turn = guest::turn()?;
    step.done("");
    let mut step = Step::begin("Booting the guest under watch");
    step.note(&format!(
        "Linux {}, {} vCPU, TCG",
        arguments.kernel.version(),
        arguments.smp
    ));
    let mut guest = Guest::boot(&image, options)?;
    let ready = guest.wait_ready()?;
    step.done(&format!(
        "services are up {:.1} s after power-on",
        ready.as_secs_f64()
    ));

    work::run(&mut guest)?;
    let cases = plant(&mut guest, &image)?;
    show::ask(&built.program, VM, &cases)?;

    let step = Step::begin("Switching the guest off");
    let code = guest.power_off()?;
    ensure!(code == 0, "`nephoscope run` ended with {code}");
    step.done("");
    print!("\n{}", Shown::read(&report)?);
    let concluded = conclude(&cases);
    println!("The report: {}", report.display());
    concluded
}

/// One of the three things that are planted.
type Plant<'g> = fn(&mut Planting<'g>) -> Result<Case>;

fn plant<'g>(guest: &'g mut Guest, image: &Image) -> Result<Vec<Case>> {
    let plants: [(&str, Plant<'g>); 3] = [
        ("Running an ELF from a memfd", Planting::memfd),
        ("Running a program copied from nowhere", Planting::copied),
        (
            "Patching a running nginx worker through ptrace",
            Planting::patched,
        ),
    ];
    let mut planting = Planting::begin(guest, image, VM)?;
    let mut cases = Vec::new();
    for (what, plant) in plants {
        let step = Step::begin(what);
        let case = plant(&mut planting)?;
        step.done(&match &case.found {
            Ok(sighting) => format!("found as f{}", sighting.finding),
            Err(why) => format!("NOT FOUND: {why}"),
        });
        cases.push(case);
    }
    Ok(cases)
}

fn conclude(cases: &[Case]) -> Result<()> {
    let ms = |time: Duration| time.as_millis();
    for case in cases {
        println!("\n{}", case.what);
        println!("  expected  {}", case.expected);
        match &case.found {
            Ok(sighting) => {
                println!("  found     f{}: {}", sighting.finding, sighting.summary);
                println!(
                    "            address space {}: {}",
                    sighting.address_space, sighting.equal
                );
                println!(
                    "  time      {} ms after it was started, {} ms after its code first ran",
                    ms(sighting.since_start),
                    ms(sighting.since_first_run)
                );
            }
            Err(why) => println!("  MISSING   {why}"),
        }
    }
    println!();
    let missing = cases.iter().filter(|case| case.found.is_err()).count();
    ensure!(missing == 0, "{missing} of {} are missing", cases.len());
    Ok(())
}
