//! The page: the unit in which code is captured and identified.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a page. Larger mappings are looked at in pieces of this size.
pub const PAGE_SIZE: usize = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The contents of one page, owned: a copy that the guest can no longer change.
#[derive(Clone, PartialEq, Eq)]
pub struct PageBytes(Box<[u8; PAGE_SIZE]>);

impl PageBytes {
    /// A page of zeros.
    #[must_use]
    pub fn zeroed() -> Self {
        Self(Box::new([0; PAGE_SIZE]))
    }

    /// A page from exactly [`PAGE_SIZE`] bytes; anything else is `None`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let array: &[u8; PAGE_SIZE] = bytes.try_into().ok()?;
        Some(Self(Box::new(*array)))
    }
}

impl std::ops::Deref for PageBytes {
    type Target = [u8; PAGE_SIZE];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::ops::DerefMut for PageBytes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for PageBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBytes({:02x?}…)", self.0.first_chunk::<16>())
    }
}

/// Names one code page in one generation for the length of a watch. A driver never gives the same number twice,
/// so a frame that is written and executed again has a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageId(pub u64);
