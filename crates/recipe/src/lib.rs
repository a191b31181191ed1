//! Pure functions from an executable file to what its pages must look like once loaded.

mod bzimage;
mod compare;
mod compression;
pub mod elf;
mod error;
pub mod firmware;
pub mod floating;
#[cfg(fuzzing)]
pub mod fuzzing;
mod interpreted;
pub mod kernel;
pub mod module;
mod object;
mod recognise;
mod site;
mod vdso;
pub mod windows;

pub use compare::{
    Comparison, Difference, Env, MAX_UNKNOWNS, Nothing, SiteUse, Solver, compare, compare_ranges,
};
pub use error::RecipeError;
pub use interpreted::is_interpreted;
pub use object::{Facts, FilePage, Load, Object, ObjectKind, Part, PartKind, Placement};
pub use recognise::recognise;
pub use site::{FUNCTIONS, Fix, Form, PARAVIRT, Site, SiteKind, Target, Unknown, Value, Values};
