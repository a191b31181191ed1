//! Real guests, watched.
