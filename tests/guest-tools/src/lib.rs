//! What the planted programs share. They are attacks in miniature: each brings code into an address space that is
//! in no catalog, or changes code that is. They run inside test guests only, as root, linked statically.

pub mod disk_work;
pub mod equivalent;
pub mod mapped;
pub mod work;
