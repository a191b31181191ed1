//! An image as it lies once loaded, with the fields that its base relocations name.
//!
//! ```text
//!  in the file   headers │ .text │ .data │ .reloc                 raw, packed
//!  loaded        headers │  .text    │    .data  │   .reloc       each at its virtual address, zeros between
//!                              ▲ field += where it is - where it was linked
//! ```
//!
//! `PeCoffLoaderLoadImage` and `PeCoffLoaderRelocateImage` of EDK2's `BasePeCoffLib`; Microsoft's PE format, "The
//! .reloc section". Images in flash run as they are, where they were linked to.

use object::pe::{IMAGE_REL_BASED_DIR64, IMAGE_REL_BASED_HIGHLOW};
use object::read::pe::RelocationBlockIterator;

use super::{MAX_LOADED_BYTES, MAX_RELOCATIONS};
use crate::firmware::part;
use crate::kernel::bytes::{index, put};
use crate::object::Part;
use crate::site::{Fix, Form, Site, SiteKind, Target, Value, Values};

/// A piece of an image: where it goes, and what.
pub(super) struct Piece<'a> {
    pub(super) at: u64,
    pub(super) bytes: &'a [u8],
}

/// An image that was laid out.
pub(in crate::firmware) struct Loaded {
    /// The address of its first byte as linked.
    link: u64,
    bytes: Vec<u8>,
    sites: Vec<Site>,
}

impl Loaded {
    /// Puts the pieces where they go; `None` if one goes where no image reaches, or there is nothing. `relocations`:
    /// where the directory is once loaded, and by how much the addresses in it are larger than offsets.
    pub(super) fn lay_out(
        link: u64,
        pieces: &[Piece<'_>],
        relocations: std::ops::Range<u64>,
        ahead: u64,
    ) -> Option<Self> {
        let end = |piece: &Piece<'_>| index(piece.at).checked_add(piece.bytes.len());
        let mut len = 0;
        for piece in pieces.iter().filter(|piece| !piece.bytes.is_empty()) {
            len = len.max(end(piece).filter(|end| *end <= MAX_LOADED_BYTES)?);
        }
        let mut bytes = vec![0; len];
        for piece in pieces {
            put(&mut bytes, index(piece.at), piece.bytes);
        }
        let directory = bytes.get(index(relocations.start)..index(relocations.end));
        let sites = sites(directory.unwrap_or(&[]), ahead, len);
        (len > 0).then_some(Self { link, bytes, sites })
    }

    /// How much memory it takes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The part, for people under this name.
    pub(in crate::firmware) fn part(self, name: &str) -> Part {
        let moved = |form| {
            let fix = Fix {
                at: 0,
                form,
                to: Target::Own,
                addend: 0,
            };
            vec![Value {
                fixes: vec![fix],
                ..Value::own()
            }]
        };
        let values = Values {
            sets: vec![moved(Form::Abs32), moved(Form::Abs64)],
            ..Values::default()
        };
        part(name, self.link, &self.bytes, self.sites, values)
    }
}

/// The fields that a directory of base relocations names. What is malformed ends them, and what overlaps is left out: a
/// field that is no site must then be as linked, which names nothing wrongly.
pub(super) fn sites(directory: &[u8], ahead: u64, len: usize) -> Vec<Site> {
    let blocks = RelocationBlockIterator::new(directory).map_while(Result::ok);
    let mut sites: Vec<Site> = blocks
        .flatten()
        .take(MAX_RELOCATIONS)
        .filter_map(|field| {
            let (set, width) = match field.typ {
                IMAGE_REL_BASED_HIGHLOW => (0, 4),
                IMAGE_REL_BASED_DIR64 => (1, 8),
                _ => return None,
            };
            let at = u64::from(field.virtual_address).checked_sub(ahead)?;
            let end = index(at).checked_add(usize::from(width))?;
            (end <= len).then_some(Site {
                at: u32::try_from(at).ok()?,
                len: width,
                kind: SiteKind::Relocation,
                set,
            })
        })
        .collect();
    sites.sort_by_key(|site| site.at);
    let mut end = 0;
    sites.retain(|site| {
        let apart = site.at >= end;
        if apart {
            end = site.at.saturating_add(u32::from(site.len));
        }
        apart
    });
    sites
}
