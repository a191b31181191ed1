//! Files that interpreters read: what they are by their names and beginnings.

/// Ends of names of scripts and classes, and of what holds them.
pub const INTERPRETED_ENDS: [&str; 17] = [
    ".php", ".phtml", ".inc", ".phar", ".py", ".pyc", ".js", ".mjs", ".cjs", ".rb", ".pl", ".pm", ".sh",
    ".jar", ".class", ".war", ".lua",
];

/// Whether a file that begins so is a script (`execve(2)`, "Interpreter scripts").
#[must_use]
pub fn is_script(beginning: &[u8]) -> bool {
    beginning.starts_with(b"#!")
}
