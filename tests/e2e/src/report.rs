//! Whether a report is what `docs/report.schema.json` says.

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../../docs/report.schema.json");

/// Checks a report.
///
/// # Errors
/// If it is not what the schema says: every place and what is wrong there.
pub fn validate(report: &Value) -> Result<()> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    let validator = jsonschema::draft202012::new(&schema)
        .map_err(|error| anyhow!("docs/report.schema.json is no schema: {error}"))?;
    let wrong: Vec<String> = validator
        .iter_errors(report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(wrong.is_empty(), "not a report: {}", wrong.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_none_is_refused_with_what_is_missing() {
        let error = validate(&serde_json::json!({"schema": "nephoscope.report/1"})).unwrap_err();
        assert!(error.to_string().contains("address_spaces"), "{error}");
    }
}
