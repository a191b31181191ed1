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

use super::{MAX_LOADED_BYTES, MAX_RELOCATIONS, vectors};
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
        let mut sets = vec![
            vec![moved(Form::Abs32, Vec::new())],
            vec![moved(Form::Abs64, Vec::new())],
        ];
        let mut sites = self.sites;
        for table in vectors::tables(&self.bytes) {
            let set = u32::try_from(sets.len()).unwrap_or(u32::MAX);
            let entry = self.link.wrapping_add(table.entry).to_le_bytes();
            sets.push(vec![Value::own(), moved(Form::Abs64, entry.to_vec())]);
            sites.extend(table.fields.iter().map(|at| Site {
                at: *at,
                len: 8,
                kind: SiteKind::SelfModified,
                set,
            }));
        }
        let values = Values {
            sets,
            ..Values::default()
        };
        part(name, self.link, &self.bytes, apart(sites), values)
    }
}

/// A field that moves with the image.
fn moved(form: Form, bytes: Vec<u8>) -> Value {
    let fix = Fix {
        at: 0,
        form,
        to: Target::Own,
        addend: 0,
    };
    Value {
        bytes,
        fixes: vec![fix],
        ..Value::own()
    }
}

/// Sorted, without those that overlap one before them.
fn apart(mut sites: Vec<Site>) -> Vec<Site> {
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

/// The fields that a directory of base relocations names. What is malformed ends them, and what overlaps is left out: a
/// field that is no site must then be as linked, which names nothing wrongly.
pub(super) fn sites(directory: &[u8], ahead: u64, len: usize) -> Vec<Site> {
    let blocks = RelocationBlockIterator::new(directory).map_while(Result::ok);
    let sites = blocks
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
    apart(sites)
}
