//! Ways into a guest, one file each.
