//! Records of the tables, to bytes and back.

use nephoscope_recipe::ObjectKind;

use crate::model::{ObjectId, PageRef, WindowRef};

/// The object number that stands for "and so many more".
pub(crate) const MORE: u32 = u32::MAX;

/// A bijection of numbers that spreads them evenly, since tables want keys that look random (the finaliser of
/// MurmurHash3, by Austin Appleby, in the public domain).
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Takes fixed-size pieces off a record. A record that is too short gives zeros: the tables' shapes make that
/// impossible, and the code free of a second kind of error.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            return [0; N];
        };
        self.0 = rest;
        *head
    }
}

/// Puts pieces together to a record of `N` bytes.
fn join<const N: usize>(pieces: &[&[u8]]) -> [u8; N] {
    let mut record = [0u8; N];
    for (to, from) in record.iter_mut().zip(pieces.iter().copied().flatten()) {
        *to = *from;
    }
    record
}

pub(crate) type PageRecord = [u8; 48];

pub(crate) fn page(digest: &[u8; 32], page: PageRef) -> PageRecord {
    let va = (page.va & !1) | u64::from(page.execute);
    join(&[
        digest,
        &page.object.0.to_be_bytes(),
        &page.number.to_be_bytes(),
        &va.to_be_bytes(),
    ])
}

pub(crate) fn page_more(digest: &[u8], left_out: u64) -> PageRecord {
    join(&[digest, &MORE.to_be_bytes(), &[0; 4], &left_out.to_be_bytes()])
}

/// `Err` is how many more there were.
pub(crate) fn read_page(record: &[u8]) -> Result<PageRef, u64> {
    let mut fields = Fields(record);
    let _: [u8; 32] = fields.take();
    let object = u32::from_be_bytes(fields.take());
    let number = u32::from_be_bytes(fields.take());
    let va = u64::from_be_bytes(fields.take());
    if object == MORE {
        return Err(va);
    }
    Ok(PageRef {
        object: ObjectId(object),
        number,
        va: va & !1,
        execute: va & 1 == 1,
    })
}

pub(crate) type WindowRecord = [u8; 18];

pub(crate) fn window(hash: u64, at: WindowRef) -> WindowRecord {
    let key = mix(hash).to_be_bytes();
    join(&[
        &key,
        &at.object.0.to_be_bytes(),
        &at.offset.to_be_bytes(),
        &at.part.to_be_bytes(),
    ])
}

pub(crate) fn window_more(key: &[u8], left_out: u64) -> WindowRecord {
    let left_out = u32::try_from(left_out).unwrap_or(u32::MAX);
    join(&[key, &MORE.to_be_bytes(), &left_out.to_be_bytes()])
}

/// `Err` is how many more there were.
pub(crate) fn read_window(record: &[u8]) -> Result<WindowRef, u64> {
    let mut fields = Fields(record);
    let _: [u8; 8] = fields.take();
    let object = u32::from_be_bytes(fields.take());
    let offset = u32::from_be_bytes(fields.take());
    let part = u16::from_be_bytes(fields.take());
    if object == MORE {
        return Err(u64::from(offset));
    }
    Ok(WindowRef {
        object: ObjectId(object),
        part,
        offset,
    })
}

pub(crate) fn digest(digest: &[u8; 32], object: u32) -> [u8; 36] {
    join(&[digest, &object.to_be_bytes()])
}

pub(crate) fn read_digest(record: &[u8]) -> ([u8; 32], u32) {
    let mut fields = Fields(record);
    (fields.take(), u32::from_be_bytes(fields.take()))
}

/// Where an object's extent is, and what kind of object it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ObjectAt {
    pub(crate) at: u64,
    pub(crate) len: u32,
    pub(crate) record: u32,
    pub(crate) kind: u32,
}

pub(crate) fn object(at: ObjectAt) -> [u8; 20] {
    join(&[
        &at.at.to_le_bytes(),
        &at.len.to_le_bytes(),
        &at.record.to_le_bytes(),
        &at.kind.to_le_bytes(),
    ])
}

pub(crate) fn read_object(record: &[u8]) -> ObjectAt {
    let mut fields = Fields(record);
    ObjectAt {
        at: u64::from_le_bytes(fields.take()),
        len: u32::from_le_bytes(fields.take()),
        record: u32::from_le_bytes(fields.take()),
        kind: u32::from_le_bytes(fields.take()),
    }
}

/// A blob among the names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NameAt {
    pub(crate) at: u64,
    pub(crate) len: u32,
}

pub(crate) fn placements(object: u32, name: NameAt) -> [u8; 24] {
    let key = mix(u64::from(object)).to_be_bytes();
    join(&[
        &key,
        &object.to_be_bytes(),
        &name.at.to_le_bytes(),
        &name.len.to_le_bytes(),
    ])
}

pub(crate) fn read_placements(record: &[u8]) -> (u32, NameAt) {
    let mut fields = Fields(record);
    let _: [u8; 8] = fields.take();
    let object = u32::from_be_bytes(fields.take());
    (
        object,
        NameAt {
            at: u64::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
        },
    )
}

pub(crate) fn source(name: NameAt) -> [u8; 12] {
    join(&[&name.at.to_le_bytes(), &name.len.to_le_bytes()])
}

pub(crate) fn read_source(record: &[u8]) -> NameAt {
    let mut fields = Fields(record);
    NameAt {
        at: u64::from_le_bytes(fields.take()),
        len: u32::from_le_bytes(fields.take()),
    }
}

/// The number of a kind in the object table; new kinds go to the end.
pub(crate) const KINDS: [ObjectKind; 7] = [
    ObjectKind::Executable,
    ObjectKind::SharedObject,
    ObjectKind::Interpreter,
    ObjectKind::Kernel,
    ObjectKind::KernelModule,
    ObjectKind::Firmware,
    ObjectKind::Interpreted,
];

pub(crate) fn kind_number(kind: ObjectKind) -> u32 {
    KINDS
        .iter()
        .position(|k| *k == kind)
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(u32::MAX)
}
