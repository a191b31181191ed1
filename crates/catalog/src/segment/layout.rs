//! Where everything in a segment is: its last block.

use crate::block::{self, BLOCK};
use crate::table::Shape;

const MAGIC: [u8; 8] = *b"NEPHSEG\n";
/// The format. Raised whenever a reader of the old one would misread the new one.
pub(crate) const VERSION: u32 = 1;
/// The place that goes into the trailer's check; no table has this tag.
const PLACE: u64 = 0xff << 56;

/// The tables, in the order of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Pages,
    Windows,
    Digests,
    Objects,
    Placements,
    Sources,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Pages,
        Self::Windows,
        Self::Digests,
        Self::Objects,
        Self::Placements,
        Self::Sources,
    ];

    /// An empty table's shape for about `expected` records.
    pub(crate) fn shape(self, expected: u64) -> Shape {
        let (tag, record, key) = match self {
            Self::Pages => (1, 48, 32),
            Self::Windows => (2, 18, 8),
            Self::Digests => (3, 36, 32),
            Self::Objects => (4, 20, 0),
            Self::Placements => (5, 24, 8),
            Self::Sources => (6, 12, 0),
        };
        Shape::new(tag, record, key, expected)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pages => "page table",
            Self::Windows => "window table",
            Self::Digests => "digest table",
            Self::Objects => "object table",
            Self::Placements => "placement table",
            Self::Sources => "source table",
        }
    }
}

/// Bytes that several tables left out or hold, for `info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pages_left_out: u64,
    pub(crate) windows_left_out: u64,
    pub(crate) placements: u64,
    pub(crate) placements_left_out: u64,
}

/// The trailer, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// First object.
    pub(crate) base: u32,
    /// Bytes of the heap, which starts at 0.
    pub(crate) heap: u64,
    /// Bytes of the names, which follow it.
    pub(crate) names: u64,
    /// The tables, which follow one another.
    pub(crate) shapes: [Shape; 6],
    pub(crate) counts: Counts,
}

/// Why there is no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bad {
    Damaged,
    OtherVersion(u32),
}

impl Layout {
    /// Byte offset of a table, if the numbers do not overflow.
    pub(crate) fn start(&self, kind: Kind) -> Option<u64> {
        let mut at = self.heap.checked_add(self.names)?;
        for (other, shape) in Kind::ALL.iter().zip(&self.shapes) {
            if *other == kind {
                return Some(at);
            }
            at = at.checked_add(shape.blocks().checked_mul(BLOCK as u64)?)?;
        }
        None
    }

    /// The file's length, if the numbers do not overflow.
    pub(crate) fn file_len(&self) -> Option<u64> {
        let last = self.shapes.last()?.blocks().checked_mul(BLOCK as u64)?;
        self.start(Kind::Sources)?
            .checked_add(last)?
            .checked_add(BLOCK as u64)
    }

    pub(crate) fn seal(&self) -> [u8; BLOCK] {
        let mut out = Vec::with_capacity(BLOCK);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.base.to_le_bytes());
        let c = self.counts;
        for number in [
            self.heap,
            self.names,
            c.pages_left_out,
            c.windows_left_out,
            c.placements,
            c.placements_left_out,
        ] {
            out.extend(number.to_le_bytes());
        }
        for shape in &self.shapes {
            out.push(shape.bits);
            out.extend(shape.records.to_le_bytes());
        }
        block::seal(&out, PLACE)
    }

    pub(crate) fn open(bytes: &[u8]) -> Result<Self, Bad> {
        let payload = block::open(bytes, PLACE).ok_or(Bad::Damaged)?;
        let mut at = Cursor(&payload);
        if at.take::<8>()? != MAGIC {
            return Err(Bad::Damaged);
        }
        let version = u32::from_le_bytes(at.take()?);
        if version != VERSION {
            return Err(Bad::OtherVersion(version));
        }
        let base = u32::from_le_bytes(at.take()?);
        let (heap, names) = (at.number()?, at.number()?);
        let counts = Counts {
            pages_left_out: at.number()?,
            windows_left_out: at.number()?,
            placements: at.number()?,
            placements_left_out: at.number()?,
        };
        let mut shapes = Kind::ALL.map(|kind| kind.shape(0));
        for shape in &mut shapes {
            [shape.bits] = at.take()?;
            shape.records = at.number()?;
            if !shape.is_sound() {
                return Err(Bad::Damaged);
            }
        }
        Ok(Self {
            base,
            heap,
            names,
            shapes,
            counts,
        })
    }
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Bad::Damaged)?;
        self.0 = rest;
        Ok(*head)
    }

    fn number(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}
