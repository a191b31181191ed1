//! Images that are loaded in this guest: which kernel, how far it was moved, which modules, and where.
//!
//! An image is placed by the first page that equals its recipe there. Later pages at its addresses are compared at once
//! with what must be there; a page that is something else is then known to be modified without any search. What equal
//! pages tell of addresses is kept per image, so that every field of one image has to agree with all the others.

use std::sync::Arc;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_recipe::{
    Comparison, Env, FUNCTIONS, Object, ObjectKind, PARAVIRT, Part, PartKind, Solver, Values, module,
};

/// The lowest address of kernel text and data; what is linked below is a per-cpu offset, which does not move.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// A part at its place.
#[derive(Clone, Debug)]
pub(crate) struct PlacedPart {
    /// Its number in the object.
    pub(crate) number: u16,
    /// The part.
    pub(crate) part: Arc<Part>,
    /// Where its byte 0 is.
    pub(crate) base: u64,
}

/// An image in this guest.
#[derive(Debug)]
pub(crate) struct Image {
    /// The file.
    pub(crate) id: ObjectId,
    /// Its parts, as far as they are placed.
    pub(crate) parts: Vec<PlacedPart>,
    /// What its pages told of addresses.
    pub(crate) solver: Solver,
    /// Its facts; for a module outlines of its parts too, which say what its exported addresses mean.
    object: Object,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Images {
    images: Vec<Image>,
}

/// Images kept: more than a guest has modules; it stops one that loads and unloads for ever. The oldest module goes, and
/// the oldest kernel if there is none: it stops one that shows a page of a kernel everywhere.
const MAX_IMAGES: usize = 2048;

impl Image {
    fn is_kernel(&self) -> bool {
        self.object.kind == ObjectKind::Kernel
    }

    fn slide(&self) -> u64 {
        self.parts
            .first()
            .map_or(0, |placed| placed.base.wrapping_sub(placed.part.link))
    }

    /// Where a module's core text is.
    fn text(&self) -> Option<&PlacedPart> {
        self.parts
            .iter()
            .find(|placed| placed.part.kind == PartKind::ModuleText)
    }

    fn export(&self, name: &str) -> Option<u64> {
        let exports = &self.object.facts.exports;
        let at = exports.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
        exports.get(at).map(|(_, address)| *address)
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let address = self.export(name)?;
        if self.is_kernel() {
            return Some(if address >= KERNEL_BASE {
                address.wrapping_add(self.slide())
            } else {
                address
            });
        }
        module::resolve(&self.object, self.text()?.base, &self.solver, address)
    }

    /// Whether an address is in one of the lists of functions that the parts carry.
    fn lists(&self, va: u64, list: u16) -> bool {
        self.parts.iter().any(|placed| {
            let values = &placed.part.values;
            let link = if self.is_kernel() {
                va.wrapping_sub(self.slide())
            } else {
                // A module's lists count from its core text.
                self.text().map_or(u64::MAX, |text| va.wrapping_sub(text.base))
            };
            let offset = u32::try_from(link.wrapping_sub(values.lists_from)).ok();
            values
                .lists
                .get(usize::from(list))
                .zip(offset)
                .is_some_and(|(list, o)| list.binary_search(&o).is_ok())
        })
    }
}

impl Images {
    /// Parts that reach into the page at `va`, with the number of the image they are of.
    pub(crate) fn at(&self, va: u64) -> Vec<(usize, PlacedPart)> {
        let mut found = Vec::new();
        for (number, image) in self.images.iter().enumerate().rev() {
            for placed in &image.parts {
                let end = placed.base.saturating_add(placed.part.bytes.len() as u64);
                if placed.base < va.saturating_add(4096) && va < end {
                    found.push((number, placed.clone()));
                }
            }
        }
        found
    }

    /// An image by its number.
    pub(crate) fn get(&self, number: usize) -> Option<&Image> {
        self.images.get(number)
    }

    /// The image that has this part at `base`.
    fn find(&self, id: ObjectId, number: u16, base: u64) -> Option<usize> {
        self.images.iter().position(|image| {
            image.id == id
                && image
                    .parts
                    .iter()
                    .any(|placed| placed.number == number && placed.base == base)
        })
    }

    /// What to compare a part at `base` with: what its image told, if it is one of a placed image.
    pub(crate) fn solver(&self, id: ObjectId, part: &Part, number: u16, base: u64) -> Solver {
        let here = self.find(id, number, base);
        let image = here.or_else(|| self.host(id, part, number, base));
        image
            .and_then(|image| self.images.get(image))
            .map(|image| image.solver.clone())
            .unwrap_or_default()
    }

    /// The image of this file that a further part at `base` can belong to.
    fn host(&self, id: ObjectId, part: &Part, number: u16, base: u64) -> Option<usize> {
        self.images.iter().position(|image| {
            let slide = base.wrapping_sub(part.link);
            image.id == id
                && image.parts.iter().all(|placed| placed.number != number)
                && (!image.is_kernel() || image.slide() == slide)
        })
    }

    /// A page equalled this part with byte 0 at `base`. True if that, or what the page told, is news.
    pub(crate) fn place(
        &mut self,
        catalog: &Catalog,
        id: ObjectId,
        number: u16,
        part: &Arc<Part>,
        base: u64,
        comparison: &Comparison,
    ) -> Result<bool, ReadError> {
        let mut news = false;
        let image = match self.find(id, number, base) {
            Some(image) => image,
            None => {
                news = true;
                self.add(catalog, id, number, part, base)?
            }
        };
        if let Some(image) = self.images.get_mut(image) {
            let before = image.solver.clone();
            comparison.learn(&mut image.solver);
            if let Some(unknown) = module::text_unknown(&image.object, part.kind) {
                image.solver.set(unknown, base);
            }
            news |= image.solver != before;
        }
        Ok(news)
    }

    fn add(
        &mut self,
        catalog: &Catalog,
        id: ObjectId,
        number: u16,
        part: &Arc<Part>,
        base: u64,
    ) -> Result<usize, ReadError> {
        let placed = PlacedPart {
            number,
            part: part.clone(),
            base,
        };
        if let Some(host) = self.host(id, part, number, base)
            && let Some(image) = self.images.get_mut(host)
        {
            image.parts.push(placed);
            return Ok(host);
        }
        let info = catalog.object(id)?;
        let mut parts = vec![placed];
        let mut object = Object {
            kind: info.kind,
            facts: info.facts.clone(),
            loads: Vec::new(),
            pages: Vec::new(),
            parts: Vec::new(),
        };
        if info.kind == ObjectKind::Kernel {
            // The kernel moves as a whole: one page tells where all of it is.
            let slide = base.wrapping_sub(part.link);
            parts.clear();
            for (number, about) in (0_u16..).zip(&info.parts) {
                if matches!(about.kind, PartKind::KernelText | PartKind::KernelInit) {
                    let part = catalog.part(id, number)?;
                    let base = part.link.wrapping_add(slide);
                    parts.push(PlacedPart { number, part, base });
                }
            }
        } else {
            for number in (0_u16..).take(info.parts.len()) {
                object.parts.push(outline(&*catalog.part(id, number)?));
            }
        }
        self.remember(Image {
            id,
            parts,
            solver: Solver::default(),
            object,
        });
        Ok(self.images.len() - 1)
    }

    fn remember(&mut self, image: Image) {
        if self.images.len() >= MAX_IMAGES {
            let oldest = self.images.iter().position(|image| !image.is_kernel());
            self.images.remove(oldest.unwrap_or(0));
        }
        self.images.push(image);
    }

    /// The kernels that are placed.
    pub(crate) fn kernels(&self) -> impl Iterator<Item = ObjectId> {
        self.images
            .iter()
            .filter(|image| image.is_kernel())
            .map(|image| image.id)
    }

    /// Modules whose core text is placed and whose init part is not, with the number of that part.
    pub(crate) fn without_init(&self) -> Vec<(ObjectId, u16)> {
        let placed = |image: &Image, kind| image.parts.iter().any(|placed| placed.part.kind == kind);
        let modules = self
            .images
            .iter()
            .filter(|image| placed(image, PartKind::ModuleText) && !placed(image, PartKind::ModuleInit));
        let mut found: Vec<(ObjectId, u16)> = modules
            .filter_map(|image| {
                let parts = (0_u16..).zip(&image.object.parts);
                let (number, _) = parts
                    .into_iter()
                    .find(|(_, part)| part.kind == PartKind::ModuleInit)?;
                Some((image.id, number))
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Their releases, as modules name them.
    pub(crate) fn releases(&self) -> Vec<String> {
        let kernels = self.images.iter().filter(|image| image.is_kernel());
        let mut releases: Vec<String> = kernels
            .filter_map(|image| image.object.facts.name.clone())
            .collect();
        releases.sort_unstable();
        releases.dedup();
        releases
    }

    /// Another kernel took over: the one before and its modules are gone, and the new one has none yet.
    pub(crate) fn only_kernel(&mut self, id: ObjectId) {
        let last = self
            .images
            .iter()
            .rposition(|image| image.id == id && image.is_kernel());
        if let Some(last) = last {
            self.images.truncate(last + 1);
            self.images.drain(..last);
        }
    }

    /// Everything is gone: the machine was reset.
    pub(crate) fn clear(&mut self) {
        self.images.clear();
    }
}

/// What the others of its object have to know of a part: it has no bytes.
fn outline(part: &Part) -> Part {
    Part {
        kind: part.kind,
        name: part.name.clone(),
        link: part.link,
        placement: part.placement,
        bytes: Vec::new(),
        sites: Vec::new(),
        values: Values {
            unknowns: part.values.unknowns.clone(),
            ..Values::default()
        },
    }
}

impl Env for Images {
    fn symbol(&self, name: &str) -> Option<u64> {
        // The latest first: a module that was loaded again is where it is now.
        self.images.iter().rev().find_map(|image| image.symbol(name))
    }

    fn is_function(&self, va: u64) -> bool {
        self.images.iter().any(|image| image.lists(va, FUNCTIONS))
    }

    fn is_paravirt(&self, va: u64) -> bool {
        self.images
            .iter()
            .any(|image| image.is_kernel() && image.lists(va, PARAVIRT))
    }

    fn is_data(&self, name: &str) -> bool {
        let modules = self.images.iter().filter(|image| !image.is_kernel());
        modules
            .into_iter()
            .any(|image| image.export(name).is_some_and(module::is_data))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nephoscope_recipe::{Facts, Placement};

    use super::*;

    fn image(kind: ObjectKind, base: u64) -> Image {
        let part = Part {
            kind: PartKind::ModuleText,
            name: "text".into(),
            link: 0,
            bytes: vec![0; 4096],
            sites: Vec::new(),
            placement: Placement::Aligned(4096),
            values: Values::default(),
        };
        let part = Arc::new(part);
        Image {
            id: ObjectId(0),
            parts: vec![PlacedPart {
                number: 0,
                part,
                base,
            }],
            solver: Solver::default(),
            object: Object {
                kind,
                facts: Facts::default(),
                loads: Vec::new(),
                pages: Vec::new(),
                parts: Vec::new(),
            },
        }
    }

    /// A kernel of release 1.0 runs here, which exports these symbols.
    pub(crate) fn running(exports: &[(&str, u64)]) -> Images {
        let mut kernel = image(ObjectKind::Kernel, 0);
        kernel.parts.clear();
        kernel.object.facts = Facts {
            name: Some("1.0".into()),
            exports: exports
                .iter()
                .map(|(name, at)| ((*name).to_owned(), *at))
                .collect(),
            ..Facts::default()
        };
        Images { images: vec![kernel] }
    }

    /// Which of these images are there, by where they lie.
    fn there(images: &Images, numbers: impl Iterator<Item = u64>) -> Vec<u64> {
        numbers.filter(|n| !images.at(n << 12).is_empty()).collect()
    }

    #[test]
    fn max_images_stops_a_guest_that_loads_modules_for_ever_and_the_oldest_go() {
        let mut images = running(&[]);
        let most = MAX_IMAGES as u64;
        for number in 1..=most + 2 {
            images.remember(image(ObjectKind::KernelModule, number << 12));
        }
        assert_eq!(images.images.len(), MAX_IMAGES);
        assert_eq!(there(&images, 1..6), [4, 5], "with the kernel three too many");
        assert_eq!(there(&images, most..most + 9), [most, most + 1, most + 2]);
        assert_eq!(images.releases(), ["1.0"]);
    }

    #[test]
    fn max_images_stops_a_guest_that_shows_kernels_everywhere() {
        let mut images = Images::default();
        let most = MAX_IMAGES as u64;
        for number in 1..=most + 2 {
            images.remember(image(ObjectKind::Kernel, number << 12));
        }
        assert_eq!(images.images.len(), MAX_IMAGES);
        assert_eq!(there(&images, 1..5), [3, 4]);
        assert_eq!(there(&images, most..most + 9), [most, most + 1, most + 2]);
    }
}
