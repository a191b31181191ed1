//! Where running watches are found: one directory per VM, for its owner alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid};

use crate::exit::{Failure, exit};

/// One VM's directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VmDir {
    /// The VM's name.
    pub(crate) name: String,
    path: PathBuf,
}

/// The directory that holds all of this user's VMs: `$XDG_RUNTIME_DIR/nephoscope`, or `/run/nephoscope` for root.
#[must_use]
pub(crate) fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("NEPHOSCOPE_RUNTIME_DIR") {
        return PathBuf::from(dir);
    }
    let uid = rustix::process::getuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !uid.is_root() => PathBuf::from(dir).join("nephoscope"),
        _ if uid.is_root() => PathBuf::from("/run/nephoscope"),
        _ => std::env::temp_dir().join(format!("nephoscope-{}", uid.as_raw())),
    }
}

/// Every VM of this user that has or had a watch, by name.
///
/// # Errors
/// If the directory is there and cannot be read.
pub(crate) fn all() -> anyhow::Result<Vec<VmDir>> {
    let base = base();
    let entries = match std::fs::read_dir(&base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let failure = if error.kind() == io::ErrorKind::PermissionDenied {
                Failure::Permission
            } else {
                Failure::Other
            };
            let message = format!(
                "cannot read {}: {error}: be the user who started the watch, or set NEPHOSCOPE_RUNTIME_DIR",
                base.display()
            );
            return Err(exit(failure, message));
        }
    };
    let mut all: Vec<VmDir> = entries
        .flatten()
        .filter_map(|entry| VmDir::named(entry.file_name().to_str()?).ok())
        .filter(|vm| {
            // What may not be looked at is there all the same.
            let missing = |error: io::Error| {
                matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                )
            };
            let absent = |path: PathBuf| path.symlink_metadata().is_err_and(missing);
            !absent(vm.control()) || !absent(vm.state())
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Takes a lock that its process holds until it ends, however that is; `None` if another one has it.
///
/// # Errors
/// If the system refuses.
pub(crate) fn try_lock(path: &Path) -> anyhow::Result<Option<File>> {
    let refused = |error: io::Error| {
        let failure = match error.kind() {
            io::ErrorKind::PermissionDenied => Failure::Permission,
            _ => Failure::Other,
        };
        exit(failure, format!("cannot lock {}: {error}", path.display()))
    };
    let file = open_lock(path).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(refused(error)),
    }
}

/// Waits for a lock. `None` if what it was for is gone meanwhile: the file is not there any more.
///
/// # Errors
/// If the system refuses.
pub(crate) fn wait_for_lock(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.lock()?;
    let (held, now) = (file.metadata()?, std::fs::metadata(path));
    Ok(now.is_ok_and(|now| now.ino() == held.ino()).then_some(file))
}

fn open_lock(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Says up to where the journal holds.
pub(crate) const HORIZON: &str = "horizon";
/// The report, if it could not be written where it should be.
pub(crate) const KEPT_REPORT: &str = "report.json";

/// The folder in a VM's directory that its watch owns: the journal, and a report that could be written nowhere else. It is
/// reached through what is open, whoever one has become, and nothing in it is believed by those who have more rights.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The VM's name.
    pub(crate) name: String,
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Kept {
    /// Opens a file to read it.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    /// Opens a file to write it, for its owner alone, and empties it if asked to.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn create(&self, name: &str, empty: bool) -> io::Result<File> {
        let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::TRUNC, empty);
        Ok(rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Puts a file in another's place.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Where a file is, to be told.
    #[must_use]
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Gives it, with what earlier watches left in it, to another user.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn give(&self, user: Uid, group: Gid) -> io::Result<()> {
        for entry in Dir::read_from(&self.fd)?.flatten() {
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                let name = entry.file_name();
                rustix::fs::chownat(&self.fd, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(rustix::fs::fchown(&self.fd, Some(user), Some(group))?)
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The longest name, so that a socket's path fits its 108 bytes (`unix(7)`).
const MAX_NAME: usize = 48;

impl VmDir {
    /// The directory of a VM with this name.
    ///
    /// # Errors
    /// If the name could be a path, or does not fit.
    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) || name.starts_with('.') {
            let message = format!(
                "{name:?} cannot be a VM's name: use up to {MAX_NAME} letters, digits, '-', '_' and '.', not first"
            );
            return Err(exit(Failure::Usage, message));
        }
        Ok(Self {
            name: name.to_owned(),
            path: base().join(name),
        })
    }

    /// A directory anywhere.
    #[cfg(test)]
    pub(crate) fn at(name: &str, path: &std::path::Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
        }
    }

    /// Makes it, empty, for this user alone, and gives the lock of whoever keeps the VM watched.
    ///
    /// # Errors
    /// If a VM of this name is being watched, or the system refuses.
    pub(crate) fn create(&self) -> anyhow::Result<File> {
        self.ensure()?;
        let taken = || {
            let message = format!(
                "a VM named {:?} is being watched already: choose another --name",
                self.name
            );
            exit(Failure::Usage, message)
        };
        let keeper = try_lock(&self.keep_lock())?.ok_or_else(taken)?;
        // Nobody keeps it, and somebody may watch it all the same.
        try_lock(&self.watch_lock())?.ok_or_else(taken)?;
        let locks = [self.keep_lock(), self.watch_lock()];
        for stale in self.files().filter(|file| !locks.contains(file)) {
            let _ = std::fs::remove_file(stale);
        }
        let _ = std::fs::remove_dir_all(self.disks());
        Ok(keeper)
    }

    /// Makes it if it is not there, and leaves what is in it: a watch that was killed left its VM's files.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn ensure(&self) -> anyhow::Result<()> {
        let denied = |error: io::Error| {
            let failure = if error.kind() == io::ErrorKind::PermissionDenied {
                Failure::Permission
            } else {
                Failure::Other
            };
            exit(
                failure,
                format!(
                    "cannot make {}: {error}: set NEPHOSCOPE_RUNTIME_DIR",
                    self.path.display()
                ),
            )
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(denied)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o700)).map_err(denied)
    }

    /// The folder of those who watch, made if it is not there.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn hold(&self) -> anyhow::Result<Kept> {
        let path = self.kept();
        let open = || -> io::Result<OwnedFd> {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::open(&path, flags, Mode::empty())?)
        };
        let fd = open().with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Kept {
            name: self.name.clone(),
            fd: Arc::new(fd),
            path,
        })
    }

    /// Removes it when the VM is over. A report that was kept in it stays, with what was said.
    pub(crate) fn remove(&self) {
        if !self.kept_report().exists() {
            let _ = std::fs::remove_file(self.log());
        }
        for file in self.files() {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir(self.kept());
        let _ = std::fs::remove_dir_all(self.disks());
        let _ = std::fs::remove_dir(&self.path);
    }

    /// What those who watch write: they own it, and nothing else here.
    fn kept(&self) -> PathBuf {
        self.path.join("watch")
    }

    /// Everything that is kept while the VM runs.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let journals = std::fs::read_dir(self.kept()).into_iter().flatten().flatten();
        let journals = journals
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("journal."))
            .map(|entry| entry.path());
        // The locks last: who waits for one finds nothing left to do.
        let names = [
            self.state(),
            self.horizon(),
            self.control(),
            self.plugin(),
            self.qmp(),
        ];
        names
            .into_iter()
            .chain(journals.collect::<Vec<_>>())
            .chain([self.watch_lock(), self.keep_lock()])
    }

    /// How the VM is watched ([`crate::state`]).
    #[must_use]
    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("vm.json")
    }

    /// Up to where the journal holds ([`crate::monitor`]).
    #[must_use]
    pub(crate) fn horizon(&self) -> PathBuf {
        self.kept().join(HORIZON)
    }

    /// Held by the one that watches.
    #[must_use]
    pub(crate) fn watch_lock(&self) -> PathBuf {
        self.path.join("watch.lock")
    }

    /// Held by the one that starts who watches.
    #[must_use]
    pub(crate) fn keep_lock(&self) -> PathBuf {
        self.path.join("keep.lock")
    }

    /// What those who watch have to say, when nobody waits for them.
    #[must_use]
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the report is kept when it cannot be written where it should be.
    #[must_use]
    pub(crate) fn kept_report(&self) -> PathBuf {
        self.kept().join(KEPT_REPORT)
    }

    /// Where the watch answers.
    #[must_use]
    pub(crate) fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Where the plugin listens.
    #[must_use]
    pub(crate) fn plugin(&self) -> PathBuf {
        self.path.join("plugin.sock")
    }

    /// What the servers of its disks have.
    #[must_use]
    pub(crate) fn disks(&self) -> PathBuf {
        self.path.join("disks")
    }

    /// Where a disk is served.
    #[must_use]
    pub(crate) fn disk(&self, number: u16) -> PathBuf {
        self.disks().join(format!("{number}.sock"))
    }

    /// Where a disk's server waits for the plugin.
    #[must_use]
    pub(crate) fn disk_files(&self, number: u16) -> PathBuf {
        self.disks().join(format!("{number}.files.sock"))
    }

    /// Held by whoever serves a disk.
    #[must_use]
    pub(crate) fn disk_lock(&self, number: u16) -> PathBuf {
        self.disks().join(format!("{number}.lock"))
    }

    /// Where QEMU's test protocol is spoken.
    #[must_use]
    pub(crate) fn qtest(&self) -> PathBuf {
        self.disks().join("qtest.sock")
    }

    /// Where QEMU's monitor protocol listens.
    #[must_use]
    pub(crate) fn qmp(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_name_stops_a_name_whose_socket_could_not_be_made() {
        assert!(VmDir::named(&"a".repeat(MAX_NAME)).is_ok());
        assert!(VmDir::named(&"a".repeat(MAX_NAME + 1)).is_err());
    }
}
