//! A linked image: its sections by address, and the fields in it that move.

use super::bytes;
use crate::site::{Fix, Form, Target};

/// One section that is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) va: u64,
    pub(crate) execute: bool,
    /// The bytes as the file has them (a module's relocations unapplied): what recipes are made of.
    pub(crate) raw: Vec<u8>,
    /// The same with every relocation applied for the link addresses: what tables are read from. `None`: as `raw`.
    pub(crate) linked: Option<Vec<u8>>,
}

impl Section {
    fn end(&self) -> u64 {
        self.va.saturating_add(bytes::wide(self.raw.len()))
    }

    fn linked(&self) -> &[u8] {
        self.linked.as_deref().unwrap_or(&self.raw)
    }
}

/// A field that moves with something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Moving {
    pub(crate) va: u64,
    pub(crate) form: Form,
    pub(crate) to: Target,
    pub(crate) addend: i64,
}

/// Sections and moving fields, both sorted by address.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) sections: Vec<Section>,
    pub(crate) moving: Vec<Moving>,
}

impl Image {
    pub(crate) fn new(mut sections: Vec<Section>, mut moving: Vec<Moving>) -> Self {
        sections.sort_by_key(|s| s.va);
        moving.sort_by_key(|m| m.va);
        Self { sections, moving }
    }

    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    fn holding(&self, va: u64) -> Option<&Section> {
        let after = self.sections.partition_point(|s| s.va <= va);
        // Empty sections share an address with their neighbour.
        self.sections
            .get(..after)?
            .iter()
            .rev()
            .take(8)
            .find(|s| va < s.end())
    }

    /// Whether an executable section holds the address.
    pub(crate) fn executes(&self, va: u64) -> bool {
        self.holding(va).is_some_and(|s| s.execute)
    }

    /// `len` linked bytes.
    pub(crate) fn linked(&self, va: u64, len: usize) -> Option<&[u8]> {
        let section = self.holding(va)?;
        let at = bytes::index(va.checked_sub(section.va)?);
        section.linked().get(at..at.checked_add(len)?)
    }

    /// Linked bytes, at most `len`, fewer at the section's end.
    pub(crate) fn linked_up_to(&self, va: u64, len: usize) -> &[u8] {
        let Some(section) = self.holding(va) else {
            return &[];
        };
        let at = bytes::index(va.saturating_sub(section.va));
        let all = section.linked();
        all.get(at..at.saturating_add(len).min(all.len())).unwrap_or(&[])
    }

    /// `len` bytes as in the file.
    pub(crate) fn raw(&self, va: u64, len: usize) -> Option<&[u8]> {
        let section = self.holding(va)?;
        let at = bytes::index(va.checked_sub(section.va)?);
        section.raw.get(at..at.checked_add(len)?)
    }

    /// The moving fields that begin in `[va, va + len)`.
    pub(crate) fn moving_in(&self, va: u64, len: usize) -> &[Moving] {
        let from = self.moving.partition_point(|m| m.va < va);
        let to = self
            .moving
            .partition_point(|m| m.va < va.saturating_add(bytes::wide(len)));
        self.moving.get(from..to).unwrap_or(&[])
    }

    /// The same as fix-ups of a value at `va`.
    pub(crate) fn fixes_in(&self, va: u64, len: usize) -> Vec<Fix> {
        self.moving_in(va, len)
            .iter()
            .filter_map(|m| {
                let at = u16::try_from(m.va.checked_sub(va)?).ok()?;
                Some(Fix {
                    at,
                    form: m.form,
                    to: m.to,
                    addend: m.addend,
                })
            })
            .collect()
    }

    /// The table of a section, or of the range between two symbols, as (address, bytes).
    pub(crate) fn table(&self, name: &str, range: Option<(u64, u64)>) -> Option<(u64, &[u8])> {
        if let Some(section) = self.section(name) {
            return Some((section.va, section.linked()));
        }
        let (start, stop) = range?;
        let len = bytes::index(stop.checked_sub(start)?);
        Some((start, self.linked(start, len)?))
    }

    /// The addresses that a table of self-relative 32-bit numbers names.
    pub(crate) fn relative_table(&self, name: &str, range: Option<(u64, u64)>) -> Vec<u64> {
        let Some((va, table)) = self.table(name, range) else {
            return Vec::new();
        };
        let mut entry = va;
        let mut found = Vec::with_capacity(table.len() / 4);
        for field in table.chunks_exact(4) {
            if let Some(offset) = bytes::i32_at(field, 0).filter(|o| *o != 0) {
                found.push(entry.wrapping_add_signed(i64::from(offset)));
            }
            entry = entry.wrapping_add(4);
        }
        found
    }
}
