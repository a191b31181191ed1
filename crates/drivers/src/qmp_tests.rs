//! The QMP client against a peer that is played by a thread.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{MAX_EVENTS, MAX_LINE_BYTES, Qmp, QmpError};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;
const SECOND: Duration = Duration::from_secs(1);

/// A peer that greets, accepts the capabilities, then answers the n-th command with the n-th of `answers`.
fn peer(answers: Vec<String>) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
        let mut out = theirs;
        writeln!(out, "{GREETING}").unwrap();
        let capabilities = r#"{"return": {}, "id": 0}"#.to_owned();
        for answer in std::iter::once(capabilities).chain(answers) {
            if lines.next().is_none() {
                return;
            }
            // The client may be gone, which some tests want.
            let _ = writeln!(out, "{answer}");
        }
        // Stay until the client goes.
        let _ = lines.next();
    });
    (ours, thread)
}

fn connected(answers: &[&str]) -> Qmp {
    let (stream, _) = peer(answers.iter().map(|&answer| answer.to_owned()).collect());
    Qmp::from_stream(stream, SECOND).unwrap()
}

#[test]
fn a_command_gives_its_result_and_the_greeting_the_version() {
    let mut qmp = connected(&[r#"{"return": {"running": true}, "id": 1}"#]);
    assert_eq!(qmp.version(), "10.0.2");
    assert_eq!(qmp.execute("query-status", None).unwrap()["running"], true);
}

#[test]
fn events_between_command_and_answer_are_kept() {
    let mut qmp = connected(&[concat!(
        r#"{"event": "RESET", "data": {"guest": true}, "timestamp": {"seconds": 2, "microseconds": 5}}"#,
        "\n",
        r#"{"return": {}, "id": 1}"#
    )]);
    qmp.execute("stop", None).unwrap();
    let events = qmp.take_events();
    assert_eq!(
        (events[0].name.as_str(), events[0].at_us),
        ("RESET", Some(2_000_005))
    );
    assert_eq!(events[0].data["guest"], true);
    assert!(qmp.take_events().is_empty());
}

#[test]
fn a_refusal_carries_class_and_words() {
    let mut qmp = connected(&[
        r#"{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": 1}"#,
    ]);
    let error = qmp.execute("x", None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU refused x: The command x has not been found"
    );
    assert!(matches!(error, QmpError::Refused { class, .. } if class == "CommandNotFound"));
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
    let (stream, _) = peer(vec![
        r#"{"event": "STOP"}"#.to_owned(),
        "{\"return\": \"late\", \"id\": 1}\n{\"return\": \"right\", \"id\": 2}".to_owned(),
    ]);
    let mut qmp = Qmp::from_stream(stream, Duration::from_millis(200)).unwrap();
    assert!(matches!(
        qmp.execute("a", None),
        Err(QmpError::TimedOut { what: "answer", .. })
    ));
    assert_eq!(qmp.execute("b", None).unwrap(), "right");
    assert_eq!(qmp.replies_late(), 1);
}

#[test]
fn a_peer_that_says_nothing_times_out() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let start = Instant::now();
    let error = Qmp::from_stream(ours, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.to_string(), "no greeting from QEMU within 50 ms");
    assert!(start.elapsed() < SECOND);
}

#[test]
fn a_peer_that_trickles_bytes_for_ever_times_out_too() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let trickle = thread::spawn(move || {
        while theirs.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let start = Instant::now();
    assert!(matches!(
        Qmp::from_stream(ours, Duration::from_millis(100)),
        Err(QmpError::TimedOut { .. })
    ));
    assert!(start.elapsed() < SECOND);
    trickle.join().unwrap();
}

#[test]
fn a_peer_that_goes_away_is_told_from_one_that_is_slow() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(Qmp::from_stream(ours, SECOND), Err(QmpError::Closed)));
}

#[test]
fn max_line_bytes_stops_a_line_that_never_ends() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = thread::spawn(move || while theirs.write_all(&[b'a'; 1 << 16]).is_ok() {});
    let result = Qmp::from_stream(ours, Duration::from_secs(20));
    assert!(
        matches!(result, Err(QmpError::LineTooLong)),
        "{result:?} with {MAX_LINE_BYTES}"
    );
    flood.join().unwrap();
}

#[test]
fn what_is_no_json_or_no_qmp_is_refused_as_such() {
    let try_line = |line: &str| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        writeln!(theirs, "{line}").unwrap();
        Qmp::from_stream(ours, SECOND).unwrap_err()
    };
    assert!(matches!(try_line("hello"), QmpError::NotJson(_)));
    assert!(matches!(try_line(&"[".repeat(100_000)), QmpError::NotJson(_)));
    assert!(matches!(
        try_line("[]"),
        QmpError::Unexpected { expected: "object" }
    ));
    assert!(matches!(
        try_line("{}"),
        QmpError::Unexpected { expected: "greeting" }
    ));
}

#[test]
fn max_events_bounds_what_nobody_takes_and_the_rest_is_counted() {
    let mut answer = r#"{"event": "RTC_CHANGE"}"#.to_owned() + "\n";
    answer = answer.repeat(MAX_EVENTS + 3) + r#"{"return": {}, "id": 1}"#;
    let mut qmp = connected(&[&answer]);
    qmp.execute("stop", None).unwrap();
    assert_eq!((qmp.events_dropped(), qmp.take_events().len()), (3, MAX_EVENTS));
}

#[test]
fn a_socket_that_is_not_there_is_an_error_at_once_or_after_waiting() {
    let path = std::env::temp_dir().join("nephoscope-no-such-socket");
    assert!(matches!(Qmp::connect(&path, SECOND), Err(QmpError::Connect(_))));
    let start = Instant::now();
    assert!(matches!(
        Qmp::connect_when_ready(&path, Duration::from_millis(60)),
        Err(QmpError::Connect(_))
    ));
    assert!(start.elapsed() >= Duration::from_millis(60));
}

#[test]
fn events_are_taken_without_waiting_for_more() {
    let (stream, mut peer) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        writeln!(peer, "{GREETING}").unwrap();
        let mut line = String::new();
        BufReader::new(peer.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        writeln!(peer, r#"{{"return": {{}}, "id": 0}}"#).unwrap();
        peer
    });
    let mut qmp = Qmp::from_stream(stream, SECOND).unwrap();
    let mut peer = thread.join().unwrap();
    assert!(
        qmp.events_so_far().unwrap().is_empty(),
        "nothing came, nothing is waited for"
    );
    let late = r#"{"return": {}, "id": 77}"#;
    write!(peer, "{{\"event\": \"STOP\"}}\n{late}\n{{\"event\": \"RES").unwrap();
    let names = |qmp: &mut Qmp| -> Vec<String> {
        let events = qmp.events_so_far().unwrap();
        events.into_iter().map(|event| event.name).collect()
    };
    assert_eq!(names(&mut qmp), ["STOP"]);
    writeln!(peer, "ET\"}}").unwrap();
    assert_eq!(names(&mut qmp), ["RESET"]);
    assert_eq!(qmp.replies_late(), 1);
    writeln!(peer, r#"{{"event": "SHUTDOWN"}}"#).unwrap();
    drop(peer);
    assert!(matches!(qmp.events_so_far(), Err(QmpError::Closed)));
    let last: Vec<String> = qmp.take_events().into_iter().map(|event| event.name).collect();
    assert_eq!(last, ["SHUTDOWN"], "what came with the end");
}

#[test]
fn max_chunks_bounds_what_is_read_of_a_peer_that_never_stops() {
    let (stream, mut peer) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        writeln!(peer, "{GREETING}").unwrap();
        writeln!(peer, r#"{{"return": {{}}, "id": 0}}"#).unwrap();
        let many = "{\"event\": \"STOP\"}\n".repeat(1000);
        while peer.write_all(many.as_bytes()).is_ok() {}
    });
    let mut qmp = Qmp::from_stream(stream, SECOND).unwrap();
    // It comes back, again and again.
    while qmp.events_dropped() == 0 {
        assert!(qmp.events_so_far().unwrap().len() <= MAX_EVENTS);
    }
    drop(qmp);
    thread.join().unwrap();
}
