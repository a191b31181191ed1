//! The three stores behind one trait.
#![allow(unsafe_code, reason = "heed maps a file")]

use std::path::Path;

use redb::ReadableDatabase;

use super::{key, value};

pub(crate) trait Store: Sized {
    const NAME: &'static str;
    /// Writes keys `0..keys`.
    fn build(dir: &Path, keys: u64);
    /// Adds keys `from..to` in one transaction.
    fn add(dir: &Path, from: u64, to: u64);
    fn open(dir: &Path) -> Result<Self, String>;
    fn get(&self, key: &[u8; 32]) -> Result<Option<[u8; 16]>, String>;
}

/// Keys `from..to` in order, as all three like them best.
fn sorted(from: u64, to: u64) -> Vec<([u8; 32], [u8; 16])> {
    let mut all: Vec<_> = (from..to).map(|i| (key(i), value(i))).collect();
    all.sort_unstable();
    all
}

fn say<E: std::fmt::Display>(e: E) -> String {
    e.to_string()
}

pub(crate) struct Lmdb {
    txn: heed::RoTxn<'static, heed::WithoutTls>,
    table: heed::Database<heed::types::Bytes, heed::types::Bytes>,
}

impl Lmdb {
    fn env(dir: &Path) -> Result<heed::Env<heed::WithoutTls>, String> {
        let mut options = heed::EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(16 << 30);
        // SAFETY: nobody else writes to the bench's own directory.
        unsafe { options.open(dir) }.map_err(say)
    }
}

impl Store for Lmdb {
    const NAME: &'static str = "lmdb";
    fn build(dir: &Path, keys: u64) {
        let env = Self::env(dir).unwrap();
        let mut txn = env.write_txn().unwrap();
        let table: heed::Database<heed::types::Bytes, heed::types::Bytes> =
            env.create_database(&mut txn, None).unwrap();
        for (k, v) in sorted(0, keys) {
            table
                .put_with_flags(&mut txn, heed::PutFlags::APPEND, &k, &v)
                .unwrap();
        }
        txn.commit().unwrap();
    }
    fn add(dir: &Path, from: u64, to: u64) {
        let env = Self::env(dir).unwrap();
        let mut txn = env.write_txn().unwrap();
        let table: heed::Database<heed::types::Bytes, heed::types::Bytes> =
            env.create_database(&mut txn, None).unwrap();
        for (k, v) in sorted(from, to) {
            table.put(&mut txn, &k, &v).unwrap();
        }
        txn.commit().unwrap();
    }
    fn open(dir: &Path) -> Result<Self, String> {
        let env = Self::env(dir)?;
        let txn = env.clone().static_read_txn().map_err(say)?;
        let table = env.open_database(&txn, None).map_err(say)?.ok_or("no table")?;
        Ok(Self { txn, table })
    }
    fn get(&self, key: &[u8; 32]) -> Result<Option<[u8; 16]>, String> {
        let found = self.table.get(&self.txn, key).map_err(say)?;
        found.map(|v| v.try_into().map_err(say)).transpose()
    }
}

const TABLE: redb::TableDefinition<[u8; 32], [u8; 16]> = redb::TableDefinition::new("pages");

pub(crate) struct Redb(
    redb::ReadOnlyTable<[u8; 32], [u8; 16]>,
    #[allow(dead_code, reason = "the table dies with its database")] redb::Database,
);

impl Store for Redb {
    const NAME: &'static str = "redb";
    fn build(dir: &Path, keys: u64) {
        Self::add(dir, 0, keys);
    }
    fn add(dir: &Path, from: u64, to: u64) {
        let db = redb::Database::create(dir.join("db")).unwrap();
        let txn = db.begin_write().unwrap();
        let mut table = txn.open_table(TABLE).unwrap();
        for (k, v) in sorted(from, to) {
            table.insert(k, v).unwrap();
        }
        drop(table);
        txn.commit().unwrap();
    }
    fn open(dir: &Path) -> Result<Self, String> {
        let db = redb::Builder::new()
            .set_cache_size(4 << 30)
            .open(dir.join("db"))
            .map_err(say)?;
        let txn = db.begin_read().map_err(say)?;
        Ok(Self(txn.open_table(TABLE).map_err(say)?, db))
    }
    fn get(&self, key: &[u8; 32]) -> Result<Option<[u8; 16]>, String> {
        Ok(self.0.get(key).map_err(say)?.map(|v| v.value()))
    }
}

/// This crate's table, as the catalog uses it.
pub(crate) struct Own(nephoscope_catalog::bench::Table);

impl Store for Own {
    const NAME: &'static str = "own";
    fn build(dir: &Path, keys: u64) {
        nephoscope_catalog::bench::Table::write(&dir.join("table"), &sorted(0, keys)).unwrap();
    }
    fn add(dir: &Path, from: u64, to: u64) {
        // Immutable: adding writes another file beside it and renames it into place.
        let _ = from;
        nephoscope_catalog::bench::Table::write(&dir.join("new"), &sorted(0, to)).unwrap();
        std::fs::rename(dir.join("new"), dir.join("table")).unwrap();
    }
    fn open(dir: &Path) -> Result<Self, String> {
        nephoscope_catalog::bench::Table::open(&dir.join("table"))
            .map(Self)
            .map_err(say)
    }
    fn get(&self, key: &[u8; 32]) -> Result<Option<[u8; 16]>, String> {
        self.0.get(key).map_err(say)
    }
}
