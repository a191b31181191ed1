//! Findings on standard error, for `--watch`.

use std::io::Write;

use nephoscope_finding::{Finding, Sink, SinkError};

use crate::text::escape;

/// One line per finding.
#[derive(Debug)]
pub(super) struct Terminal;

impl Sink for Terminal {
    fn emit(&mut self, finding: &Finding) -> Result<(), SinkError> {
        let summary = escape(&finding.summary);
        let seconds = std::time::Duration::from_nanos(finding.at_ns).as_secs_f64();
        writeln!(
            std::io::stderr(),
            "nephoscope: [{seconds:.3} s] f{} {}: {summary}",
            finding.id,
            finding.severity
        )
        .map_err(|source| SinkError {
            sink: "terminal",
            finding: finding.id,
            source,
        })
    }
}
