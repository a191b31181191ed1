//! Where built things are kept between runs: outside the source tree, by content, whole or not at all.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The cache's own folder: `$XDG_CACHE_HOME/nephoscope`, or `~/.cache/nephoscope`. Created when absent.
///
/// # Errors
/// When neither variable is set, or the folder cannot be made.
pub fn folder() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| Path::new(value).is_absolute()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    let folder = base.join("nephoscope");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create the cache {}", folder.display()))?;
    Ok(folder)
}

/// A short name for a content: the first 16 hexadecimal digits of the BLAKE3 digest of all parts, each preceded by
/// its length so that no two lists of parts collide.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().chars().take(16).collect()
}

/// Waits for, and holds until dropped, the named lock of this cache. Across processes.
///
/// # Errors
/// When the lock file cannot be made or locked.
pub fn lock(name: &str) -> Result<File> {
    locked(name, File::lock)
}

/// The same, beside others who hold it so.
///
/// # Errors
/// When the lock file cannot be made or locked.
pub fn lock_shared(name: &str) -> Result<File> {
    locked(name, File::lock_shared)
}

fn locked(name: &str, lock: impl FnOnce(&File) -> std::io::Result<()>) -> Result<File> {
    let path = folder()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    lock(&file).with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// The folder `name` of the cache, built by `build` when it is not there yet.
///
/// `build` works in a temporary folder beside it, which takes the name only when `build` has succeeded: a build that
/// was killed leaves nothing that looks finished. Its remains are removed by the next one. Two processes that want
/// the same thing build it once.
///
/// # Errors
/// What `build` says, or what the file system says.
pub fn build_once(name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let target = folder()?.join(name);
    if target.is_dir() {
        return Ok(target);
    }
    let _held = lock(name)?;
    if target.is_dir() {
        return Ok(target);
    }
    let work = folder()?.join(format!("{name}.partial"));
    remove_tree(&work)?;
    fs::create_dir(&work).with_context(|| format!("cannot create {}", work.display()))?;
    build(&work).with_context(|| format!("while building {}", work.display()))?;
    fs::rename(&work, &target).with_context(|| format!("cannot finish {}", target.display()))?;
    Ok(target)
}

/// Removes the folders of `family` (their names begin so) except the `keep` youngest: one for this state of the
/// mirror and one for the state before it are worth their gigabytes, ten are not.
///
/// # Errors
/// When the cache cannot be listed or a folder cannot be removed.
pub fn prune(family: &str, keep: usize) -> Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder()?)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(family) && !name.contains('.') && entry.file_type()?.is_dir() {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    found.reverse();
    for (_, path) in found.into_iter().skip(keep) {
        remove_tree(&path)?;
    }
    Ok(())
}

/// Removes a folder that may belong to root, when it exists.
fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let status = crate::command::privileged("rm")
        .arg("-rf")
        .arg("--one-file-system")
        .arg(path)
        .status()?;
    anyhow::ensure!(status.success(), "cannot remove {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn moving_a_byte_from_one_part_to_the_next_changes_the_key() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab", b"c"]), key(&[b"ab", b"c"]));
        assert_eq!(key(&[]).len(), 16);
    }
}
