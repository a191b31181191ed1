//! Steps that say what they do and for how long: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A line in a log file every so often is progress; one for each of 300 packages is noise.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(5);

/// One step of a longer task, from [`Step::begin`] to [`Step::done`]. Dropped without `done`, it says that it
/// failed.
#[derive(Debug)]
pub struct Step {
    name: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
    finished: bool,
}

impl Step {
    /// Begins a step and says so.
    pub fn begin(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| spinner(name));
        if bar.is_none() {
            line(&format!("{name} …"));
        }
        let now = Instant::now();
        Step {
            name: name.to_owned(),
            begun: now,
            bar,
            last_line: now,
            finished: false,
        }
    }

    /// What the step is at right now.
    pub fn note(&mut self, what: &str) {
        let what = what.trim();
        if what.is_empty() {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_message(format!("– {}", what.chars().take(70).collect::<String>()));
        } else if self.last_line.elapsed() >= PLAIN_LINE_EVERY {
            self.last_line = Instant::now();
            line(&format!("{}: {what}", self.name));
        }
    }

    /// Ends the step; `result` is what there is to show for it, possibly nothing.
    pub fn done(mut self, result: &str) {
        self.finished = true;
        let dash = if result.is_empty() { "" } else { " – " };
        self.end(&format!("{}{dash}{result}", self.name));
    }

    fn end(&mut self, message: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        line(&format!(
            "{message} ({:.1} s)",
            self.begun.elapsed().as_secs_f64()
        ));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            let message = format!("{} – failed", self.name);
            self.end(&message);
        }
    }
}

/// One plain line with the time since the first one.
pub fn line(message: &str) {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = FIRST.get_or_init(Instant::now);
    eprintln!("[{:7.1} s] {message}", first.elapsed().as_secs_f64());
}

fn spinner(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
