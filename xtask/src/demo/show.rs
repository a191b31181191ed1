//! What the program itself says, and what its report holds.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::planted::Case;
use serde_json::Value;

/// Asks the running watch as anybody would: the inventory, the findings, and the evidence of the patched worker.
pub(super) fn ask(program: &Path, vm: &str, cases: &[Case]) -> Result<()> {
    nephoscope(program, &["ps", vm])?;
    nephoscope(program, &["findings", vm])?;
    // The last one that is planted is the patched worker.
    let patched = cases.last().and_then(|case| case.found.as_ref().ok());
    if let Some(sighting) = patched {
        nephoscope(program, &["why", vm, &format!("f{}", sighting.finding)])?;
    }
    Ok(())
}

fn nephoscope(program: &Path, arguments: &[&str]) -> Result<()> {
    println!("\n$ nephoscope {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        status.success(),
        "`nephoscope {}` ended with {status}",
        arguments.join(" ")
    );
    println!();
    Ok(())
}

/// The report in a few lines.
#[derive(Debug)]
pub(super) struct Shown {
    report: Value,
}

impl Shown {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("no report at {}", path.display()))?;
        Ok(Shown {
            report: serde_json::from_slice(&bytes)?,
        })
    }

    fn count(&self, list: &str) -> usize {
        self.report[list].as_array().map_or(0, Vec::len)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coverage = &self.report["coverage"];
        writeln!(
            f,
            "From power-on to power-off: {} address spaces, {} findings; coverage of code: {}, of attribution: {}",
            self.count("address_spaces"),
            self.count("findings"),
            coverage["code"].as_str().unwrap_or("?"),
            coverage["attribution"].as_str().unwrap_or("?")
        )?;
        for class in ["user", "kernel", "firmware"] {
            let pages = &self.report["pages"][class];
            let count = |verdict: &str| pages[verdict].as_u64().unwrap_or(0);
            writeln!(
                f,
                "  {class:<8}  {:>5} pages ran: {:>5} identified, {} modified, {} unknown",
                count("captured"),
                count("identified"),
                count("modified"),
                count("unknown")
            )?;
        }
        Ok(())
    }
}
