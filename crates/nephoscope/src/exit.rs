//! Exit codes: scripts decide by them, so each kind of failure has its own.

use std::fmt;

/// Why the program ends without having done what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Failure {
    /// Something that no other code names.
    Other = 1,
    /// The command line is wrong (`clap` uses the same number).
    Usage = 2,
    /// There is no catalog.
    NoCatalog = 10,
    /// The catalog is of another version.
    CatalogVersion = 11,
    /// The catalog is damaged.
    CatalogDamaged = 12,
    /// The catalog cannot be read or written.
    CatalogAccess = 13,
    /// Some inputs were refused.
    Refused = 14,
    /// QEMU cannot be started.
    NoQemu = 20,
    /// This QEMU was built without plugins.
    NoPlugins = 21,
    /// This QEMU's plugin API is not supported.
    PluginApi = 22,
    /// KVM, and the kernel module nephoscope-kvm is not loaded.
    Kvm = 23,
    /// The plugin library is missing.
    NoPluginLibrary = 24,
    /// A disk cannot be served whose files are to be watched.
    NoDisk = 25,
    /// No such VM, or nobody answers for it.
    NoVm = 30,
    /// Not allowed.
    Permission = 31,
    /// The VM has no such page or finding.
    NoSuchItem = 32,
    /// A watch's answer, or a saved report, is not understood; or what should be the memory of a guest is none, or has no page
    /// tables.
    NotUnderstood = 33,
    /// The report could not be written where it was asked for; it is kept in the VM's directory.
    ReportElsewhere = 40,
    /// The report could not be written at all.
    ReportNotWritten = 41,
}

/// An error that ends the program: one line that says what to do, and the code.
#[derive(Debug)]
pub(crate) struct Exit {
    /// The code.
    pub(crate) failure: Failure,
    /// The line.
    pub(crate) message: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// An [`Exit`] as an `anyhow` error, which `main` finds again.
pub(crate) fn exit(failure: Failure, message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Exit {
        failure,
        message: message.into(),
    })
}
