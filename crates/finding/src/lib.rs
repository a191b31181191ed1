//! What was concluded, on what evidence, and where it goes.
