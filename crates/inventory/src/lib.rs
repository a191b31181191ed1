//! Who runs what in one VM: address spaces, programs, modules and their verdicts.
//!
//! The inventory takes events with the verdicts of their pages and says what changed. It keeps what ended, because a
//! report is about the whole watch. Nothing in it decides what a page is.

mod coverage;
mod early;
mod file_report;
mod files;
#[cfg(test)]
mod fixture;
mod installed;
mod inventory;
mod kept;
mod modules;
mod page;
mod pages;
mod ranges;
mod report;
mod space;
mod summary;
mod verdict;

pub use coverage::{CoverageInterval, CoverageLog};
pub use file_report::{
    FileCoverage, FileDifferenceReport, FileReport, LineReport, NearestFileReport, ReaderReport,
};
pub use files::{
    FileId, FileVerdict, Files, FollowedFile, How, LeftOut, LineChanged, LinesChanged, ModifiedFile,
    PieceRead, ReadPiece, Reader,
};
pub use installed::Installed;
pub use inventory::{Change, Inventory};
pub use kept::{KeptSpace, Record, Totals};
pub use modules::{Module, ObjectFacts, Use, resolve};
pub use page::PageRecord;
pub use report::{
    CandidateReport, CoverageReport, DifferenceReport, KnownSpaces, ModifiedReport, ModuleReport, Names,
    PageCounts, PagesReport, ProgramReport, Report, SCHEMA, SpaceReport, SummaryReport, UnknownReport,
    UsedReport, VmReport, build, modules_of, program_path,
};
pub use space::{AddressSpace, MappedCode, SpaceId, SpaceKind};
pub use summary::MAX_ENDED;
pub use verdict::{Difference, Identified, Modified, Place, Unknown, Verdict};
