//! Paths as names, not as places on this machine.

use std::borrow::Cow;

use crate::limits::MAX_PATH_BYTES;

/// A path as packages and trees spell it (`./usr/bin/env`, `usr//bin/env`) as one absolute spelling. Bytes that are not
/// UTF-8 become U+FFFD: the path is for people.
///
/// # Errors
/// Why it cannot be the path of a file.
pub(crate) fn normalise(raw: &[u8]) -> Result<String, &'static str> {
    if raw.len() > MAX_PATH_BYTES {
        return Err("path too long");
    }
    if raw.contains(&0) {
        return Err("path with a NUL");
    }
    let mut path = String::with_capacity(raw.len() + 1);
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("path with .."),
            part => {
                path.push('/');
                path.push_str(&String::from_utf8_lossy(part));
            }
        }
    }
    if path.is_empty() {
        Err("empty path")
    } else {
        Ok(path)
    }
}

/// The path with the aliases of merged-/usr resolved, to compare by: packages still say `/bin/sh` where the file
/// stands in `/usr/bin/sh` (Debian's usrmerge; the list is that of `base-files`).
pub(crate) fn canonical(path: &str) -> Cow<'_, str> {
    const ALIASED: [&str; 6] = ["/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/"];
    if ALIASED.iter().any(|alias| path.starts_with(alias)) {
        Cow::Owned(format!("/usr{path}"))
    } else {
        Cow::Borrowed(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_path() {
        assert_eq!(normalise(b"./usr/bin/env").unwrap(), "/usr/bin/env");
        assert_eq!(normalise(b"//usr/./bin//env").unwrap(), "/usr/bin/env");
        assert_eq!(normalise(b"a\xff").unwrap(), "/a\u{fffd}");
    }

    #[test]
    fn a_path_that_climbs_or_is_none_is_refused() {
        for bad in [&b"../etc/passwd"[..], b"usr/../../x", b"", b".", b"/", b"a\0b"] {
            assert!(normalise(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn max_path_bytes_stops_a_path_that_linux_would_not_take() {
        assert!(normalise(&vec![b'a'; MAX_PATH_BYTES]).is_ok());
        assert!(normalise(&vec![b'a'; MAX_PATH_BYTES + 1]).is_err());
    }

    #[test]
    fn merged_usr_aliases_compare_equal() {
        assert_eq!(canonical("/bin/sh"), canonical("/usr/bin/sh"));
        assert_eq!(
            canonical("/lib64/ld-linux-x86-64.so.2"),
            "/usr/lib64/ld-linux-x86-64.so.2"
        );
        assert_eq!(canonical("/library/x"), "/library/x");
    }
}
