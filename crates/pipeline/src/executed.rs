//! Firmware and boot code, judged by the bytes that executed.
//!
//! Such code lies at odd addresses, next to data that changes: whole pages mean nothing. What executed must equal the
//! part's bytes at one displacement, up to fields that moving the code changes.

use nephoscope_catalog::{Catalog, ReadError};
use nephoscope_inventory::Identified;
use nephoscope_recipe::Placement;

use crate::identify::Question;
use crate::nearest::Candidate;

/// Identifies a page by its executed bytes, if every one of them is explained.
pub(crate) fn identify(
    catalog: &Catalog,
    question: &Question<'_>,
    candidates: &[Candidate],
) -> Result<Option<Identified>, ReadError> {
    let _ = (catalog, question, candidates);
    let _ = Placement::Anywhere;
    Ok(None)
}
