//! The closing table.

use super::campaign::Outcome;

/// Prints it.
pub(crate) fn print(outcomes: &[Outcome]) {
    println!(
        "{:<17} {:>12} {:>9} {:>7} {:>7} {:>6} {:>9}  RESULT",
        "TARGET", "EXECUTIONS", "PER S", "INPUTS", "EDGES", "NEW", "PEAK MiB"
    );
    for outcome in outcomes {
        let per_second = outcome.executions as f64 / outcome.seconds.max(0.001);
        println!(
            "{:<17} {:>12} {:>9.0} {:>7} {:>7} {:>6} {:>9}  {}",
            outcome.target,
            outcome.executions,
            per_second,
            outcome.corpus,
            outcome.coverage.1,
            outcome.coverage.1.saturating_sub(outcome.coverage.0),
            outcome.peak_mib,
            outcome.harmful.as_deref().unwrap_or("nothing found")
        );
    }
}
