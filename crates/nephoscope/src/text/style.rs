//! Restrained colour: none for what is well, some for what is not.

use std::io::IsTerminal;

/// How something is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tone {
    /// Said as it is.
    #[default]
    Plain,
    /// Headings.
    Strong,
    /// Present, not important.
    Faint,
    /// As it should be.
    Good,
    /// Look at it.
    Warn,
    /// Look at it first.
    Bad,
}

/// Whether tones are painted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Never.
    pub(crate) const OFF: Self = Self { on: false };
    /// Always.
    #[cfg(test)]
    pub(crate) const ON: Self = Self { on: true };

    /// If standard output is a terminal that can, and `NO_COLOR` (<https://no-color.org>) does not forbid it.
    #[must_use]
    pub(crate) fn stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            on: std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    /// Whether tones are painted.
    #[must_use]
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    /// The text in this tone.
    #[must_use]
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.on || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_paint_there_is_only_text() {
        assert_eq!(Paint::OFF.paint(Tone::Bad, "x"), "x");
        assert_eq!(Paint::ON.paint(Tone::Plain, "x"), "x");
        assert_eq!(Paint::ON.paint(Tone::Bad, "x"), "\x1b[1;31mx\x1b[0m");
    }
}
