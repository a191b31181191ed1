//! Insides that `fuzz` looks into.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use nephoscope_inventory::Report;

use crate::client::Client;
use crate::control::{Answer, Ask, PageEvidence};
use crate::monitor::server::{Request, converse};
use crate::text::{Paint, escape};
use crate::{cmd, text, view};

/// Nothing of this text is obeyed by a terminal, and no line is wider than it may be.
fn assert_shown(shown: &str, columns: usize) {
    for line in shown.lines() {
        assert_eq!(escape(line), line, "nothing that a terminal obeys");
        assert!(
            text::shown_width(line) <= columns,
            "wider than {columns}: {line:?}"
        );
    }
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
}

/// Shows a report as `ps` and `findings` do; whether it is one.
pub fn report(json: &[u8], columns: usize, all: bool) -> bool {
    let Ok(report) = serde_json::from_slice::<Report>(json) else {
        return false;
    };
    assert_shown(&cmd::ps::inventory(&report, all, columns, Paint::OFF), columns);
    for finding in report.findings.iter().take(8) {
        let space = finding.address_space.map(|id| view::space_name(&report, id));
        assert_shown(
            &view::line(finding, space.as_deref(), Some(columns), Paint::OFF),
            columns,
        );
        let line = view::line(finding, space.as_deref(), None, Paint::OFF);
        let line = line.trim_end_matches('\n');
        assert_eq!(escape(line), line);
    }
    true
}

/// Shows a page's evidence as `why` does; whether it is such.
pub fn evidence(json: &[u8], report: &[u8], columns: usize) -> bool {
    static REPORT: OnceLock<Option<Report>> = OnceLock::new();
    let report = REPORT.get_or_init(|| serde_json::from_slice(report).ok());
    let (Some(report), Ok(page)) = (report, serde_json::from_slice::<PageEvidence>(json)) else {
        return false;
    };
    assert_shown(&cmd::why::shown(&page, report, columns), columns);
    true
}

/// Escapes text every way there is.
pub fn escaped(raw: &str) {
    let escaped = escape(raw);
    assert!(!escaped.chars().any(char::is_control));
    assert_eq!(escape(&escaped), escaped);
    for line in text::escape_lines(raw) {
        assert!(!line.chars().any(char::is_control));
    }
    for columns in [8, 80] {
        for line in text::wrap(&escaped, columns) {
            assert!(text::shown_width(&line) <= columns, "{line:?} in {columns}");
        }
        assert!(text::shown_width(&text::fit_end(&escaped, columns)) <= columns);
    }
}

/// A client whose watch says this.
pub fn client(said: &[u8]) {
    use std::io::Write;
    let (ours, mut theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => unreachable!("{error}"),
    };
    let _ = theirs.write_all(said);
    let _ = theirs.shutdown(Shutdown::Write);
    let mut client = Client::over(ours);
    let first = client.findings(0);
    let _ = client.report();
    if let Err(error) = first {
        let line = error.to_string();
        assert_eq!(escape(&line), line, "errors are shown");
    }
    let _ = client.page(1);
}

/// A watch of which a client asks this.
pub fn server(asked: &[u8]) {
    use std::io::{Read, Write};
    let (ours, mut theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => unreachable!("{error}"),
    };
    let _ = theirs.write_all(asked);
    let _ = theirs.shutdown(Shutdown::Write);
    let _ = converse(&ours, watch());
    drop(ours);
    let mut answers = Vec::new();
    let _ = theirs.read_to_end(&mut answers);
    for line in answers
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        assert!(
            serde_json::from_slice::<Answer>(line).is_ok(),
            "every answer is one"
        );
    }
}

/// A watch that knows nothing, in a thread of its own.
fn watch() -> &'static Sender<Request> {
    static WATCH: OnceLock<Sender<Request>> = OnceLock::new();
    WATCH.get_or_init(|| {
        let (sender, receiver) = channel::<Request>();
        std::thread::spawn(move || {
            for (ask, reply) in receiver {
                let answer = match ask {
                    Ask::Findings { .. } => Answer::Findings { findings: Vec::new() },
                    Ask::Report | Ask::Page { .. } => Answer::Nothing {
                        why: "nothing".into(),
                    },
                };
                let _ = reply.try_send(answer);
            }
        });
        sender
    })
}
