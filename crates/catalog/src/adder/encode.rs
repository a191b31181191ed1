//! One file's bytes, ready for the store. The work that all cores share.

use nephoscope_recipe::{FilePage, ObjectKind};

use crate::formats;
use crate::segment::extent::{self, Extent};

/// A file that holds code.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) digest: [u8; 32],
    pub(crate) kind: ObjectKind,
    pub(crate) extent: Extent,
    pub(crate) pages: Vec<FilePage>,
    pub(crate) windows: Vec<Window>,
}

/// A content window: hash, part, offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    pub(crate) hash: u64,
    pub(crate) part: u16,
    pub(crate) offset: u32,
}

/// Recognises a file and encodes it; `None` if it holds no code.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn encode(digest: [u8; 32], bytes: &[u8], path: &str) -> Result<Option<Encoded>, String> {
    // A recogniser that fails on one file out of a million must not take the others with it. What it was doing is
    // dropped with it; the file is refused and named.
    let recognised = std::panic::catch_unwind(|| formats::recognise(bytes, path));
    let recognised =
        recognised.unwrap_or_else(|_| Err("the recogniser failed on it: please report".to_owned()));
    let Some(mut object) = recognised? else {
        return Ok(None);
    };
    let pages = std::mem::take(&mut object.pages);
    let mut windows = Vec::new();
    for (number, part) in (0u32..).zip(&object.parts) {
        let number = u16::try_from(number).map_err(|_| "more than 65536 parts".to_owned())?;
        windows.extend(formats::windows(part).into_iter().map(|(hash, offset)| Window {
            hash,
            part: number,
            offset,
        }));
    }
    let kind = object.kind;
    let extent = extent::encode(digest, bytes.len() as u64, object)?;
    Ok(Some(Encoded {
        digest,
        kind,
        extent,
        pages,
        windows,
    }))
}
