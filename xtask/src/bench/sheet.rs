//! What all records have in common: where, when and with which command, and where they are written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::machine;

/// Where numbers go.
#[derive(Debug, Args)]
pub(crate) struct Out {
    /// Write all numbers there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table there, as it stands in `bench/record`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

impl Out {
    /// Writes both, and prints the table. `text` begins with the title.
    pub(crate) fn write(&self, command: &str, title: &str, text: &str, numbers: Value) -> Result<()> {
        let (machine, date, commit) = (machine::describe()?, machine::date()?, machine::commit()?);
        let text = format!(
            "# {title}\n\n- Machine: {machine}.\n- Date: {date}. Commit: {commit}.\n- Command: `{command}`.\n\n{text}"
        );
        println!("{text}");
        if let Some(path) = &self.record {
            write(path, &text)?;
        }
        if let Some(path) = &self.json {
            let mut all = json!({"machine": machine, "date": date, "commit": commit, "command": command});
            if let (Some(all), Value::Object(numbers)) = (all.as_object_mut(), numbers) {
                all.extend(numbers);
            }
            write(path, &format!("{all:#}\n"))?;
        }
        Ok(())
    }
}

/// Writes a file, and says which when that fails.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
