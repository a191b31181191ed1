//! `cargo xtask attacks`: real attacks in real guests, and a table of what was seen of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use nephoscope_attacks::{Attack, Campaign, Row, attack, control, nested};
use nephoscope_e2e::progress::line;
use nephoscope_e2e::{Kernel, Step};

use crate::build;

/// Attack watched guests, and hold what is seen to what is right.
#[derive(Debug, Args)]
pub(crate) struct AttacksArgs {
    /// The guest's kernel: 6.1, 6.12, or all.
    #[arg(long, value_name = "VERSION", default_value = "all", value_parser = kernels)]
    kernel: Kernels,
    /// Only attacks of this number or name; may be given several times.
    #[arg(long, value_name = "NAME|NUMBER")]
    only: Vec<String>,
    /// Everything so many times, each in a boot of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::arguments::some::<u32>)]
    times: u32,
    /// The rows for programs: an array of {attack, kernel, expected, seen, ok, to_finding_ms}.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say what there is, and do nothing.
    #[arg(long)]
    list: bool,
    /// No attacks: ordinary work in the same guests, packages being upgraded, and no finding.
    #[arg(long, conflicts_with_all = ["only", "list"])]
    control: bool,
    /// Under stock KVM in the nested machine, watched by way of the kernel module: those that are about code, unless --only names
    /// others. Takes about half an hour for each kernel.
    #[arg(long, conflicts_with = "control")]
    nested: bool,
    /// How long the ordinary work goes on, at least.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::arguments::some::<u64>, requires = "control")]
    minutes: u64,
}

/// One kernel or all of them.
#[derive(Debug, Clone)]
struct Kernels(Vec<Kernel>);

fn kernels(text: &str) -> Result<Kernels, String> {
    let wanted = |kernel: &Kernel| text == "all" || kernel.version() == text;
    let found: Vec<Kernel> = Kernel::ALL.into_iter().filter(wanted).collect();
    if found.is_empty() {
        return Err("there are 6.1, 6.12 and all".to_owned());
    }
    Ok(Kernels(found))
}

/// Runs them; an error when one is answered wrongly.
pub(crate) fn run(arguments: &AttacksArgs) -> Result<()> {
    let mut attacks = chosen(&arguments.only)?;
    if arguments.nested && arguments.only.is_empty() {
        attacks.retain(|attack| nested::is_about_code(*attack));
    }
    if arguments.list {
        for attack in attacks {
            println!(
                "{:>2} {:<24} {}",
                attack.number(),
                attack.name(),
                attack.expected()
            );
        }
        return Ok(());
    }
    let program = program(arguments.nested)?;
    let campaign = if arguments.nested {
        None
    } else {
        Some(Campaign::prepare(program.clone())?)
    };
    let mut rows = Vec::new();
    for time in 1..=arguments.times {
        if arguments.times > 1 {
            line(&format!("Time {time} of {}", arguments.times));
        }
        for kernel in &arguments.kernel.0 {
            match &campaign {
                None => rows.extend(under_kvm(&program, *kernel, &attacks)?),
                Some(campaign) if arguments.control => {
                    let lasting = Duration::from_secs(arguments.minutes.saturating_mul(60));
                    rows.extend(control::run(campaign, *kernel, lasting)?);
                }
                Some(campaign) => rows.extend(campaign.run(*kernel, &attacks)),
            }
        }
    }
    println!("{}", table(&rows));
    if let Some(path) = &arguments.json {
        let rows: Vec<serde_json::Value> = rows.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong = rows.iter().filter(|row| !row.ok).count();
    ensure!(wrong == 0, "{wrong} of {} are wrong", rows.len());
    line(&format!("All {} are right", rows.len()));
    Ok(())
}

/// Nothing takes so long that works.
const LIMIT: Duration = Duration::from_secs(7200);

fn under_kvm(program: &Path, kernel: Kernel, attacks: &[&'static dyn Attack]) -> Result<Vec<Row>> {
    let mut step = Step::begin(&format!("Attacks under KVM, Linux {}", kernel.version()));
    let rows = nested::run(program, kernel, attacks, LIMIT, |text| step.note(text))?;
    step.done("");
    Ok(rows)
}

/// The program as it is shipped, or the one that the environment names, as for tests. What runs in a nested machine is beside
/// it where that is wanted.
pub(crate) fn program(nested: bool) -> Result<PathBuf> {
    if std::env::var_os("NEPHOSCOPE").is_some() {
        return nephoscope_e2e::program();
    }
    super::setup::run()?;
    let built = if nested {
        build::with_examples()?
    } else {
        build::run(true)?
    };
    Ok(built.program)
}

fn chosen(only: &[String]) -> Result<Vec<&'static dyn Attack>> {
    let all = attack::all();
    for name in only {
        ensure!(
            all.iter().any(|attack| is_named(*attack, name)),
            "there is no attack {name}; --list shows them"
        );
    }
    let wanted = |attack: &&dyn Attack| only.is_empty() || only.iter().any(|name| is_named(*attack, name));
    Ok(all.into_iter().filter(|attack| wanted(attack)).collect())
}

fn is_named(attack: &dyn Attack, name: &str) -> bool {
    attack.name() == name || attack.number().to_string() == name
}

/// As wide as the terminal, 100 columns elsewhere.
fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["ATTACK", "KERNEL", "EXPECTED", "SEEN", "MS", "VERDICT"]);
    if !table.is_tty() {
        table.set_width(100);
    }
    for row in rows {
        let time = row
            .to_finding
            .map_or(String::from("–"), |time| time.as_millis().to_string());
        table.add_row([
            printable(&row.attack),
            row.kernel.to_owned(),
            printable(&row.expected),
            printable(&row.seen),
            time,
            if row.ok { "right" } else { "WRONG" }.to_owned(),
        ]);
    }
    table
}

/// What a guest says goes to a terminal without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_are_chosen_by_number_and_by_name_and_no_other_word_is_taken() {
        let memfd = chosen(&["memfd".to_owned()]).unwrap();
        assert_eq!(memfd.len(), 1);
        assert!(
            chosen(&["1".to_owned()])
                .unwrap()
                .iter()
                .any(|attack| attack.name() == "memfd")
        );
        assert_eq!(chosen(&[]).unwrap().len(), attack::all().len());
        assert!(chosen(&["nosuch".to_owned()]).is_err());
    }

    #[test]
    fn a_table_is_no_wider_than_it_may_be_whatever_it_says() {
        let row = Row {
            attack: "1 memfd".to_owned(),
            kernel: "6.1",
            expected: "x".repeat(300),
            seen: "word \u{1b}[31m ".repeat(50),
            ok: false,
            to_finding: None,
        };
        let text = table(&[row]).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("WRONG"));
    }
}
