//! Watches that answer from canned files, or badly, and the program that asks them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and not every test uses all of them"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The canned report.
pub(crate) fn report() -> Value {
    serde_json::from_str(include_str!("../canned/report.json")).unwrap()
}

/// The canned evidence, by page.
pub(crate) fn pages() -> Value {
    serde_json::from_str(include_str!("../canned/pages.json")).unwrap()
}

/// How a watch answers.
#[derive(Clone, Debug)]
pub(crate) enum Answers {
    /// As it should, from this report and these pages. Both can be changed while it runs.
    From(Arc<Mutex<(Value, Value)>>),
    /// This, whatever is asked, and then it closes.
    Text(Vec<u8>),
    /// Never; the connection stays open.
    Never,
    /// One byte now and then.
    Trickle,
    /// Bytes without end.
    Endless,
}

impl Answers {
    /// From the canned report.
    pub(crate) fn canned() -> Self {
        Self::from(report(), pages())
    }

    /// From these.
    pub(crate) fn from(report: Value, pages: Value) -> Self {
        Self::From(Arc::new(Mutex::new((report, pages))))
    }
}

/// A directory of watches.
pub(crate) struct Watches {
    /// `NEPHOSCOPE_RUNTIME_DIR`.
    pub(crate) dir: TempDir,
}

impl Watches {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// One that answers so.
    pub(crate) fn one(name: &str, answers: Answers) -> Self {
        let watches = Self::none();
        watches.add(name, answers);
        watches
    }

    /// One more.
    pub(crate) fn add(&self, name: &str, answers: Answers) {
        let listener = self.listen(name);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answers = answers.clone();
                std::thread::spawn(move || drop(converse(&stream.unwrap(), &answers)));
            }
        });
    }

    /// One that was killed: its socket is left.
    pub(crate) fn add_dead(&self, name: &str) {
        drop(self.listen(name));
    }

    /// The VM ends: its socket goes away. (Conversations end with the test.)
    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.dir.path().join(name)).unwrap();
    }

    fn listen(&self, name: &str) -> UnixListener {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        UnixListener::bind(dir.join("control.sock")).unwrap()
    }

    /// The program with these arguments, ready to run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nephoscope"));
        command
            .args(arguments)
            .env("NEPHOSCOPE_RUNTIME_DIR", self.dir.path())
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    /// What it does.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, if it succeeds.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}{text}");
        text
    }

    /// The code and the one line it fails with.
    pub(crate) fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} succeeds");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: not one line: {errors}");
        assert!(errors.starts_with("nephoscope: "), "{errors}");
        (output.status.code().unwrap(), errors)
    }
}

fn converse(stream: &UnixStream, answers: &Answers) -> std::io::Result<()> {
    let mut out = stream;
    for line in BufReader::new(stream).lines() {
        let ask: Value = serde_json::from_str(&line?).unwrap();
        match answers {
            Answers::From(canned) => {
                let answer = answer(&ask, &canned.lock().unwrap());
                writeln!(out, "{answer}")?;
            }
            Answers::Text(text) => return out.write_all(text),
            Answers::Never => std::thread::sleep(Duration::from_secs(600)),
            Answers::Trickle => loop {
                out.write_all(b" ")?;
                std::thread::sleep(Duration::from_millis(100));
            },
            Answers::Endless => loop {
                out.write_all(&[b'x'; 1 << 16])?;
            },
        }
    }
    Ok(())
}

fn answer(ask: &Value, (report, pages): &(Value, Value)) -> Value {
    match ask["ask"].as_str().unwrap() {
        "report" => json!({"answer": "report", "report": report}),
        "findings" => {
            let all = report["findings"].as_array().unwrap().iter();
            let new: Vec<&Value> = all
                .filter(|finding| finding["id"].as_u64() > ask["after"].as_u64())
                .collect();
            json!({"answer": "findings", "findings": new})
        }
        _ => match pages.get(ask["page"].to_string()) {
            Some(page) => json!({"answer": "page", "page": page}),
            None => json!({"answer": "nothing", "why": format!("there is no page {}", ask["page"])}),
        },
    }
}

/// The widest line.
pub(crate) fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// A saved report.
pub(crate) fn save(report: &Value, dir: &Path) -> String {
    let path = dir.join("saved.json");
    std::fs::write(&path, report.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}
