//! `nephoscope scan`: what a VM's memory has mapped executable, looked at once or from time to time.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::catalog_dir::CatalogDir;
use super::{gather, ps};
use crate::monitor;
use crate::privilege::{self, Account, Keep};
use crate::scan::{Progress, Scan, Source, What};
use crate::text::{Paint, output_width, print, print_json};

/// Say what a VM has mapped executable, from its memory alone: a running VM's, or a dump's.
///
/// Nothing is loaded, and the VM goes on running. What runs between two looks is not seen, and that a page is mapped does not
/// say that it ran: coverage is `sampled`. For what really runs, see `nephoscope run` and `nephoscope attach`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope scan --catalog ./cat qmp:/run/vm/qmp.sock              # a QEMU, by its monitor\n  \
    nephoscope scan --catalog ./cat pid:4711 --every 10s              # any VMM, every ten seconds\n  \
    nephoscope scan --catalog ./cat vm.core --json | jq '.address_spaces[].program.path'\n\n\
    A dump is an ELF core as QEMU's `dump-guest-memory` writes it, a LiME image, or a raw image from address 0 on.")]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    catalog: CatalogDir,
    /// Look again and again, so often: 500ms, 10s, 5m.
    #[arg(long, value_name = "TIME", value_parser = time)]
    every: Option<Duration>,
    /// Print JSON: the report, as `--report` of a watch writes it; with --every one line for each look.
    #[arg(long)]
    json: bool,
    /// Whom the scan becomes once memory is open, if root starts it: a name, UID or UID:GID. Left out, it is `nephoscope` if
    /// there is such a user, else a number that nobody has.
    #[arg(long, value_name = "USER")]
    user: Option<Account>,
    /// qmp:SOCKET, pid:NUMBER or a file.
    #[arg(value_name = "VM")]
    what: What,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time like 500ms, 10s or 5m");
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(ms).ok_or_else(wrong)? {
        0 => Err(format!("{text:?}: looks need some time between them")),
        ms => Ok(Duration::from_millis(ms)),
    }
}

/// Runs it.
pub(crate) fn run(args: &ScanArgs) -> anyhow::Result<ExitCode> {
    let catalog = monitor::open_catalog(&args.catalog.path)?;
    let mut source = Source::open(&args.what)?;
    let about = source.about(&args.what);
    if let Some(pid) = source.private_process() {
        // Without it the scan is slower, and sees the same.
        match gather::start(pid, args.user) {
            Ok(gatherer) => source.gather_by(gatherer),
            Err(error) => eprintln!("nephoscope: memory is read more slowly: {error:#}"),
        }
    }
    // What is read from here on was made by a guest.
    let in_force = privilege::drop(&Keep {
        account: args.user,
        read: vec![args.catalog.path.clone()],
        ..Keep::default()
    })?;
    in_force.tell();
    let progress = Progress::new(args.json);
    let mut scan = Scan::new(about, catalog);
    scan.confined(&in_force);
    loop {
        let began = Instant::now();
        scan.look(&mut source, &progress, &mut [])?;
        let report = scan.report();
        if args.json {
            print_json(&report)?;
        } else {
            print(&ps::inventory(&report, false, output_width(), Paint::stdout()))?;
        }
        let Some(every) = args.every else { break };
        std::thread::sleep(every.saturating_sub(began.elapsed()));
        if source.is_gone() {
            eprintln!("nephoscope: the VM has ended");
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(time("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "10",
            "s",
            "1h",
            "",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            assert!(time(wrong).unwrap_err().contains("is no time"), "{wrong}");
        }
        assert!(time("0ms").unwrap_err().contains("some time between"));
    }
}
