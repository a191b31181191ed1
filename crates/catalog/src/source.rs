//! Where files come from: packages and root trees. All of it may be hostile, and none of its paths is ever used as
//! a path of this machine.

pub(crate) mod ar;
pub(crate) mod control;
pub(crate) mod deb;
pub(crate) mod dpkg;
pub(crate) mod path;
pub(crate) mod root;
pub(crate) mod tree;
