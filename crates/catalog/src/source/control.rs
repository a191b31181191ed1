//! Debian control data: paragraphs of `Field: value` lines (deb-control(5), Debian Policy 5.1).

use crate::model::Package;

/// The wanted fields of one paragraph.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Paragraph {
    package: Option<String>,
    version: Option<String>,
    architecture: Option<String>,
    source: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) multi_arch: Option<String>,
}

/// The paragraphs of a control file or of dpkg's status.
pub(crate) fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph> + '_ {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        while lines.next_if(|line| line.trim().is_empty()).is_some() {}
        lines.peek()?;
        let mut paragraph = Paragraph::default();
        while let Some(line) = lines.next_if(|line| !line.trim().is_empty()) {
            paragraph.take(line);
        }
        Some(paragraph)
    })
}

impl Paragraph {
    fn take(&mut self, line: &str) {
        // Continuation lines start with a space or tab; no wanted field has any.
        if line.starts_with([' ', '\t']) {
            return;
        }
        let Some((name, value)) = line.split_once(':') else {
            return;
        };
        let field = match name.to_ascii_lowercase().as_str() {
            "package" => &mut self.package,
            "version" => &mut self.version,
            "architecture" => &mut self.architecture,
            "source" => &mut self.source,
            "status" => &mut self.status,
            "multi-arch" => &mut self.multi_arch,
            _ => return,
        };
        *field = Some(value.trim().to_owned());
    }

    /// The package, if the paragraph names one with its version. `Source: name (version)` where the source has another
    /// version (Policy 5.6.1).
    pub(crate) fn package(self) -> Option<Package> {
        let (name, version) = (self.package?, self.version?);
        let (source, source_version) = match self.source {
            None => (name.clone(), version.clone()),
            Some(source) => match source.split_once('(') {
                Some((source, rest)) => (
                    source.trim().to_owned(),
                    rest.trim().trim_end_matches(')').trim().to_owned(),
                ),
                None => (source, version.clone()),
            },
        };
        if name.is_empty() || version.is_empty() {
            return None;
        }
        let architecture = self.architecture.unwrap_or_default();
        Some(Package {
            name,
            version,
            architecture,
            source,
            source_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_with_a_version_of_its_own_is_kept() {
        let text = "Package: bash\nSource: bash-src (5.2-1)\nVersion: 5.2-1+b7\nArchitecture: amd64\nDescription: x\n Version: 9\n";
        let package = paragraphs(text).next().unwrap().package().unwrap();
        assert_eq!(
            (package.source.as_str(), package.source_version.as_str()),
            ("bash-src", "5.2-1")
        );
        assert_eq!(package.version, "5.2-1+b7");
    }

    #[test]
    fn a_package_is_its_own_source_unless_it_says_otherwise() {
        let mut all =
            paragraphs("\n\nPackage: a\nVersion: 1\n\nPackage: b\nSource: c\nVersion: 2\nStatus: x\n");
        let a = all.next().unwrap().package().unwrap();
        assert_eq!((a.source.as_str(), a.source_version.as_str()), ("a", "1"));
        let b = all.next().unwrap().package().unwrap();
        assert_eq!((b.source.as_str(), b.source_version.as_str()), ("c", "2"));
        assert!(all.next().is_none());
    }

    #[test]
    fn a_paragraph_without_a_version_names_no_package() {
        assert!(paragraphs("Package: a\n").next().unwrap().package().is_none());
    }
}
