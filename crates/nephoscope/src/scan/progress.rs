//! How far a scan is, on standard error and only if somebody watches it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line that is drawn over.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// One that is shown, unless nobody can see it.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10))
        };
        Self { bar }
    }

    /// Something with so many bytes to read begins.
    pub(crate) fn bytes(&self, what: &str, total: u64) {
        self.begin(
            "{bar:30} {percent:>3}% {bytes_per_sec:>12} {eta:>4} {wide_msg}",
            what,
            total,
        );
    }

    /// Something with so many steps begins.
    pub(crate) fn steps(&self, what: &str, total: u64) {
        self.begin(
            "{bar:30} {pos}/{len} {per_sec:>10} {eta:>4} {wide_msg}",
            what,
            total,
        );
    }

    fn begin(&self, template: &str, what: &str, total: u64) {
        let style = ProgressStyle::with_template(template);
        self.bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.reset();
        self.bar.set_length(total);
        self.bar.set_message(what.to_owned());
    }

    /// It has come so far.
    pub(crate) fn at(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Nothing of it stays.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
