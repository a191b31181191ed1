//! Every bound, and whom it stops.

/// Places kept per page digest and segment. Stops a page that stands everywhere (all zeros, all `int3`) from making
/// its look-ups and answers long. The rest is counted.
pub const MAX_REFS_PER_PAGE: usize = 256;
/// Places kept per content window and segment, for the same reason; a window that is not rare tells nothing.
pub const MAX_REFS_PER_WINDOW: usize = 16;
/// Placements kept per object and segment. Stops a package that ships one file under a million names.
pub const MAX_PLACEMENTS_PER_OBJECT: usize = 1024;
/// The largest file that is looked into. Stops a file that would not fit in memory beside others; the largest
/// stripped program in Debian is under 300 MiB.
pub const MAX_FILE_BYTES: u64 = 512 << 20;
/// The largest sum of unpacked bytes of one package. Stops decompression bombs.
pub const MAX_PACKAGE_BYTES: u64 = 32 << 30;
/// The most members of one package.
pub const MAX_PACKAGE_MEMBERS: u64 = 4_000_000;
/// Bytes before a member's own: long names, attributes, lists of holes, which are held in memory before the member is known.
/// Stops a name of gigabytes, which packs into next to nothing.
pub const MAX_HEAD_BYTES: u64 = 1 << 20;
/// The largest `control` file. Stops a package that describes itself for ever.
pub const MAX_CONTROL_BYTES: u64 = 1 << 20;
/// The longest path. Linux's own bound (`PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// Memory of an xz decoder. `dpkg-deb -z9` needs 65 MiB; stops a dictionary of 4 GiB.
pub const MAX_XZ_MEMORY: u64 = 256 << 20;
/// log2 of the largest zstd window, for the same reason. zstd's own bound without `--long`.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// The largest file of a dpkg database that is read (status, a list of files). Stops a hostile tree.
pub const MAX_DATABASE_FILE_BYTES: u64 = 256 << 20;
/// Entries of one tree. Stops a tree that never ends.
pub const MAX_TREE_ENTRIES: u64 = 20_000_000;
/// Depth of a tree, in directories.
pub const MAX_TREE_DEPTH: usize = 128;
/// Refusals that a summary lists; the rest is counted.
pub const MAX_REFUSALS_LISTED: usize = 1000;
/// The largest part that is decoded. Stops a damaged length from asking for all memory.
pub(crate) const MAX_PART_BYTES: u64 = MAX_FILE_BYTES * 4;
/// Bytes of decoded parts that a reader keeps: two kernels' text, or many modules'. What somebody holds is found beyond it.
pub(crate) const PART_CACHE_BYTES: u64 = 48 << 20;
/// Descriptions of objects that a reader keeps.
pub(crate) const OBJECT_CACHE: u64 = 8192;
/// Bytes of tables in memory before an adder writes a segment.
pub(crate) const FLUSH_BYTES: usize = 384 << 20;
/// A file larger than this is worked on where it was unpacked and not handed to another thread, so that the bytes in
/// waiting are bounded.
pub(crate) const MAX_QUEUED_FILE_BYTES: usize = 16 << 20;
/// Files in waiting.
pub(crate) const MAX_QUEUED_FILES: usize = 16;
