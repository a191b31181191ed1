//! Pure functions from an executable file to what its pages must look like once loaded.

mod bzimage;
mod compare;
mod compression;
mod error;
pub mod kernel;
pub mod module;
mod object;
mod site;
mod vdso;

pub use compare::{Comparison, Difference, Env, MAX_UNKNOWNS, Nothing, SiteUse, Solver, compare};
pub use error::RecipeError;
pub use object::{Facts, FilePage, Load, Object, ObjectKind, Part, PartKind, Placement};
pub use site::{FUNCTIONS, PARAVIRT, Fix, Form, Site, SiteKind, Target, Unknown, Value, Values};
