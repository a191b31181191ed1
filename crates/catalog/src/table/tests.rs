//! The table against its naive twin, a sorted vector.

use std::io::Write;

use super::*;
use crate::block::BLOCK;
use crate::map::Map;

fn digest(i: u32) -> [u8; 32] {
    *blake3::hash(&i.to_le_bytes()).as_bytes()
}

/// A table of `records` in a file of its own.
fn table(records: &[[u8; 36]], dir: &std::path::Path) -> (Table, std::path::PathBuf, Shape) {
    let path = dir.join("table");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let mut writer = TableWriter::new(&mut file, Shape::new(1, 36, 32, records.len() as u64));
    for record in records {
        writer.push(record).unwrap();
    }
    let shape = writer.finish().unwrap();
    file.flush().unwrap();
    drop(file);
    let table = Table::new(Map::open(&path).unwrap(), 0, shape, "table", "test").unwrap();
    (table, path, shape)
}

/// `n` keys, every seventh of them three times.
fn records(n: u32) -> Vec<[u8; 36]> {
    let mut all = Vec::new();
    for i in 0..n {
        for copy in 0..if i % 7 == 0 { 3 } else { 1 } {
            let mut record = [0; 36];
            record[..32].copy_from_slice(&digest(i));
            record[32..].copy_from_slice(&(i * 10 + copy).to_le_bytes());
            all.push(record);
        }
    }
    all.sort_unstable();
    all
}

#[test]
fn a_look_up_finds_what_a_sorted_vector_holds() {
    for n in [0, 1, 13, 14, 15, 1000, 20_000] {
        let dir = tempfile::tempdir().unwrap();
        let all = records(n);
        let (table, ..) = table(&all, dir.path());
        for i in 0..n + 500 {
            let mut found = Vec::new();
            table
                .find(&digest(i), |record| found.push(record.to_vec()))
                .unwrap();
            let naive: Vec<_> = all
                .iter()
                .filter(|r| r[..32] == digest(i))
                .map(|r| r.to_vec())
                .collect();
            assert_eq!(found, naive, "{n} {i}");
            if n > 1000 && i > 300 {
                break;
            }
        }
        for (i, record) in all.iter().enumerate() {
            assert_eq!(&table.record(i as u64, <[u8]>::to_vec).unwrap(), record);
        }
        assert!(table.record(all.len() as u64, |_| ()).is_err());
    }
}

#[test]
fn no_flipped_byte_gives_a_wrong_answer() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(300);
    let (_, path, shape) = table(&all, dir.path());
    let good = std::fs::read(&path).unwrap();
    // The first bytes of blocks also say where to look.
    let heads = (0..good.len()).step_by(BLOCK);
    for at in (0..good.len()).step_by(37).chain(heads) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, bad).unwrap();
        let table = Table::new(Map::open(&path).unwrap(), 0, shape, "table", "test").unwrap();
        let errors = (0..table.blocks()).filter(|&n| table.block(n).is_err()).count();
        assert_eq!(errors, 1, "byte {at}");
        for i in 0..300 {
            let mut found = 0;
            if table.find(&digest(i), |_| found += 1).is_ok() {
                assert_eq!(found, if i % 7 == 0 { 3 } else { 1 });
            }
        }
    }
}

#[test]
fn a_table_that_the_file_is_too_short_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path, shape) = table(&records(300), dir.path());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(BLOCK as u64 * (shape.blocks() - 1)).unwrap();
    assert!(Table::new(Map::open(&path).unwrap(), 0, shape, "table", "test").is_none());
}
