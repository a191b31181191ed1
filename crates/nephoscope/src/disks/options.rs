//! QEMU's option strings: `first,name=value,name,…`, where `,,` is a comma (`util/qemu-option.c`, `opts_do_parse`).

/// One option's parts, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Options(Vec<(String, Option<String>)>);

impl Options {
    /// Takes it apart. What stands first without a name has this one.
    pub(super) fn parse(text: &str, first: &str) -> Self {
        let mut parts = split(text).into_iter().filter(|part| !part.is_empty());
        let mut all = Vec::new();
        if let Some(part) = parts.next() {
            all.push(match part.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None if first.is_empty() => (part, None),
                None => (first.to_owned(), Some(part)),
            });
        }
        all.extend(parts.map(|part| match part.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (part, None),
        }));
        Self(all)
    }

    /// The value of a name: the last one counts, and a name alone is `on`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let last = self.0.iter().rev().find(|(has, _)| has == name)?;
        Some(last.1.as_deref().unwrap_or("on"))
    }

    /// Whether it says yes: `None` if it says neither.
    pub(super) fn is_on(&self, name: &str) -> Option<bool> {
        match self.get(name) {
            None | Some("off" | "no" | "false") => Some(false),
            Some("on" | "yes" | "true") => Some(true),
            Some(_) => None,
        }
    }

    /// Its names, each as often as it stands there.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// All but these names, as text again: with a comma before each.
    pub(super) fn rest(&self, without: &[&str]) -> String {
        let kept = self
            .0
            .iter()
            .filter(|(name, _)| !without.contains(&name.as_str()));
        kept.map(|(name, value)| match value {
            Some(value) => format!(",{name}={}", escaped(value)),
            None => format!(",{name}"),
        })
        .collect()
    }
}

/// A value as it stands in an option.
pub(super) fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match (next, rest.peek()) {
            (',', Some(',')) => {
                rest.next();
                parts.last_mut().into_iter().for_each(|part| part.push(','));
            }
            (',', _) => parts.push(String::new()),
            (other, _) => parts.last_mut().into_iter().for_each(|part| part.push(other)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_apart_as_qemu_does() {
        let options = Options::parse(
            "virtio-blk-pci,drive=d0,serial=a,,b,disable-legacy,drive=d1",
            "driver",
        );
        assert_eq!(options.get("driver"), Some("virtio-blk-pci"));
        assert_eq!(options.get("drive"), Some("d1"), "the last one counts");
        assert_eq!(options.get("serial"), Some("a,b"));
        assert_eq!(options.get("disable-legacy"), Some("on"));
        assert_eq!(options.get("bootindex"), None);
        assert_eq!(options.rest(&["driver", "drive"]), ",serial=a,,b,disable-legacy");
    }

    #[test]
    fn the_first_part_may_have_its_name() {
        assert_eq!(Options::parse("size=1G", "size"), Options::parse("1G", "size"));
        assert_eq!(Options::parse("readonly", "").is_on("readonly"), Some(true));
        assert_eq!(Options::parse("", "size"), Options::default());
    }

    #[test]
    fn yes_and_no_and_neither() {
        let options = Options::parse("a=on,b=off,c=perhaps,d", "");
        let said = ["a", "b", "c", "d", "e"].map(|name| options.is_on(name));
        assert_eq!(said, [Some(true), Some(false), None, Some(true), Some(false)]);
    }
}
