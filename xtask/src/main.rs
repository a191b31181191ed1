//! The tasks that people and CI run.
fn main() {}
