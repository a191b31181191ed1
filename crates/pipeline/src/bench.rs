//! Identification alone, for `cargo xtask bench identify`. Not part of the API.

use std::sync::Arc;

use nephoscope_catalog::{Catalog, ReadError};
use nephoscope_guest::{Gva, PageBytes, Privilege};
use nephoscope_inventory::{Unknown, Verdict};

use crate::identify::{Identifier, Question};

/// What a session asks, without what it records of the answer.
#[derive(Debug)]
pub struct Identify(Identifier);

impl Identify {
    /// With this catalog, and nothing remembered.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self(Identifier::new(catalog))
    }

    /// Whether a user page is identified.
    ///
    /// # Errors
    /// If the catalog is damaged where it was asked.
    pub fn is_known(&mut self, bytes: &PageBytes) -> Result<bool, ReadError> {
        let answer = self.0.ask(&Question {
            bytes,
            digest: *blake3::hash(&bytes[..]).as_bytes(),
            va: Gva(0x40_0000),
            paging: true,
            privilege: Privilege::User,
            executed: &[(0, 16)],
            neighbours: &[],
            unknown: Unknown::default(),
        })?;
        Ok(matches!(*answer.verdict, Verdict::Identified(_)))
    }
}
