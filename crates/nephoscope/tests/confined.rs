//! What a monitor gave up, it cannot do: each act is tried by this program, confined as a monitor is.
//!
//! The command that tries them is in debug builds only.
#![cfg(debug_assertions)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

/// Tries an act; `folder` may be read and written.
fn attempt(act: &str, folder: &Path) -> Output {
    let folder = folder.to_str().unwrap();
    Command::new(env!("CARGO_BIN_EXE_nephoscope"))
        .args(["confined", act, "--read", folder, "--write", folder])
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it says of one part.
fn part<'t>(text: &'t str, name: &str) -> &'t str {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .unwrap_or_else(|| panic!("nothing of {name} in {text}"))
}

/// For everybody, since root becomes somebody else.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(folder.path().join("inside"), "x").unwrap();
    folder
}

#[test]
fn max_data_bytes_max_files_and_max_tasks_are_its_limits() {
    use rustix::process::{Resource, getrlimit};
    let text = said(&attempt("read:/", folder().path()));
    let limits = part(&text, "limits");
    let root = rustix::process::getuid().is_root();
    let mine = |resource, most: u64| getrlimit(resource).maximum.map_or(most, |now| now.min(most));
    let wanted = [
        ("memory", mine(Resource::Data, 2 << 30)),
        ("files", mine(Resource::Nofile, 1024)),
        ("core", 0),
    ];
    let tasks = root.then(|| ("tasks", mine(Resource::Nproc, 64)));
    for (name, most) in wanted.into_iter().chain(tasks) {
        let told = format!("{name} {most}");
        assert!(
            limits.split(", ").any(|limit| limit == told),
            "{told} is not in {limits}"
        );
    }
}

#[test]
fn every_part_of_the_confinement_is_in_force_or_said_to_be_missing() {
    let folder = folder();
    let text = said(&attempt("read:/", folder.path()));
    for name in [
        "user",
        "capabilities",
        "no_new_privs",
        "dumpable",
        "limits",
        "seccomp",
        "landlock",
    ] {
        assert!(!part(&text, name).is_empty());
    }
    assert_eq!(part(&text, "capabilities"), "none");
    assert_eq!(part(&text, "no_new_privs"), "set");
    assert!(part(&text, "seccomp").ends_with("system calls left"), "{text}");
    if rustix::process::getuid().is_root() {
        assert!(part(&text, "user").ends_with(", root before"), "{text}");
    }
}

#[test]
fn starting_a_program_ends_the_monitor() {
    let folder = folder();
    let output = attempt("exec", folder.path());
    assert_eq!(output.status.signal(), Some(libc_sigsys()), "{output:?}");
    assert!(!said(&output).contains("act:"));
}

/// `SIGSYS` (signal(7)), with which the kernel answers a forbidden call.
fn libc_sigsys() -> i32 {
    31
}

#[test]
fn processes_sockets_executable_memory_and_signals_to_others_are_refused() {
    let folder = folder();
    for act in ["fork", "socket", "executable", "signal"] {
        let text = said(&attempt(act, folder.path()));
        assert!(part(&text, "act").contains("not permitted"), "{act}: {text}");
    }
}

#[test]
fn files_outside_what_is_kept_cannot_be_read_nor_written_in_any_thread() {
    let (folder, other) = (folder(), folder());
    let (inside, outside) = (folder.path().join("inside"), other.path().join("inside"));
    let act = |what: &str, path: &Path| said(&attempt(&format!("{what}:{}", path.display()), folder.path()));
    let first = act("read", &inside);
    assert_eq!(part(&first, "act"), "done");
    assert_eq!(part(&act("write", &folder.path().join("new")), "act"), "done");
    if part(&first, "landlock").starts_with("not in force") {
        eprintln!("this kernel has no Landlock: what the rest of this test asks for is not promised here");
        return;
    }
    for what in ["read", "write", "thread"] {
        let text = act(what, &outside);
        assert!(part(&text, "act").contains("denied"), "{what}: {text}");
    }
}

#[test]
fn a_user_that_is_not_there_and_one_that_only_root_can_become_are_refused() {
    let run = |user: &str| {
        Command::new(env!("CARGO_BIN_EXE_nephoscope"))
            .args(["confined", "socket", "--user", user])
            .output()
            .unwrap()
    };
    let nobody = run("no-such-user");
    assert!(
        String::from_utf8_lossy(&nobody.stderr).contains("no user"),
        "{nobody:?}"
    );
    let other = run("65534");
    if rustix::process::getuid().is_root() {
        assert!(part(&said(&other), "user").starts_with("65534"), "{other:?}");
    } else {
        assert!(
            String::from_utf8_lossy(&other.stderr).contains("only root"),
            "{other:?}"
        );
    }
}
