//! One page-table walker and one table of facts per paging mode.
//!
//! ```text
//!  Controls ──► Mode ──► Facts (modes/*.rs: levels, bits, reserved bits)
//!                            │
//!  Root, Gva ──► Walker ─────┴─► step: one entry ──► Translation | Leaf | Fault
//! ```
//!
//! A mode is data; [`Walker`] is the only interpreter and knows no mode by name. The guest writes the tables, so
//! every read is a bounded copy, every loop has a bound that the result speaks of, and a bit that the manual
//! reserves is a [`Fault`], as it is for the CPU. Sources: Intel SDM volume 3A chapter 4 ("Paging"), AMD APM
//! volume 2 chapter 5, Arm ARM DDI 0487 section D8 (VMSAv8-64).
//!
//! Where QEMU's TCG is laxer than the manuals, a guest has mappings that the walker calls reserved; they are counted
//! ([`Census::reserved`]). TCG takes PSE-36 address bits above MAXPHYADDR, and 1 GiB pages whatever CPUID says: set
//! [`X86Controls::gib_pages`] for it.
//!
//! What the walker does not see: translations that a CPU still holds in its TLB, a PAE CPU's four PDPTE
//! registers (it reads them from memory, where the guest may have changed them since it loaded CR3), protection
//! keys, shadow stacks, second-stage tables, and an A20 gate that is closed.

#![forbid(unsafe_code)]

mod controls;
mod entries;
mod facts;
mod fault;
mod find;
mod isolation;
mod leaves;
mod modes;
mod roots;
mod step;
mod translate;
mod way;

pub use controls::{Mode, X86Controls};
pub use entries::TopEntry;
pub use fault::Fault;
pub use find::{MAX_ROOTS_FOUND, MAX_TABLES_SEARCHED, RootFinder, RootKind, RootsFound, find_roots};
pub use isolation::{IsolationPair, isolation_partner};
pub use leaves::{Bounds, Census, Ended, Leaf, Want};
pub use roots::{Recent, Roots};
pub use step::Permissions;
pub use translate::{Translation, Walker};
pub use way::{MAX_TABLES_OF_A_WAY, Way};
