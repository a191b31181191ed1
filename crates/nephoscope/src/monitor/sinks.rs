//! Findings on standard error, for `--watch`.
//!
//! Whoever reads standard error may stop reading: then it is written to no more, and the watch goes on. A thread of its own
//! writes; what does not fit its queue is counted, and said as soon as somebody reads again.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nephoscope_finding::{Finding, Sink, SinkError};

use crate::text::escape;

/// Lines that wait for a reader: a screenful of each second of a minute.
const MAX_WAITING: usize = 1024;

/// One line per finding.
#[derive(Debug)]
pub(super) struct Terminal {
    lines: SyncSender<String>,
    /// Findings that were not printed since the last that was.
    missed: u64,
}

impl Terminal {
    /// Begins to print to standard error.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn begin() -> std::io::Result<Self> {
        Self::to(std::io::stderr())
    }

    fn to(mut output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, waiting): (_, Receiver<String>) = sync_channel(MAX_WAITING);
        std::thread::Builder::new()
            .name("findings".into())
            .spawn(move || {
                for line in waiting {
                    // Without a reader the queue fills, and then the watch knows.
                    if output.write_all(line.as_bytes()).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self { lines, missed: 0 })
    }
}

impl Sink for Terminal {
    fn emit(&mut self, finding: &Finding) -> Result<(), SinkError> {
        let summary = escape(&finding.summary);
        let seconds = std::time::Duration::from_nanos(finding.at_ns).as_secs_f64();
        let mut line = String::new();
        if self.missed > 0 {
            line = format!(
                "nephoscope: {} finding(s) were not printed, because nobody read: `nephoscope findings` has them\n",
                self.missed
            );
        }
        line.push_str(&format!(
            "nephoscope: [{seconds:.3} s] f{} {}: {summary}\n",
            finding.id, finding.severity
        ));
        match self.lines.try_send(line) {
            Ok(()) => {
                self.missed = 0;
                Ok(())
            }
            Err(error) => {
                self.missed += 1;
                Err(SinkError {
                    sink: "terminal",
                    finding: finding.id,
                    source: std::io::Error::new(std::io::ErrorKind::WouldBlock, error.to_string()),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::time::{Duration, Instant};

    use super::*;

    fn finding(id: u64) -> Finding {
        let mut finding = crate::view::tests::canned().findings.remove(0);
        finding.id = id;
        finding
    }

    #[test]
    fn a_reader_that_stalls_does_not_stall_the_watch_and_is_told_what_it_missed() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut terminal = Terminal::to(ours).unwrap();
        let begun = Instant::now();
        let lost = (1..20_000)
            .filter(|id| terminal.emit(&finding(*id)).is_err())
            .count();
        assert!(lost > 0 && begun.elapsed() < Duration::from_secs(60), "{lost}");
        let mut lines = BufReader::new(theirs).lines().map(Result::unwrap);
        let mut printed = 1;
        while printed + lost < 19_999 {
            printed += usize::from(lines.next().unwrap().contains("] f"));
        }
        // The queue is empty soon, and the next finding says what was missed.
        let said = loop {
            if terminal.emit(&finding(30_000)).is_ok() {
                break lines
                    .by_ref()
                    .find(|line| line.contains("were not printed"))
                    .unwrap();
            }
        };
        let missed: usize = said.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(missed >= 1 && missed <= lost, "{said}: {lost}");
    }

    #[test]
    fn max_waiting_lines_wait_for_a_reader() {
        /// Takes one line and never comes back for another until the test ends.
        struct Stuck(std::sync::mpsc::SyncSender<()>, Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _ = self.0.send(());
                let _ = self.1.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (began, has_begun) = sync_channel(1);
        let (_end, ended) = sync_channel(1);
        let mut terminal = Terminal::to(Stuck(began, ended)).unwrap();
        terminal.emit(&finding(0)).unwrap();
        has_begun.recv().unwrap();
        let kept = (1..=2 * MAX_WAITING as u64)
            .filter(|id| terminal.emit(&finding(*id)).is_ok())
            .count();
        assert_eq!(kept, MAX_WAITING);
    }

    #[test]
    fn a_reader_that_is_gone_costs_findings_on_the_terminal_only() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        let mut terminal = Terminal::to(ours).unwrap();
        let lost = (0..5_000)
            .filter(|id| terminal.emit(&finding(*id)).is_err())
            .count();
        assert!(lost > 0);
    }
}
