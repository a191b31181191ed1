//! Pure functions from an executable file to what its pages must look like once loaded.

mod object;
mod site;

pub use object::{Facts, FilePage, Load, Object, ObjectKind, Part, PartKind, Placement};
pub use site::{Fix, Form, Site, SiteKind, Target, Unknown, Value, Values};
