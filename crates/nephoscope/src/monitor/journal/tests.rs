use std::io::Write as _;
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

impl Journal {
    /// [`Journal::keep`], and waits until that is written.
    fn keep_now(&mut self, session: &mut Session, done_ns: u64) {
        self.keep(session, done_ns);
        while self.seen.busy.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
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
    journal.keep_now(&mut session, 20);
    session.gap(gap(30));
    // A kill in the middle of a write leaves half a line behind the horizon.
    let file = std::fs::File::options().append(true).open(dir.path(&named(0)));
    file.unwrap().write_all(b"{\"gap\":").unwrap();
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
    journal.keep_now(&mut first, 20);
    drop(journal);
    let left = Left::read(&dir).unwrap();
    let (mut second, _catalog) = session();
    second.restore(left.entries.clone());
    let mut journal = Journal::begin(&dir, OF, Some(&left), &mut second).unwrap();
    let again = Left::read(&dir).unwrap();
    assert_eq!((again.done_ns, &again.entries), (20, &left.entries));
    second.gap(gap(40));
    journal.keep_now(&mut second, 50);
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
    journal.keep_now(&mut session, 20);
    journal.pending = vec![b'x'; usize::try_from(MAX_BYTES / 4).unwrap() + 1];
    journal.keep_now(&mut session, 30);
    assert_eq!(Left::read(&dir).unwrap().done_ns, 20);
    assert!(journal.pending.is_empty() && journal.writer.is_none());
}

#[test]
fn while_the_disk_is_at_the_lines_before_the_next_ones_wait_and_the_watch_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    // As if the disk stood still.
    journal.seen.busy.store(true, Ordering::Release);
    for at in [10, 30, 50] {
        session.gap(gap(at));
        journal.keep(&mut session, at + 10);
    }
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.done_ns, left.entries.len()), (0, 0));
    journal.seen.busy.store(false, Ordering::Release);
    journal.keep_now(&mut session, 70);
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.done_ns, left.entries.len()), (70, 3));
}

#[test]
fn what_was_given_is_written_when_the_watch_ends() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    session.gap(gap(10));
    journal.keep(&mut session, 20);
    drop(journal);
    assert_eq!(Left::read(&dir).unwrap().done_ns, 20);
}

/// `/dev/full` takes nothing (`full(4)`).
#[test]
fn what_the_disk_does_not_take_is_written_when_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let file = |path: &std::path::Path| {
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    };
    let at = Horizon {
        number: 0,
        len: 0,
        done_ns: 5,
    };
    let (horizon, full) = (dir.create(HORIZON, false).unwrap(), file("/dev/full".as_ref()));
    let mut writer = Writer::new(dir.clone(), horizon, full, at);
    let first = line(&OF).unwrap();
    assert!(writer.write(first.clone(), 20).is_err());
    assert_eq!(writer.seen.unwritten.load(Ordering::Acquire), first.len() as u64);
    writer.file = dir.create(&named(0), true).unwrap();
    writer.write(line(&Entry::Gap(gap(10))).unwrap(), 30).unwrap();
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.of, left.done_ns, left.entries.len()), (OF, 30, 1));
}

#[test]
fn a_journal_that_has_grown_is_written_anew_with_what_still_counts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = VmDir::at("web1", folder.path()).hold().unwrap();
    let (mut session, _catalog) = session();
    let mut journal = Journal::begin(&dir, OF, None, &mut session).unwrap();
    session.gap(gap(10));
    journal.keep_now(&mut session, 20);
    session.gap(gap(30));
    let lots = vec![b' '; usize::try_from(ANEW_AFTER).unwrap() + 4096];
    journal.pending = [&lots[..], b"\n"].concat();
    journal.keep_now(&mut session, 40);
    session.gap(gap(50));
    journal.keep_now(&mut session, 60);
    drop(journal);
    let left = Left::read(&dir).unwrap();
    assert_eq!((left.number, left.done_ns, left.entries.len()), (1, 60, 3));
    assert!(!dir.path(&named(0)).exists());
}
