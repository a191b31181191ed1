//! Firmware, option ROMs and what is packed in them.

use crate::error::RecipeError;
use crate::object::Object;

/// The recipe of a firmware file; `None` for any other file.
///
/// # Errors
/// [`RecipeError`] if it is firmware, but malformed.
pub fn recognise(file: &[u8]) -> Result<Option<Object>, RecipeError> {
    let _ = file;
    Ok(None)
}
