//! Paths, from names of directories in directories.

/// Bytes of a path (Linux: `PATH_MAX`). It stops directories that are in each other.
pub(super) const MAX_PATH: usize = 4096;

/// The path of something with this name in a directory; `above` gives a directory's name and the one above it. `None` if one of them has
/// no name that is known, or there are too many.
pub(super) fn path<'a, N: Copy + PartialEq>(
    name: Vec<u8>,
    directory: N,
    root: N,
    above: impl Fn(N) -> Option<(&'a [u8], N)>,
) -> Option<Vec<u8>> {
    let (mut parts, mut at, mut len) = (vec![name], directory, 0);
    while at != root {
        let (name, next) = above(at)?;
        len += name.len() + 1;
        if name.is_empty() || len > MAX_PATH {
            return None;
        }
        parts.push(name.to_vec());
        at = next;
    }
    Some(
        parts
            .iter()
            .rev()
            .flat_map(|part| [b"/", &part[..]].concat())
            .collect(),
    )
}

/// What is at a path from the root: `entry` gives what has a name in a directory.
pub(super) fn find<N: Copy, E>(
    root: N,
    path: &[&[u8]],
    mut entry: impl FnMut(N, &[u8]) -> Result<Option<N>, E>,
) -> Result<Option<N>, E> {
    let mut at = root;
    for name in path {
        match entry(at, name)? {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}
