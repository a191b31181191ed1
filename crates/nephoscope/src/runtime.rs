//! Where running watches are found: one directory per VM, for its owner alone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::{AtFlags, Mode, OFlags};

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
            !vm.control().symlink_metadata().is_err_and(missing)
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The sockets of a VM: where the watch answers, where the plugin listens, and QEMU's monitor protocol.
const SOCKETS: [&str; 3] = ["control.sock", "plugin.sock", "qmp.sock"];

/// A VM's directory that can be removed whoever one has become.
#[derive(Debug)]
pub(crate) struct HeldDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl HeldDir {
    /// Removes the sockets, and the directory. Where that is not allowed, an empty directory stays, which is no VM.
    pub(crate) fn remove(&self) {
        for socket in SOCKETS {
            let _ = rustix::fs::unlinkat(&self.fd, socket, AtFlags::empty());
        }
        let _ = std::fs::remove_dir(&self.path);
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

    /// Makes it, empty, for this user alone.
    ///
    /// # Errors
    /// If a watch of this name is running, or the system refuses.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        if std::os::unix::net::UnixStream::connect(self.control()).is_ok() {
            let message = format!(
                "a VM named {:?} is being watched already: choose another --name",
                self.name
            );
            return Err(exit(Failure::Usage, message));
        }
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
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o700)).map_err(denied)?;
        for stale in [self.control(), self.plugin(), self.qmp()] {
            let _ = std::fs::remove_file(stale);
        }
        Ok(())
    }

    /// Makes it if it is not there, and leaves what is in it: a watch that was killed left its VM's sockets.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn ensure(&self) -> anyhow::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|error| {
                exit(
                    Failure::Permission,
                    format!(
                        "cannot make {}: {error}: set NEPHOSCOPE_RUNTIME_DIR",
                        self.path.display()
                    ),
                )
            })
    }

    /// Keeps hold of it, to remove it when the watch is over: a monitor that is not root any more does not get there by its
    /// path.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn hold(&self) -> anyhow::Result<HeldDir> {
        let open = || {
            rustix::fs::open(
                &self.path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let fd = open().with_context(|| format!("cannot open {}", self.path.display()))?;
        Ok(HeldDir {
            fd,
            path: self.path.clone(),
        })
    }

    /// The directory.
    #[must_use]
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Where the watch answers.
    #[must_use]
    pub(crate) fn control(&self) -> PathBuf {
        self.path.join(SOCKETS[0])
    }

    /// Where the plugin listens.
    #[must_use]
    pub(crate) fn plugin(&self) -> PathBuf {
        self.path.join(SOCKETS[1])
    }

    /// Where QEMU's monitor protocol listens.
    #[must_use]
    pub(crate) fn qmp(&self) -> PathBuf {
        self.path.join(SOCKETS[2])
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
