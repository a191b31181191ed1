//! Watches that are not there, do not answer, or answer nonsense: one line that says what to do, and the exit code of
//! `docs/exit-codes.md`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use support::{Answers, Watches, report, save};

/// Every command that asks one VM.
const COMMANDS: [&[&str]; 4] = [
    &["ps", "web1", "--timeout", "1"],
    &["findings", "web1", "--timeout", "1"],
    &["findings", "web1", "--follow", "--timeout", "1"],
    &["why", "web1", "f1", "--timeout", "1"],
];

fn all_fail(watches: &Watches, code: i32, word: &str) {
    for arguments in COMMANDS {
        // Following ends well with the VM, and a VM that is not there has ended before it began: it is asked first.
        let (got, line) = watches.fails(arguments);
        assert!(got == code && line.contains(word), "{arguments:?}: {got}: {line}");
    }
}

#[test]
fn without_any_vm_it_is_said_how_to_watch_one() {
    let watches = Watches::none();
    for arguments in [&["ps"][..], &["findings"]] {
        let (code, line) = watches.fails(arguments);
        assert!(
            code == 30 && line.contains("`nephoscope run` starts one"),
            "{code} {line}"
        );
    }
    let missing = watches.dir.path().join("missing");
    let output = watches
        .command(&["ps"])
        .env("NEPHOSCOPE_RUNTIME_DIR", missing)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(30));
}

#[test]
fn a_vm_that_is_not_watched_is_said_to_be_none() {
    let watches = Watches::one("db", Answers::canned());
    all_fail(
        &watches,
        30,
        "no VM named \"web1\" is being watched: `nephoscope ps` lists those that are",
    );
    let (code, _) = watches.fails(&["ps", "../etc"]);
    assert_eq!(code, 2, "a name that is none");
}

#[test]
fn a_watch_that_was_killed_can_be_attached_again() {
    let watches = Watches::none();
    watches.add_dead("web1");
    all_fail(&watches, 30, "`nephoscope attach --name web1`");
    let (code, line) = watches.fails(&["ps"]);
    assert!(code == 30 && line.contains("attach --name web1"), "{code} {line}");
}

#[test]
fn a_watch_that_never_answers_is_given_up() {
    let watches = Watches::one("web1", Answers::Never);
    let begin = Instant::now();
    all_fail(&watches, 30, "did not answer within 1 s");
    assert!(begin.elapsed() < Duration::from_secs(30));
    // Among several it does not hide the others, and decides the code.
    watches.add("db", Answers::canned());
    let output = watches.run(&["ps", "--timeout", "1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(30));
    assert!(
        text.contains("NO ANSWER") && text.contains("QEMU 10.0.2"),
        "{text}"
    );
}

#[test]
fn patience_ends_with_a_watch_that_sends_a_byte_now_and_then() {
    let watches = Watches::one("web1", Answers::Trickle);
    let (code, line) = watches.fails(&["ps", "--timeout", "1"]);
    assert!(
        code == 30 && line.contains("did not answer within 6 s"),
        "{code} {line}"
    );
}

#[test]
fn max_answer_ends_a_watch_that_sends_without_end() {
    let watches = Watches::one("web1", Answers::Endless);
    let (code, line) = watches.fails(&["ps"]);
    assert!(
        code == 33 && line.contains("longer than 256 MiB"),
        "{code} {line}"
    );
}

#[test]
fn a_watch_that_closes_has_ended() {
    let watches = Watches::one("web1", Answers::Text(Vec::new()));
    for arguments in [COMMANDS[0], COMMANDS[1], COMMANDS[3]] {
        let (code, line) = watches.fails(arguments);
        assert!(
            code == 30 && line.contains("ended before it answered"),
            "{code} {line}"
        );
    }
    // To follow until the end is what was asked for.
    assert!(watches.run(COMMANDS[2]).status.success());
}

#[test]
fn garbage_is_not_understood() {
    let nonsense: [&[u8]; 8] = [
        b"hello\n",
        b"\xff\xfe\x00\n",
        b"\n",
        b"{\"answer\":\"report\"",
        b"{\"answer\":\"report\",\"report\":{}}\n",
        b"{\"answer\":\"dance\"}\n",
        b"{\"answer\":\"page\",\"page\":null}\n",
        b"\x1b[2J\x1b]0;owned\x07\n",
    ];
    for text in nonsense {
        let watches = Watches::one("web1", Answers::Text(text.to_vec()));
        all_fail(&watches, 33, "is not understood");
    }
    let deep = [vec![b'['; 100_000], vec![b'\n']].concat();
    all_fail(
        &Watches::one("web1", Answers::Text(deep)),
        33,
        "is not understood",
    );
}

#[test]
fn an_answer_to_another_question_is_not_understood() {
    let watches = Watches::one(
        "web1",
        Answers::Text(b"{\"answer\":\"findings\",\"findings\":[]}\n".to_vec()),
    );
    let (code, line) = watches.fails(&["ps"]);
    assert!(code == 33 && line.contains("another question"), "{code} {line}");
    let mut other = report();
    other["schema"] = "nephoscope.report/9".into();
    let watches = Watches::one("web1", Answers::from(other.clone(), support::pages()));
    let (code, line) = watches.fails(&["ps"]);
    assert!(
        code == 33 && line.contains("nephoscope.report/9"),
        "{code} {line}"
    );
    let saved = save(&other, watches.dir.path());
    assert_eq!(watches.fails(&["ps", "--report", &saved]).0, 33);
}

#[test]
fn what_is_not_there_has_its_own_code() {
    let watches = Watches::one("web1", Answers::canned());
    let (code, line) = watches.fails(&["why", "web1", "p5"]);
    assert!(code == 32 && line.contains("nephoscope ps web1 --json"), "{line}");
    let (code, line) = watches.fails(&["why", "web1", "f99"]);
    assert!(code == 32 && line.contains("nephoscope findings web1"), "{line}");
    let (code, line) = watches.fails(&["ps", "--report", "/nonexistent/report.json"]);
    assert!(code == 2 && line.contains("give a file"), "{line}");
    assert_eq!(watches.run(&["why", "web1", "x7"]).status.code(), Some(2));
}

#[test]
fn who_may_not_ask_is_told_who_may() {
    let watches = Watches::one("web1", Answers::canned());
    let deny = |mode| {
        std::fs::set_permissions(watches.dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    deny(0o000);
    for arguments in [
        &["ps"][..],
        &["ps", "web1"],
        &["findings", "web1"],
        &["why", "web1", "1"],
    ] {
        let mut command = watches.command(arguments);
        if rustix::process::geteuid().is_root() {
            // Nothing is denied to root: be nobody.
            command.uid(65534).gid(65534);
        }
        let Ok(output) = command.output() else {
            eprintln!("not tested: the program cannot be run as another user where it is");
            break;
        };
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(31), "{arguments:?}: {line}");
        assert!(line.contains("be the user who started"), "{line}");
    }
    deny(0o700);
}
