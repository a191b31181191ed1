//! Which files are followed: those that interpreters read.

use nephoscope_guest::INTERPRETED_ENDS;

/// By the end of their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kinds(Vec<Vec<u8>>);

impl Default for Kinds {
    fn default() -> Self {
        Self::ending_in(INTERPRETED_ENDS)
    }
}

impl Kinds {
    /// Files whose names end so.
    pub fn ending_in<'a>(ends: impl IntoIterator<Item = &'a str>) -> Self {
        Self(ends.into_iter().map(|end| end.as_bytes().to_vec()).collect())
    }

    /// Whether a file with this path is one.
    #[must_use]
    pub fn has(&self, path: &[u8]) -> bool {
        self.0.iter().any(|end| path.ends_with(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_followed_by_its_end() {
        let kinds = Kinds::default();
        assert!(kinds.has(b"/var/www/index.php") && kinds.has(b"/usr/share/java/a.jar"));
        assert!(!kinds.has(b"/var/log/php") && !kinds.has(b"/a.phpx"));
        assert!(Kinds::ending_in([".tcl"]).has(b"/a.tcl"));
    }
}
