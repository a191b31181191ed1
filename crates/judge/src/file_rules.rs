//! Which programs are interpreters, and which files are not spoken of.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// The programs that are taken for interpreters if nobody says otherwise.
const INTERPRETERS: &str = include_str!("../data/interpreters");

/// A pattern that is none.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {pattern:?} is no pattern: {why}")]
pub struct PatternError {
    /// Where, counted from 1.
    pub line: usize,
    /// What is there.
    pub pattern: String,
    /// What is wrong with it.
    pub why: String,
}

/// What [`crate::InterpretedFile`] is told.
#[derive(Clone, Debug)]
pub struct FileRules {
    interpreters: GlobSet,
    allowed: GlobSet,
}

impl Default for FileRules {
    fn default() -> Self {
        Self {
            // A test sees to it that the list is one.
            interpreters: patterns(INTERPRETERS).unwrap_or_default(),
            allowed: GlobSet::default(),
        }
    }
}

impl FileRules {
    /// `interpreters` and `allowed` are lists of patterns for paths, one a line, with comments after `#`: which programs are
    /// interpreters (`None`: those that are known here), and which files may be what they like.
    ///
    /// # Errors
    /// A line is no pattern.
    pub fn new(interpreters: Option<&str>, allowed: &str) -> Result<Self, PatternError> {
        Ok(Self {
            interpreters: patterns(interpreters.unwrap_or(INTERPRETERS))?,
            allowed: patterns(allowed)?,
        })
    }

    /// Whether the program with this path is one.
    pub(crate) fn is_interpreter(&self, program: &str) -> bool {
        self.interpreters.is_match(program)
    }

    /// Whether nothing is said of a file with this path.
    pub(crate) fn allows(&self, path: &str) -> bool {
        self.allowed.is_match(path)
    }
}

fn patterns(text: &str) -> Result<GlobSet, PatternError> {
    let mut set = GlobSetBuilder::new();
    let at = |line: usize, pattern: &str, why: globset::Error| PatternError {
        line,
        pattern: pattern.to_owned(),
        why: why.kind().to_string(),
    };
    for (number, line) in text.lines().enumerate() {
        let pattern = line.trim();
        if pattern.is_empty() || pattern.starts_with('#') {
            continue;
        }
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|why| at(number + 1, pattern, why))?);
    }
    set.build().map_err(|why| at(0, "", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_interpreters_is_one_and_knows_those_of_debian() {
        let rules = FileRules::new(None, "").unwrap();
        for program in [
            "/usr/sbin/php-fpm8.2",
            "/usr/bin/php8.2",
            "/usr/bin/python3.11",
            "/usr/lib/jvm/java-17-openjdk-amd64/bin/java",
            "/bin/dash",
            "/usr/bin/bash",
            "/usr/bin/perl",
        ] {
            assert!(rules.is_interpreter(program), "{program}");
            assert!(FileRules::default().is_interpreter(program), "{program}");
        }
        for program in [
            "/usr/bin/md5sum",
            "/bin/tar",
            "/usr/bin/find",
            "/usr/sbin/nginx",
            "/home/php",
        ] {
            assert!(!rules.is_interpreter(program), "{program}");
        }
    }

    #[test]
    fn a_star_is_one_name_and_two_are_folders() {
        let rules = FileRules::new(Some("/opt/*/run"), "# ours\n/srv/**\n\n/var/www/*.php\n").unwrap();
        assert!(rules.is_interpreter("/opt/a/run") && !rules.is_interpreter("/opt/a/b/run"));
        assert!(!rules.is_interpreter("/usr/bin/perl"));
        assert!(rules.allows("/srv/a/b.php") && rules.allows("/var/www/a.php"));
        assert!(!rules.allows("/var/www/a/b.php") && !rules.allows("/srv"));
    }

    #[test]
    fn what_is_no_pattern_is_said_with_its_line() {
        let error = FileRules::new(None, "/a\n/b/{c\n").unwrap_err();
        assert_eq!((error.line, error.pattern.as_str()), (2, "/b/{c"));
        assert!(error.to_string().starts_with("line 2: \"/b/{c\" is no pattern: "));
    }
}
