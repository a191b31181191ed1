//! Attacks on and from the guest's kernel, and below it.

mod rootkit;
mod rootkit_hidden;

use super::{Attack, Seen};

/// All of them, by number.
pub(super) fn all() -> Vec<&'static dyn Attack> {
    vec![
        &rootkit::ByPatch,
        &rootkit::ByFtrace,
        &rootkit_hidden::RootkitHidden,
    ]
}
