//! From guest-physical addresses to host addresses and back.

use nephoscope_guest::Gpa;

use super::flat_view::{FlatRange, MemoryKind};
use super::ram_block::RamBlock;
use super::{Hva, RamMapError};

/// A range of guest memory that is contiguous on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its first guest-physical address.
    pub gpa: Gpa,
    /// Its first host address.
    pub hva: Hva,
    /// Its length.
    pub size_bytes: u64,
    /// Whether the guest can write there.
    pub kind: MemoryKind,
}

/// Why a range of the flat view is not in the map.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WhyLeftOut {
    /// No block has the region's name.
    NoBlock,
    /// Several blocks could have it, and QEMU was not or could not be asked.
    SeveralBlocks,
    /// It reaches over the end of its block.
    BeyondBlock,
    /// QEMU says that it is elsewhere: the guest changed its memory map meanwhile.
    Moved,
}

/// A range of guest memory that cannot be read with this map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// The range.
    pub range: FlatRange,
    /// Why.
    pub why: WhyLeftOut,
}

/// A part of the host's address space, and the lowest guest-physical address that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct HostPiece {
    hva: Hva,
    size_bytes: u64,
    gpa: Gpa,
}

/// Guest-physical ranges and the host ranges behind them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RamMap {
    /// By `gpa`, disjoint.
    segments: Vec<Segment>,
    /// By `hva`, disjoint.
    pieces: Vec<HostPiece>,
    blocks: Vec<RamBlock>,
    left_out: Vec<LeftOut>,
}

impl RamMap {
    /// The map that the outputs of `info ramblock` and `info mtree -f` describe, by names alone. A range whose block
    /// is not sure is left out; [`RamMap::read`](Self::read) asks QEMU about it.
    ///
    /// # Errors
    /// [`RamMapError`] if either text has not the form that QEMU gives it.
    pub fn from_monitor_text(ramblock: &str, mtree: &str) -> Result<Self, RamMapError> {
        Self::build(
            RamBlock::parse_all(ramblock)?,
            FlatRange::parse_all(mtree)?,
            |_, named| named,
        )
    }

    /// The map of `ranges` in `blocks`; `settle` has the last word on where a range starts, after what its name
    /// says.
    pub(super) fn build(
        blocks: Vec<RamBlock>,
        ranges: Vec<FlatRange>,
        mut settle: impl FnMut(&FlatRange, Result<Hva, WhyLeftOut>) -> Result<Hva, WhyLeftOut>,
    ) -> Result<Self, RamMapError> {
        let mut map = Self {
            blocks,
            ..Self::default()
        };
        for range in ranges {
            let place = settle(&range, map.named(&range)).and_then(|hva| map.checked(&range, hva));
            match place {
                Ok(segment) => map.segments.push(segment),
                Err(why) => map.left_out.push(LeftOut { range, why }),
            }
        }
        map.finished()
    }

    /// The map of these segments, whoever knows them.
    pub(crate) fn of(segments: Vec<Segment>) -> Result<Self, RamMapError> {
        let map = Self {
            segments,
            ..Self::default()
        };
        map.finished()
    }

    fn finished(mut self) -> Result<Self, RamMapError> {
        self.segments.sort_by_key(|segment| segment.gpa);
        let overlap = |pair: &[Segment]| matches!(pair, [a, b] if b.gpa.0 - a.gpa.0 < a.size_bytes);
        if self.segments.windows(2).any(overlap) {
            return Err(RamMapError::Overlap);
        }
        self.pieces = pieces(&self.segments);
        Ok(self)
    }

    /// The host address of the byte at `gpa`.
    #[must_use]
    pub fn hva_of(&self, gpa: Gpa) -> Option<Hva> {
        let segment = self.segment_of(gpa)?;
        Some(Hva(segment.hva.0 + (gpa.0 - segment.gpa.0)))
    }

    /// The guest-physical address of the byte at `hva`: the lowest, if there are several.
    #[must_use]
    pub fn gpa_of(&self, hva: Hva) -> Option<Gpa> {
        let piece = self.pieces.get(
            self.pieces
                .partition_point(|piece| piece.hva <= hva)
                .checked_sub(1)?,
        )?;
        let offset = hva.0 - piece.hva.0;
        (offset < piece.size_bytes).then(|| Gpa(piece.gpa.0 + offset))
    }

    /// Every guest-physical address of the byte at `hva`, ascending.
    pub fn gpas_of(&self, hva: Hva) -> impl Iterator<Item = Gpa> {
        self.segments.iter().filter_map(move |segment| {
            let offset = hva.0.checked_sub(segment.hva.0)?;
            (offset < segment.size_bytes).then(|| Gpa(segment.gpa.0 + offset))
        })
    }

    /// The block that holds the byte at `hva`, and where in it: a name for a frame also while the guest has it
    /// mapped nowhere, as RAM under a ROM.
    #[must_use]
    pub fn block_of(&self, hva: Hva) -> Option<(&RamBlock, u64)> {
        self.blocks.iter().find_map(|block| {
            let offset = hva.0.checked_sub(block.hva.0)?;
            (offset < block.used_bytes).then_some((block, offset))
        })
    }

    /// The segment that holds the byte at `gpa`.
    #[must_use]
    pub fn segment_of(&self, gpa: Gpa) -> Option<&Segment> {
        let at = self
            .segments
            .partition_point(|segment| segment.gpa <= gpa)
            .checked_sub(1)?;
        self.segments
            .get(at)
            .filter(|segment| gpa.0 - segment.gpa.0 < segment.size_bytes)
    }

    /// All segments, by guest-physical address.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All blocks of guest memory that QEMU has, also those that the guest does not see.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// The ranges of guest memory that this map cannot place.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Where a range starts, by its region's name.
    fn named(&self, range: &FlatRange) -> Result<Hva, WhyLeftOut> {
        let mut fitting = self.blocks.iter().filter(|block| block.may_hold(&range.region));
        match (fitting.next(), fitting.next()) {
            (Some(block), None) => block
                .hva
                .0
                .checked_add(range.offset_bytes)
                .map(Hva)
                .ok_or(WhyLeftOut::BeyondBlock),
            (None, _) => Err(WhyLeftOut::NoBlock),
            (Some(_), Some(_)) => Err(WhyLeftOut::SeveralBlocks),
        }
    }

    /// The segment of a range that starts at `hva`, if all of it lies in one block.
    fn checked(&self, range: &FlatRange, hva: Hva) -> Result<Segment, WhyLeftOut> {
        let (block, offset) = self.block_of(hva).ok_or(WhyLeftOut::BeyondBlock)?;
        let left = block.used_bytes - offset;
        if range.size_bytes > left || range.gpa.0.checked_add(range.size_bytes - 1).is_none() {
            return Err(WhyLeftOut::BeyondBlock);
        }
        Ok(Segment {
            gpa: range.gpa,
            hva,
            size_bytes: range.size_bytes,
            kind: range.kind,
        })
    }
}

/// Cuts the host ranges of `segments`, which may overlap, where any of them starts or ends.
fn pieces(segments: &[Segment]) -> Vec<HostPiece> {
    let end = |segment: &Segment| segment.hva.0 + segment.size_bytes;
    let mut cuts: Vec<u64> = segments
        .iter()
        .flat_map(|segment| [segment.hva.0, end(segment)])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces = Vec::new();
    for (&from, &to) in cuts.iter().zip(cuts.iter().skip(1)) {
        // Segments ascend by GPA, so that the first one found is the lowest.
        if let Some(segment) = segments
            .iter()
            .find(|segment| segment.hva.0 <= from && to <= end(segment))
        {
            let gpa = Gpa(segment.gpa.0 + (from - segment.hva.0));
            pieces.push(HostPiece {
                hva: Hva(from),
                size_bytes: to - from,
                gpa,
            });
        }
    }
    pieces
}
