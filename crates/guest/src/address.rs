//! Addresses, one type per meaning, so that a virtual address never reaches code that expects a physical one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::page::{PAGE_SHIFT, PAGE_SIZE};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-virtual address, in bytes.
    Gva
}
address! {
    /// A guest-physical address, in bytes.
    Gpa
}
address! {
    /// A guest frame number: a guest-physical address divided by [`PAGE_SIZE`].
    Gfn
}
address! {
    /// A page-table root without PCID and flag bits (x86-64: CR3 bits 12 to 51), in bytes.
    ///
    /// It names an address space only together with the time at which it was loaded: guests reuse roots.
    Root
}

/// The index of a virtual CPU, from 0.
pub type VcpuId = u32;

impl Gva {
    /// The first byte of the page this address lies in.
    #[must_use]
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE as u64 - 1))
    }

    /// The offset of this address in its page, below [`PAGE_SIZE`].
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE as u64 - 1)
    }

    /// Whether bit 63 is set: the half that operating systems on x86-64 and AArch64 keep for their kernels.
    #[must_use]
    pub const fn is_high_half(self) -> bool {
        self.0 >> 63 != 0
    }
}

impl Gpa {
    /// The frame this address lies in.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The offset of this address in its frame, below [`PAGE_SIZE`].
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE as u64 - 1)
    }
}

impl Gfn {
    /// The first byte of the frame.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}
