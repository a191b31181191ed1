//! One rule per file, each turning a change of the inventory into findings.
