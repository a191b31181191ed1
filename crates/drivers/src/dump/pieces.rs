//! Which guest-physical ranges a file has, and where.

use nephoscope_guest::Gpa;

use super::DumpError;

/// The most ranges that are taken: it stops a file that lists them without end. QEMU writes one per block of RAM, some ten.
pub(super) const MAX_PIECES: usize = 64 << 10;

/// A range of guest memory in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) gpa: u64,
    /// Where it begins in the file.
    pub(super) at: u64,
    /// Bytes of it that the file has.
    pub(super) len: u64,
    /// Bytes after them that are zero and not in the file.
    pub(super) zeros: u64,
}

impl Piece {
    fn end(&self) -> Option<u64> {
        self.gpa.checked_add(self.len)?.checked_add(self.zeros)
    }
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pieces {
    /// By address, disjoint.
    all: Vec<Piece>,
}

impl Pieces {
    /// Checks and sorts them; `file_bytes` is the length of the file they are in.
    pub(super) fn new(mut all: Vec<Piece>, file_bytes: u64) -> Result<Self, DumpError> {
        all.retain(|piece| piece.len > 0 || piece.zeros > 0);
        if all.is_empty() {
            return Err(DumpError::Nothing);
        }
        for piece in &all {
            let end = piece.at.checked_add(piece.len);
            if end.is_none_or(|end| end > file_bytes) {
                return Err(DumpError::CutShort {
                    gpa: Gpa(piece.gpa),
                    at: piece.at,
                    len: piece.len,
                    file_bytes,
                });
            }
            if piece.end().is_none() {
                return Err(DumpError::Malformed {
                    what: "a range of memory that reaches over the end of all addresses",
                    at: piece.at,
                });
            }
        }
        let mut in_file = 0_u64;
        for piece in &all {
            // Whoever lists the same bytes again and again makes a small file a memory that nobody sees the end of.
            in_file = in_file.saturating_add(piece.len);
            if in_file > file_bytes {
                return Err(DumpError::Malformed {
                    what: "a range of memory whose bytes are another range's too",
                    at: piece.at,
                });
            }
        }
        all.sort_by_key(|piece| piece.gpa);
        let overlap = all
            .windows(2)
            .find(|pair| matches!(pair, [a, b] if a.end().is_none_or(|end| end > b.gpa)));
        if let Some([_, second]) = overlap {
            return Err(DumpError::Overlap { gpa: Gpa(second.gpa) });
        }
        Ok(Self { all })
    }

    /// The piece that has this byte.
    pub(super) fn of(&self, gpa: u64) -> Option<&Piece> {
        let after = self.all.partition_point(|piece| piece.gpa <= gpa);
        let piece = self.all.get(after.checked_sub(1)?)?;
        (gpa < piece.end()?).then_some(piece)
    }

    /// The next part of `[from, end)` that the file has bytes of: first address, and one past the last.
    pub(super) fn next_data(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let first = self
            .all
            .partition_point(|piece| piece.gpa.saturating_add(piece.len) <= from);
        let piece = self.all.get(first..)?.iter().find(|piece| piece.len > 0)?;
        let start = piece.gpa.max(from);
        (start < end).then(|| (start, piece.gpa.saturating_add(piece.len).min(end)))
    }

    /// First address and length of each.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (Gpa, u64)> {
        self.all
            .iter()
            .map(|piece| (Gpa(piece.gpa), piece.len + piece.zeros))
    }
}
