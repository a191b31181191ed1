//! Page-table isolation: one address space with two roots.
//!
//! Linux gives each address space 8 KiB of top-level tables, aligned to 8 KiB: the kernel runs on the first 4 KiB,
//! user code on the second. The user halves name the same tables; only the kernel's copy carries XD (Linux
//! `Documentation/arch/x86/pti.rst`). The shape alone is asked for here, so any guest that does the same is seen.

use std::ops::RangeInclusive;

use nephoscope_guest::{Gva, PAGE_SIZE, PhysicalMemory, Root};

use crate::fault::Fault;
use crate::translate::Walker;

/// The two roots of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IsolationPair {
    /// The root with everything in it: the lower of the two.
    pub kernel: Root,
    /// The root that user code runs on.
    pub user: Root,
}

/// The other root of the pair that `root` would be in.
#[must_use]
pub const fn isolation_partner(root: Root) -> Root {
    Root(root.0 ^ PAGE_SIZE as u64)
}

impl<M: PhysicalMemory> Walker<M> {
    /// The pair that `root` is in, if the tables say so: its entries for `user_half` and its neighbour's are equal
    /// apart from XD and the accessed bit, and at least one is present. Two empty halves prove nothing.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] if the table of `root` itself cannot be read; a neighbour that cannot be read is no
    /// neighbour.
    pub fn isolation_pair(
        &self,
        root: Root,
        user_half: &RangeInclusive<Gva>,
    ) -> Result<Option<IsolationPair>, Fault> {
        let partner = isolation_partner(root);
        let own = self.table_entries(root, user_half)?;
        let Ok(other) = self.table_entries(partner, user_half) else {
            return Ok(None);
        };
        let ignored = self.mode().facts().isolation_ignores;
        let equal = own.len() == other.len()
            && own
                .iter()
                .zip(&other)
                .all(|(a, b)| (a.raw ^ b.raw) & !ignored == 0);
        let some = own.iter().any(|entry| entry.present);
        let (kernel, user) = if root.0 < partner.0 {
            (root, partner)
        } else {
            (partner, root)
        };
        Ok((equal && some).then_some(IsolationPair { kernel, user }))
    }

    /// Whether no top-level entry of `range` is present: nothing is mapped there, as in the address space of a
    /// kernel thread or one that was torn down.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] if the table cannot be read.
    pub fn is_empty(&self, root: Root, range: &RangeInclusive<Gva>) -> Result<bool, Fault> {
        Ok(self
            .table_entries(root, range)?
            .iter()
            .all(|entry| !entry.present))
    }
}
