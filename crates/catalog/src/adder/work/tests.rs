//! Files in waiting, with one thread that only unpacks.

use std::path::PathBuf;

use super::*;

/// `count` files of `len` bytes whose names say that they may be firmware. They hold nothing.
fn files(folder: &Path, count: usize, len: usize) -> Vec<PathBuf> {
    let file = |number: usize| {
        let path = folder.join(format!("{len}-{number}.rom"));
        let file = File::create(&path).unwrap();
        file.set_len(len as u64).unwrap();
        path
    };
    (0..count).map(file).collect()
}

/// Unpacks these, and only then works on what waits. How many waited; and how many were worked on by then, and in all.
fn unpack(folder: &Path, files: &[PathBuf]) -> (usize, u64, u64) {
    let mut store = Store::new(folder, Vec::new()).unwrap();
    let tally = Tally::default();
    let shop = Shop {
        units: Mutex::new(Vec::new().into_iter()),
        store: Mutex::new(&mut store),
        tally: &tally,
        stop: Mutex::new(None),
        stopped: AtomicBool::new(false),
        done: AtomicU64::new(0),
        total: 0,
        progress: &|_| (),
    };
    let (sender, receiver) = queue();
    for file in files {
        shop.file(file, false, &sender);
    }
    let (waiting, at_once) = (receiver.len(), tally.no_code.load(Ordering::Relaxed));
    shop.work(sender, &receiver);
    (waiting, at_once, tally.no_code.load(Ordering::Relaxed))
}

#[test]
fn max_queued_files_bounds_what_waits_and_the_rest_is_worked_on_where_it_was_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), MAX_QUEUED_FILES + 5, 4096);
    let all = MAX_QUEUED_FILES as u64 + 5;
    assert_eq!(unpack(folder.path(), &files), (MAX_QUEUED_FILES, 5, all));
}

#[test]
fn max_queued_file_bytes_bounds_how_large_a_file_may_wait() {
    let folder = tempfile::tempdir().unwrap();
    let [largest, larger] =
        [0, 1].map(|more| files(folder.path(), 1, MAX_QUEUED_FILE_BYTES + more).remove(0));
    assert_eq!(unpack(folder.path(), &[largest]), (1, 0, 1));
    assert_eq!(unpack(folder.path(), &[larger]), (0, 1, 1));
}
