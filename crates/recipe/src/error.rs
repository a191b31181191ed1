//! Why a file has no recipe.

/// A file that was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// It is something else.
    #[error("not {expected}")]
    Other {
        /// What it would have to be.
        expected: &'static str,
    },
    /// It claims to be what was expected, but a structure in it is wrong.
    #[error("{what} is malformed at offset {at:#x}")]
    Malformed {
        /// The structure.
        what: &'static str,
        /// Where in the file (or in its payload, once decompressed).
        at: u64,
    },
    /// It is larger than any real one.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A compressed stream could not be read.
    #[error("the {format} stream cannot be decompressed: {reason}")]
    Compression {
        /// Its format.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
}
