//! Findings as lines.

use nephoscope_finding::{Finding, Severity};

use crate::text::{Paint, Tone, escape, plural, seconds, wrap};

/// How a severity is shown.
#[must_use]
pub(crate) fn severity_tone(severity: Severity) -> Tone {
    match severity {
        Severity::Info => Tone::Faint,
        Severity::Low => Tone::Plain,
        Severity::Medium => Tone::Warn,
        Severity::High => Tone::Bad,
    }
}

/// One finding: its number, time and severity in columns, then whom it is about, and the summary. Wrapped behind the
/// columns if there is a width.
#[must_use]
pub(crate) fn line(finding: &Finding, space: Option<&str>, columns: Option<usize>, paint: Paint) -> String {
    let id = format!("f{}", finding.id);
    let severity = format!("{:<6}", finding.severity);
    let at = seconds(finding.at_ns);
    let margin = format!("{id:<5} {at:>12}  {severity}  ").chars().count();
    let who = space.map_or(String::new(), |space| format!("[{space}] "));
    let said = format!("{who}{}", escape(&finding.summary));
    let lines = match columns {
        Some(columns) => wrap(&said, columns.saturating_sub(margin)),
        None => vec![said],
    };
    let mut out = format!(
        "{} {at:>12}  {}  ",
        paint.paint(Tone::Strong, &format!("{id:<5}")),
        paint.paint(severity_tone(finding.severity), &severity)
    );
    out.push_str(&lines.join(&format!("\n{}", " ".repeat(margin))));
    out.push('\n');
    out
}

/// The same without paint, for screens that paint themselves.
#[must_use]
pub(crate) fn plain_line(finding: &Finding, space: Option<&str>, columns: usize) -> String {
    line(finding, space, Some(columns), Paint::OFF)
}

/// How many there are of each severity, the worst first.
#[must_use]
pub(crate) fn tally(findings: &[Finding]) -> (Tone, String) {
    if findings.is_empty() {
        return (Tone::Plain, "no findings".to_owned());
    }
    let all = [Severity::High, Severity::Medium, Severity::Low, Severity::Info];
    let counts: Vec<(Severity, usize)> = all
        .iter()
        .map(|severity| {
            let of = findings.iter().filter(|finding| finding.severity == *severity);
            (*severity, of.count())
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    let words: Vec<String> = counts
        .iter()
        .map(|(severity, count)| format!("{count} {severity}"))
        .collect();
    let tone = counts
        .first()
        .map_or(Tone::Plain, |(worst, _)| severity_tone(*worst));
    let number = u64::try_from(findings.len()).unwrap_or(u64::MAX);
    (
        tone,
        format!("{}: {}", plural(number, "finding"), words.join(", ")),
    )
}
