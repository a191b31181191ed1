//! What a store does when a byte flips or its writer is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::stores::{Lmdb, Own, Redb, Store};
use super::{key, value};

/// Keys of the store that is harmed: small, so that every key can be asked for.
const KEYS: u64 = 50_000;

/// Flips one byte in a fresh copy, `times` times; another process then asks for every key.
pub(crate) fn flips<S: Store>(times: u64) {
    let good = tempfile::tempdir().unwrap();
    S::build(good.path(), KEYS);
    let (mut right, mut error, mut wrong, mut crash) = (0, 0, 0, 0);
    for n in 0..times {
        let dir = tempfile::tempdir().unwrap();
        let mut files: Vec<_> = std::fs::read_dir(good.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.retain(|f| f.file_name().is_none_or(|n| n != "lock.mdb"));
        for file in files {
            let mut bytes = std::fs::read(&file).unwrap();
            let at = u64::from_le_bytes(key(n + (1 << 40))[..8].try_into().unwrap()) as usize % bytes.len();
            bytes[at] ^= 1 << (n % 8);
            std::fs::write(dir.path().join(file.file_name().unwrap()), bytes).unwrap();
        }
        match run::<S>("ask", dir.path(), None) {
            Some(0) => right += 1,
            Some(3) => error += 1,
            Some(4) => wrong += 1,
            _ => crash += 1,
        }
    }
    println!(
        "{:5} {times} flipped bytes: {error} reported, {right} without effect, {wrong} WRONG ANSWERS, {crash} CRASHES",
        S::NAME
    );
}

/// Kills a process that adds as many keys again, at `times` moments.
pub(crate) fn kills<S: Store>(times: u64) {
    let (mut old, mut new, mut other) = (0, 0, 0);
    for n in 0..times {
        let dir = tempfile::tempdir().unwrap();
        S::build(dir.path(), KEYS);
        run::<S>("add", dir.path(), Some(Duration::from_millis(5 + n * 10)));
        match (
            run::<S>("ask", dir.path(), None),
            run::<S>("ask2", dir.path(), None),
        ) {
            (Some(0), Some(0)) => new += 1,
            (Some(0), Some(4)) => old += 1,
            _ => other += 1,
        }
    }
    println!(
        "{:5} {times} kills while adding: {old} old, {new} new, {other} OTHER",
        S::NAME
    );
}

fn run<S: Store>(what: &str, dir: &Path, kill_after: Option<Duration>) -> Option<i32> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", S::NAME, what])
        .arg(dir)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(after) = kill_after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    child.wait().unwrap().code()
}

/// The other side of [`run`]; `false` if this process is not one.
pub(crate) fn child(args: &[String]) -> bool {
    let [child, name, what, dir] = args else {
        return false;
    };
    if child != "child" {
        return false;
    }
    let dir = Path::new(dir);
    match name.as_str() {
        "lmdb" => work::<Lmdb>(what, dir),
        "redb" => work::<Redb>(what, dir),
        _ => work::<Own>(what, dir),
    }
    true
}

fn work<S: Store>(what: &str, dir: &Path) {
    let range = match what {
        "add" => return S::add(dir, KEYS, 2 * KEYS),
        "ask2" => KEYS..2 * KEYS,
        _ => 0..KEYS,
    };
    let Ok(store) = S::open(dir) else {
        std::process::exit(3)
    };
    let (mut error, mut wrong) = (false, false);
    for i in range {
        match store.get(&key(i)) {
            Ok(Some(found)) if found == value(i) => {}
            Ok(_) => wrong = true,
            Err(_) => error = true,
        }
    }
    // One wrong answer is a wrong answer, even if others were errors.
    std::process::exit(if wrong {
        4
    } else if error {
        3
    } else {
        0
    });
}
