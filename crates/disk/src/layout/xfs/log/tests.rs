//! Logs written here, record by record.

use std::io;

use super::super::superblock::tests::bytes;
use super::*;

struct Disk(Vec<u8>);

impl Blocks for Disk {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = index(at);
        let found = self.0.get(at..at + into.len());
        into.copy_from_slice(found.ok_or_else(|| io::Error::other("beyond the disk"))?);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A log of eight blocks, from the second block on.
fn superblock() -> Superblock {
    let mut of = Superblock::parse(&bytes(|_| ()), 1 << 30).unwrap();
    (of.log_block, of.log_blocks) = (1, 8);
    of
}

const LOG: usize = 4096;
const BASICS: usize = 64;

fn operation(id: u32, flags: u8, region: &[u8]) -> Vec<u8> {
    let len = u32::try_from(region.len()).unwrap();
    [
        &id.to_be_bytes()[..],
        &len.to_be_bytes(),
        &[0x69, flags, 0, 0],
        region,
    ]
    .concat()
}

/// Writes a record: where it begins in the log, and in which turn.
fn record(disk: &mut Disk, of: &Superblock, at: usize, turn: u32, operations: &[Vec<u8>]) -> usize {
    let mut data = operations.concat();
    let len = u32::try_from(data.len()).unwrap();
    data.resize(data.len().next_multiple_of(512), 0);
    let mut header = vec![0; 512];
    let lsn = u64::from(turn) << 32 | at as u64;
    for (place, word) in [
        (0, MAGIC),
        (4, turn),
        (8, 2),
        (12, len),
        (40, u32::try_from(operations.len()).unwrap()),
        (300, LITTLE),
        (320, 32 << 10),
    ] {
        header[place..place + 4].copy_from_slice(&word.to_be_bytes());
    }
    header[16..24].copy_from_slice(&lsn.to_be_bytes());
    header[304..320].copy_from_slice(&of.uuid);
    for (number, block) in data.chunks_exact_mut(512).enumerate() {
        header[44 + 4 * number..][..4].copy_from_slice(&block[..4]);
        let over = u32::from(at + 1 + number >= BASICS);
        block[..4].copy_from_slice(&(turn + over).to_be_bytes());
    }
    let blocks = 1 + data.len() / 512;
    for (number, block) in header.chunks_exact(512).chain(data.chunks_exact(512)).enumerate() {
        let place = LOG + 512 * ((at + number) % BASICS);
        disk.0[place..place + 512].copy_from_slice(block);
    }
    at + blocks
}

/// A transaction with one item: an inode's core is this.
fn transaction(id: u32, core: &[u8]) -> Vec<Vec<u8>> {
    let mut about = vec![0; 56];
    about[..2].copy_from_slice(&kind::INODE.to_le_bytes());
    about[2] = 2;
    about[16] = 131;
    vec![
        operation(id, flag::START, &[]),
        operation(id, 0, &[0; 16]),
        operation(id, 0, &about),
        operation(id, 0, core),
        operation(id, flag::COMMIT, &[]),
    ]
}

fn told(log: &mut Log, of: &Superblock, disk: &Disk, at: usize) -> Vec<Vec<u8>> {
    let at = LOG + 512 * at;
    let written = log.written(at as u64, &disk.0[at..at + 512], of, disk);
    let items = written.into_iter().flat_map(|transaction| transaction.items);
    items
        .map(|item| match item {
            Item::Inode(131, core, None) => core,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_transaction_counts_when_it_is_whole_and_goes_on_over_records_and_the_end() {
    let of = superblock();
    let mut disk = Disk(vec![0; LOG + BASICS * 512]);
    let first = record(&mut disk, &of, 0, 1, &[operation(9, 0x20, &[0; 8])]);
    let mut log = Log::open(&of, &disk).unwrap();
    assert_eq!((log.head, log.turn), (first as u64, 1));
    // Half of a region, and the other half with the commit.
    let [start, header, about, core, commit] = transaction(5, &[7; 176]).try_into().unwrap();
    let (left, right) = (
        operation(5, flag::CONTINUE, &[7; 100]),
        operation(5, flag::CONTINUED, &[7; 76]),
    );
    let next = record(&mut disk, &of, first, 1, &[start, header, about, left]);
    assert!(told(&mut log, &of, &disk, first).is_empty());
    let end = record(&mut disk, &of, next, 1, &[right, commit.clone()]);
    assert_eq!(told(&mut log, &of, &disk, next), [vec![7; 176]]);
    let _ = core;
    // One that is longer than what is left of the log: it goes on at its beginning, in the next turn.
    let filler = vec![operation(1, 0, &vec![0; (BASICS - end - 3) * 512 - 12])];
    let last = record(&mut disk, &of, end, 1, &filler);
    assert!(told(&mut log, &of, &disk, end).is_empty());
    assert_eq!(last, BASICS - 2);
    let mut big = transaction(6, &[8; 176]);
    big.insert(1, operation(6, 0, &[0; 1000]));
    record(&mut disk, &of, last, 1, &big);
    // The region in front is what a transaction begins with, and the header after it an item of no kind.
    assert_eq!(told(&mut log, &of, &disk, last).len(), 1);
    assert_eq!((log.turn, log.missed()), (2, 0));
}

#[test]
fn a_record_that_is_not_whole_is_waited_for() {
    let of = superblock();
    let mut disk = Disk(vec![0; LOG + BASICS * 512]);
    let first = record(&mut disk, &of, 0, 1, &[operation(9, 0x20, &[0; 8])]);
    let mut log = Log::open(&of, &disk).unwrap();
    record(&mut disk, &of, first, 1, &transaction(5, &[7; 1200]));
    let torn = LOG + 512 * (first + 2);
    let there = disk.0[torn..torn + 512].to_vec();
    disk.0[torn..torn + 512].fill(0);
    assert!(told(&mut log, &of, &disk, first).is_empty());
    disk.0[torn..torn + 512].copy_from_slice(&there);
    assert_eq!(told(&mut log, &of, &disk, first).len(), 1);
}

#[test]
fn who_recovers_a_log_goes_on_elsewhere_and_that_is_counted() {
    let of = superblock();
    let mut disk = Disk(vec![0; LOG + BASICS * 512]);
    let first = record(&mut disk, &of, 0, 1, &transaction(4, &[1; 176]));
    let mut log = Log::open(&of, &disk).unwrap();
    let second = record(&mut disk, &of, first, 1, &transaction(5, &[2; 176]));
    assert_eq!(told(&mut log, &of, &disk, first).len(), 1);
    record(&mut disk, &of, first, 1, &transaction(6, &[3; 176]));
    assert_eq!(told(&mut log, &of, &disk, first), [vec![3; 176]]);
    assert_eq!((log.head, log.missed()), (second as u64, 1));
}

#[test]
fn max_record_bounds_what_is_read_at_once() {
    let of = superblock();
    let mut disk = Disk(vec![0; LOG + BASICS * 512]);
    record(&mut disk, &of, 0, 1, &transaction(4, &[1; 176]));
    let log = |disk: &Disk| {
        let mut log = Log::open(&of, disk).unwrap();
        log.head = 0;
        log.record(&of, disk).is_some()
    };
    assert!(log(&disk));
    for place in [12, 320] {
        let before = disk.0.clone();
        disk.0[LOG + place..][..4].copy_from_slice(&(MAX_RECORD + 512).to_be_bytes());
        assert!(!log(&disk));
        disk.0 = before;
    }
}

fn empty() -> Log {
    Log {
        at: 0,
        basics: 64,
        head: 0,
        turn: 1,
        begun: HashMap::new(),
        ahead: 0,
        was_right: false,
        missed: 0,
    }
}

#[test]
fn max_begun_transactions_are_kept_and_the_oldest_go() {
    let mut log = empty();
    for id in 0..=u32::try_from(MAX_BEGUN).unwrap() {
        log.begin(id, u64::from(id) + 1);
    }
    assert_eq!((log.begun.len(), log.missed), (MAX_BEGUN, 1));
    assert!(!log.begun.contains_key(&0));
}

#[test]
fn max_begun_bytes_bounds_what_transactions_have_together() {
    let mut log = empty();
    log.begin(1, 1);
    log.begin(2, 2);
    if let Some(begun) = log.begun.get_mut(&1) {
        begun.bytes = MAX_BEGUN_BYTES - 10;
    }
    log.region(2, &[0; 11], false);
    assert_eq!((log.begun.contains_key(&2), log.missed), (false, 1));
    log.region(1, &[0; 10], false);
    assert!(log.begun.contains_key(&1));
}

#[test]
fn a_buffer_has_what_its_bits_say() {
    let mut about = vec![0; 28];
    about[..2].copy_from_slice(&kind::BUFFER.to_le_bytes());
    about[6] = 8;
    about[8] = 16;
    about[16] = 2;
    // Pieces 1 and 2, and 33.
    about[20] = 6;
    about[24] = 2;
    let found = buffer(&about, vec![vec![1; 256], vec![2; 128], vec![3; 128]]);
    let patch = |at, bytes| Patch { at, bytes };
    let expected = vec![
        patch(16 * 512 + 128, vec![1; 256]),
        patch(16 * 512 + 33 * 128, vec![2; 128]),
    ];
    assert_eq!(found, Some(Item::Written(expected)));
    about[4] = 2;
    assert_eq!(
        buffer(&about, Vec::new()),
        Some(Item::Cancelled(16 * 512, 8 * 512))
    );
}

#[test]
fn what_fills_a_record_up_is_no_operation() {
    let of = superblock();
    let mut disk = Disk(vec![0; LOG + BASICS * 512]);
    let first = record(&mut disk, &of, 0, 1, &[operation(9, 0x20, &[0; 8])]);
    let mut log = Log::open(&of, &disk).unwrap();
    // Linux fills up with what its memory had: here a transaction, and the end of one that nobody began.
    let mut last = operation(5, flag::COMMIT, &[]);
    last.extend(transaction(6, &[8; 16]).concat());
    last.extend(operation(0, flag::COMMIT, &[]));
    let mut operations = transaction(5, &[7; 176]);
    operations.pop();
    operations.push(last);
    record(&mut disk, &of, first, 1, &operations);
    assert_eq!(told(&mut log, &of, &disk, first), [vec![7; 176]]);
    assert_eq!(log.missed(), 0);
}
