use std::sync::Arc;

use nephoscope_catalog::{Adder, Catalog};
use nephoscope_guest::{Coverage, Gap, GapReason};
use nephoscope_inventory::VmReport;

use super::*;
use crate::runtime::VmDir;

const OF: Of = Of {
    pid: 7,
    installed_ns: 1_000,
};

fn session() -> (Session, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut adder = Adder::new(folder.path()).unwrap();
    adder.add(&[std::fs::canonicalize("/bin/sh").unwrap()]).unwrap();
    adder.commit().unwrap();
    let catalog = Arc::new(Catalog::open(folder.path()).unwrap());
    (Session::new(VmReport::default(), catalog), folder)
}

fn gap(at: u64) -> Gap {
    Gap {
        from_ns: at,
        to_ns: at + 1,
        left: Coverage::BLIND,
        reason: GapReason::RingFull,
        lost: 1,
    }
}

#[test]
fn what_is_left_is_what_was_written_up_to_the_horizon() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    assert!(Left::read(&dir).is_none());
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    session.gap(gap(10));
    journal.keep(&mut session, 20);
    session.gap(gap(30));
    // A kill in the middle of a write leaves half a line behind the horizon.
    journal.file.write_all_at(b"{\"gap\":", journal.at.len).unwrap();
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.of, left.done_ns), (OF, 20));
    assert_eq!(left.entries, [Entry::Gap(gap(10))]);
}

#[test]
fn a_successor_begins_a_journal_with_all_that_was_left() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut first, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut first).unwrap();
    first.gap(gap(10));
    journal.keep(&mut first, 20);
    drop(journal);
    let left = Left::read(&dir).unwrap();
    let (mut second, _catalog) = session();
    second.restore(left.entries.clone());
    let mut journal = Journal::begin(&dir, OF, Some(&left), &mut second).unwrap();
    let again = Left::read(&dir).unwrap();
    assert_eq!((again.done_ns, &again.entries), (20, &left.entries));
    second.gap(gap(40));
    journal.keep(&mut second, 50);
    assert_eq!(Left::read(&dir).unwrap().entries.len(), 2);
}

#[test]
fn a_horizon_that_was_damaged_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    drop(Journal::begin(&dir, OF, None, &mut session).unwrap());
    assert!(Left::read(&dir).is_some());
    let mut bytes = std::fs::read(dir.path(HORIZON)).unwrap();
    bytes[16] ^= 1;
    std::fs::write(dir.path(HORIZON), &bytes).unwrap();
    assert!(Left::read(&dir).is_none());
}

#[test]
fn max_bytes_bounds_the_journal_and_the_horizon_stays_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    journal.keep(&mut session, 20);
    journal.pending = vec![b'x'; usize::try_from(MAX_BYTES / 4).unwrap() + 1];
    journal.keep(&mut session, 30);
    assert_eq!(Left::read(&dir).unwrap().done_ns, 20);
    assert!(journal.pending.is_empty());
}

#[test]
fn a_journal_that_has_grown_is_written_anew_with_what_still_counts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    session.gap(gap(10));
    journal.keep(&mut session, 20);
    // As if much had been written: a hole in the file.
    journal.file.set_len(ANEW_AFTER + 4096).unwrap();
    journal.at.len = ANEW_AFTER + 4096;
    session.gap(gap(30));
    journal.keep(&mut session, 40);
    assert_eq!(journal.at.number, 1);
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.done_ns, left.entries.len()), (40, 2));
    assert!(!dir.path(&named(0)).exists());
}
