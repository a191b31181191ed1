//! The identity database: which file, package and version is this page of?
