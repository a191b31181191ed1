//! `ps`, `findings` and `why` against watches that answer well.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Answers, Watches, pages, report, save, widest};

#[test]
fn ps_shows_the_only_vm_in_100_columns_and_without_paint_in_a_pipe() {
    let text = Watches::one("web1", Answers::canned()).ok(&["ps"]);
    assert!(widest(&text) <= 100 && !text.contains('\u{1b}'), "{text}");
    let said = [
        "web1: QEMU 10.0.2 (tcg, x86-64, 2 vCPUs), watched for 12m00s",
        "COVERAGE NOT COMPLETE: code blind",
        "no monitor was attached",
        "linux-image-6.1.0-32-amd64 6.1.129-1",
        "nginx 1.22.1-9+deb12u1",
        "1 modified",
        "12 unknown",
        "4 findings: 1 high, 1 medium, 2 low",
        "7 ended: --all shows them",
    ];
    for line in said {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn ps_shows_two_versions_as_two() {
    let text = Watches::one("web1", Answers::canned()).ok(&["ps", "web1"]);
    let line = text
        .lines()
        .find(|line| line.contains("/usr/bin/openssl"))
        .unwrap();
    assert!(line.contains("3.0.15") && line.contains(" | "), "{line}");
}

#[test]
fn ps_json_is_the_report_as_it_is_saved_and_what_the_schema_says() {
    let watches = Watches::one("web1", Answers::canned());
    let printed: Value = serde_json::from_str(&watches.ok(&["ps", "web1", "--json"])).unwrap();
    assert_eq!(printed, report());
    let schema = serde_json::from_str(include_str!("../../../docs/report.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let wrong: Vec<String> = validator.iter_errors(&printed).map(|e| e.to_string()).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_saved_report_reads_like_a_running_watch() {
    let watches = Watches::one("web1", Answers::canned());
    let saved = save(&report(), watches.dir.path());
    for command in ["ps", "findings"] {
        let live = watches.ok(&[command, "web1"]);
        assert_eq!(live, Watches::none().ok(&[command, "--report", &saved]));
    }
}

#[test]
fn ps_lists_several_vms_and_those_whose_watch_is_gone() {
    let watches = Watches::one("web1", Answers::canned());
    let mut other = report();
    other["vm"]["vcpus"] = 8.into();
    watches.add("db", Answers::from(other, pages()));
    watches.add_dead("old");
    let text = watches.ok(&["ps"]);
    let lines: Vec<&str> = text.lines().collect();
    let [_, db, old, web1] = lines.as_slice() else {
        unreachable!("{text}")
    };
    assert!(db.starts_with("db ") && db.contains(" 8 "), "{text}");
    assert!(
        old.contains("watch gone") && web1.contains("CODE blind"),
        "{text}"
    );
    assert!(widest(&text) <= 100);
    let json: Value = serde_json::from_str(&watches.ok(&["ps", "--json"])).unwrap();
    assert_eq!(json[0]["address_spaces"], json!({"living": 11, "ended": 7}));
    assert!(json[1]["error"].as_str().unwrap().contains("attach --name old"));
    // Commands about one VM need its name.
    let (code, line) = watches.fails(&["findings"]);
    assert_eq!(code, 2);
    assert!(line.contains("db, web1") && !line.contains("old"), "{line}");
}

#[test]
fn findings_in_a_pipe_are_one_line_or_one_object_each() {
    let watches = Watches::one("web1", Answers::canned());
    let text = watches.ok(&["findings"]);
    assert_eq!(text.lines().count(), 4, "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("f4        63.120 s  high    [13 /usr/sbin/nginx]"),
        "{last}"
    );
    let objects = watches.ok(&["findings", "web1", "--json"]);
    let objects: Vec<Value> = objects
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(Value::from(objects), report()["findings"]);
}

#[test]
fn following_findings_shows_new_ones_and_ends_with_the_vm() {
    let Answers::From(canned) = Answers::canned() else {
        unreachable!()
    };
    let watches = Watches::none();
    watches.add("web1", Answers::From(canned.clone()));
    let mut child = watches
        .command(&["findings", "web1", "--follow", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ids = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["id"].clone());
    let first: Vec<Value> = ids.by_ref().take(4).collect();
    let mut new = report()["findings"][3].clone();
    new["id"] = 5.into();
    canned.lock().unwrap().0["findings"]
        .as_array_mut()
        .unwrap()
        .push(new);
    let fifth = ids.next();
    // A poisoned lock ends the conversation: the watch is gone.
    let poisoner = canned.clone();
    let _ = std::thread::spawn(move || {
        let _held = poisoner.lock().unwrap();
        std::panic::resume_unwind(Box::new("the VM ends"));
    })
    .join();
    watches.remove("web1");
    assert_eq!(
        (first, fifth),
        ([1, 2, 3, 4].map(Value::from).to_vec(), Some(5.into()))
    );
    assert_eq!(ids.next(), None, "each once");
    let status = child.wait().unwrap();
    let mut errors = String::new();
    child.stderr.unwrap().read_to_string(&mut errors).unwrap();
    assert!(status.success(), "{errors}");
    assert!(errors.contains("web1 ended"), "{errors}");
}

#[test]
fn why_shows_a_modified_page_byte_by_byte_and_as_instructions() {
    let watches = Watches::one("web1", Answers::canned());
    let text = watches.ok(&["why", "web1", "f4"]);
    assert!(widest(&text) <= 100, "{text}");
    let said = [
        "p1423 is modified: 11 bytes in 2 places differ",
        "/usr/sbin/nginx, linked at 0x43000",
        "nginx 1.22.1-9+deb12u1",
        "+0x120  - 48 89 5c 24 08",
        "+0x120  + e9 1b 0e 00 00",
        "- 0x55d0a1c43120  48895c2408            mov [rsp+8], rbx",
        "+ 0x55d0a1c43120  e91b0e0000            jmp 0x55d0a1c43f40",
        "- 0x55d0a1c437f2  0f84a1000000          je 0x55d0a1c43899",
        "13 /usr/sbin/nginx at 0x55d0a1c43000",
    ];
    for line in said {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    // By its page it is the same, without the finding.
    assert!(text.ends_with(&watches.ok(&["why", "web1", "p1423"])));
}

#[test]
fn why_shows_where_an_unknown_page_is_from_and_what_ran_first() {
    let watches = Watches::one("web1", Answers::canned());
    let text = watches.ok(&["why", "web1", "1777"]);
    assert!(
        text.contains("origin     user memory near known modules"),
        "{text}"
    );
    assert!(text.contains("0x401020  0f05                  syscall"), "{text}");
    let sixteen = watches.ok(&["why", "web1", "1777", "--bits", "16"]);
    assert!(
        sixteen.contains("as 16-bit code") && !sixteen.contains("rdi"),
        "{sixteen}"
    );
}

#[test]
fn why_shows_an_identified_page_and_what_rewrote_it() {
    let text = Watches::one("web1", Answers::canned()).ok(&["why", "web1", "p700"]);
    assert!(text.contains("return thunk: 12 sites, 60 bytes"), "{text}");
    assert!(text.contains("(source linux-signed-amd64)"), "{text}");
}

#[test]
fn why_json_is_the_finding_and_the_page() {
    let watches = Watches::one("web1", Answers::canned());
    let value: Value = serde_json::from_str(&watches.ok(&["why", "web1", "f4", "--json"])).unwrap();
    assert_eq!(value["finding"], report()["findings"][3]);
    assert_eq!(value["page"]["bytes"], pages()["1423"]["bytes"]);
    let value: Value = serde_json::from_str(&watches.ok(&["why", "web1", "700", "--json"])).unwrap();
    assert!(value["finding"].is_null());
}

#[test]
fn what_guests_and_packages_name_never_reaches_the_terminal_as_it_is() {
    let hostile = "\u{1b}]0;owned\u{7}\u{202e}x\u{9b}2J";
    let mut text = report().to_string();
    let escaped = serde_json::to_string(hostile).unwrap();
    let inner = escaped.trim_matches('"');
    for name in ["nginx", "web1", "QEMU 10.0.2", "detached", "identified"] {
        text = text.replace(name, &format!("{name}{inner}"));
    }
    // Numbers of pages are no text.
    let text = text.replace(&format!("\"identified{inner}\":"), "\"identified\":");
    let mut evidence = pages();
    for page in evidence.as_object_mut().unwrap().values_mut() {
        for field in ["origin", "privilege", "digest"] {
            page[field] = hostile.into();
        }
        page["sites"] = json!([[hostile, 1, 1]]);
        page["differences"] = json!([[9, hostile, hostile], [65535, "", ""]]);
        for place in page["places"].as_array_mut().unwrap() {
            place["path"] = hostile.into();
            place["version"] = hostile.into();
        }
    }
    let watches = Watches::one(
        "vm",
        Answers::from(serde_json::from_str(&text).unwrap(), evidence),
    );
    let commands: [&[&str]; 7] = [
        &["ps"],
        &["ps", "--all"],
        &["findings"],
        &["why", "vm", "f4"],
        &["why", "vm", "1777"],
        &["why", "vm", "700", "--all"],
        &["why", "vm", "f9"],
    ];
    for arguments in commands {
        let output = watches.run(arguments);
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text).unwrap();
            let unsafe_there = text
                .chars()
                .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
            assert!(!unsafe_there, "{arguments:?}: {text:?}");
        }
    }
}

#[test]
fn a_reader_who_has_read_enough_is_no_error() {
    let watches = Watches::one("web1", Answers::canned());
    for arguments in [&["ps", "--json"][..], &["findings"]] {
        let mut child = watches
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

/// What `docs/usage.md` shows under a command.
fn documented(command: &str) -> String {
    let usage = include_str!("../../../docs/usage.md");
    let lines = usage
        .lines()
        .skip_while(|line| *line != format!("    $ {command}"));
    let block: Vec<&str> = lines
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    block.join("\n").trim_end().to_owned()
}

#[test]
fn the_documentation_shows_what_is_printed() {
    let watches = Watches::one("web1", Answers::canned());
    for arguments in [&["ps", "web1"][..], &["findings", "web1"], &["why", "web1", "f4"]] {
        let printed = watches.ok(arguments);
        let shown = documented(&format!("nephoscope {}", arguments.join(" ")));
        assert_eq!(shown, printed.trim_end(), "docs/usage.md shows something else");
    }
}
