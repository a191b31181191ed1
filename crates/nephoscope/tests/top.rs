//! `top` takes a terminal and gives it back. `script` (util-linux) lends one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Answers, Watches};

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

/// `top` on a terminal of its own.
fn top(watches: &Watches) -> Option<Child> {
    let program = env!("CARGO_BIN_EXE_nephoscope");
    let command = format!("stty rows 30 cols 100; echo pid $$; exec {program} top web1 --timeout 2");
    let child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("NEPHOSCOPE_RUNTIME_DIR", watches.dir.path())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    if child.is_err() {
        eprintln!("not tested: there is no `script`");
    }
    child.ok()
}

/// Reads until a word is there.
fn wait_for(child: &mut Child, seen: &mut String, word: &str) {
    let begin = Instant::now();
    let mut chunk = [0; 4096];
    while !seen.contains(word) {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{word} is not in {seen:?}"
        );
        let got = child.stdout.as_mut().unwrap().read(&mut chunk).unwrap();
        assert_ne!(got, 0, "{word:?} is not in {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..got]));
    }
}

#[test]
fn without_a_terminal_it_is_said_what_else_there_is() {
    let (code, line) = Watches::one("web1", Answers::canned()).fails(&["top"]);
    assert!(code == 2 && line.contains("nephoscope ps"), "{line}");
}

#[test]
fn it_gives_the_terminal_back_when_it_is_quit() {
    let watches = Watches::one("web1", Answers::canned());
    let Some(mut child) = top(&watches) else { return };
    let mut seen = String::new();
    wait_for(&mut child, &mut seen, "/usr/sbin/nginx");
    assert!(
        seen.contains(ENTER) && seen.contains("COVERAGE NOT COMPLETE"),
        "{seen:?}"
    );
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    wait_for(&mut child, &mut seen, LEAVE);
    assert!(child.wait().unwrap().success());
}

#[test]
fn it_gives_the_terminal_back_when_it_is_told_to_end() {
    let watches = Watches::one("web1", Answers::canned());
    let Some(mut child) = top(&watches) else { return };
    let mut seen = String::new();
    wait_for(&mut child, &mut seen, "/usr/sbin/nginx");
    let pid = seen.split_whitespace().nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    wait_for(&mut child, &mut seen, LEAVE);
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn it_ends_when_its_terminal_is_gone() {
    let watches = Watches::one("web1", Answers::canned());
    let Some(mut child) = top(&watches) else { return };
    let mut seen = String::new();
    wait_for(&mut child, &mut seen, "/usr/sbin/nginx");
    let pid: u32 = seen.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The terminal's other side is killed, and with it the terminal.
    child.kill().unwrap();
    child.wait().unwrap();
    let begin = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(begin.elapsed() < Duration::from_secs(10), "process {pid} goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
