//! What a file becomes once it is loaded: the types that every format's recipe ends in.

use serde::{Deserialize, Serialize};

use crate::site::{Site, Values};

/// What kind of thing a file is, by its contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// A program: `ET_EXEC`, or `ET_DYN` meant to be started (a PIE, static or not).
    Executable,
    /// A shared library.
    SharedObject,
    /// The dynamic loader (`ET_DYN` with an entry point, started by the kernel as another file's interpreter).
    Interpreter,
    /// A Linux kernel image, its vDSO, real-mode code and decompressor included.
    Kernel,
    /// A Linux kernel module.
    KernelModule,
    /// Firmware, an option ROM or a boot loader.
    Firmware,
    /// What an interpreter reads: a script, a class, an archive of those. It holds no code of the processor.
    Interpreted,
}

/// One file's contents as an executable object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// What the file says of itself.
    pub facts: Facts,
    /// User ELF only: where the file's bytes go in memory. Empty otherwise.
    pub loads: Vec<Load>,
    /// The file's 4 KiB blocks: of a user ELF those that can be mapped, of what an interpreter reads all. Empty otherwise.
    pub pages: Vec<FilePage>,
    /// The bytes that can execute, with the places that a loader or the kernel may rewrite.
    pub parts: Vec<Part>,
}

/// What a file says of itself. Nothing here is evidence; it names things that were identified by their bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The GNU build ID note, raw.
    pub build_id: Option<Vec<u8>>,
    /// `DT_SONAME`, the module's name, or the kernel's release (`6.1.0-37-amd64`).
    pub name: Option<String>,
    /// `PT_INTERP`.
    pub interpreter: Option<String>,
    /// ELF entry point as linked; 0 is none.
    pub entry: u64,
    /// The kernel release a module was built for, from its `vermagic`.
    pub kernel_release: Option<String>,
    /// Kernel and modules: exported symbols (name, link address; for a module an address in its own parts, see
    /// [`crate::module`]), sorted by name. Needed to check relocations between images.
    pub exports: Vec<(String, u64)>,
}

/// One `PT_LOAD`: file bytes `[offset, offset + file_len)` at `va`, zero-filled up to `mem_len`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Load {
    /// `p_vaddr`.
    pub va: u64,
    /// `p_offset`.
    pub offset: u64,
    /// `p_filesz`.
    pub file_len: u64,
    /// `p_memsz`.
    pub mem_len: u64,
    /// `PF_X`.
    pub execute: bool,
    /// `PF_W`.
    pub write: bool,
}

/// One 4 KiB block of a file as the page cache holds it: zero-filled past the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilePage {
    /// BLAKE3 of the 4096 bytes, whole.
    pub digest: [u8; 32],
    /// The block's number in the file: byte offset / 4096.
    pub number: u32,
    /// The address of the block's first byte as linked: page-aligned, and 0 of what is not linked. One block that two segments share (the
    /// end of one, the start of the next) is listed once for each.
    pub va: u64,
    /// Whether an executable segment maps it.
    pub execute: bool,
}

/// What a part is, which decides how it is looked for and how it is named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// An executable segment of a user ELF, whole pages, with the file's bytes up to the page's end.
    UserText,
    /// The kernel's text as linked, or another executable region of the image.
    KernelText,
    /// Kernel text that is freed after boot.
    KernelInit,
    /// A module's executable sections in the order the module loader lays them out, from its page-aligned start.
    ModuleText,
    /// The same for the sections that are freed after the module's init function ran.
    ModuleInit,
    /// A vDSO image.
    Vdso,
    /// Code that is copied to odd addresses: the kernel's set-up code, decompressor and real-mode trampoline.
    BootCode,
    /// Firmware, an option ROM, or a piece unpacked from one.
    Firmware,
    /// The text that an interpreter reads: no code of the processor, and found by windows that no code has.
    Script,
}

/// Where a part can start in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Placement {
    /// At an address equal to `link` modulo this power of two (4096, or 2 MiB for a Linux kernel).
    Aligned(u64),
    /// At any byte.
    Anywhere,
}

/// A contiguous run of bytes that executes, as linked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// A short name for people: `.text`, `vdso64`, `bios.bin`.
    pub name: String,
    /// The address of byte 0 as linked. 0 for a module.
    pub link: u64,
    /// Where it can start.
    pub placement: Placement,
    /// The bytes as in the file. Relocations that the linker left to the loader are not applied, but for those that
    /// do not depend on where the part is loaded.
    #[serde(with = "serde_bytes_compat")]
    pub bytes: Vec<u8>,
    /// The places that may differ, sorted by `at`; they do not overlap.
    pub sites: Vec<Site>,
    /// What they may hold.
    pub values: Values,
}

/// Byte vectors as one blob, not as a sequence of numbers.
mod serde_bytes_compat {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        Vec::<u8>::deserialize(d)
    }
}
