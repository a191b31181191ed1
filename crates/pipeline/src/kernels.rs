//! Which kernel is this guest's now? A guest can boot into another one by itself (kexec), and no device says so.
//!
//! Pages that a kernel runs are of one image at one place. When several in a row are of another, and none of the one
//! before, another kernel has taken over. One page proves nothing: any kernel can hold a copy of another's, and run it.

use nephoscope_catalog::ObjectId;
use nephoscope_guest::PageId;

/// So many pages in a row; a kernel that starts runs hundreds.
const IN_A_ROW: usize = 8;

/// A kernel: its image, and how far it was moved.
pub(crate) type Kernel = (ObjectId, u64);

/// What has run as kernel.
#[derive(Debug, Default)]
pub(crate) struct Kernels {
    current: Option<Kernel>,
    other: Option<(Kernel, Vec<PageId>)>,
}

impl Kernels {
    /// A page of this kernel ran for the first time. Its pages in a row, if it has taken over with this one.
    pub(crate) fn ran(&mut self, kernel: Kernel, page: PageId) -> Option<Vec<PageId>> {
        if *self.current.get_or_insert(kernel) == kernel {
            self.other = None;
            return None;
        }
        let (other, mut pages) = self.other.take().unwrap_or((kernel, Vec::new()));
        if other != kernel {
            pages.clear();
        }
        if !pages.contains(&page) {
            pages.push(page);
        }
        if pages.len() >= IN_A_ROW {
            self.current = Some(kernel);
            return Some(pages);
        }
        self.other = Some((kernel, pages));
        None
    }

    /// The machine was reset.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Kernel = (ObjectId(1), 0);
    const NEW: Kernel = (ObjectId(2), 0x20_0000);

    #[test]
    fn another_kernel_takes_over_with_pages_in_a_row() {
        let mut kernels = Kernels::default();
        assert_eq!(kernels.ran(OLD, PageId(1)), None);
        let mut said = (10..).map(|n| kernels.ran(NEW, PageId(n)));
        let pages = said.find_map(|pages| pages).unwrap();
        assert_eq!(pages, (10..18).map(PageId).collect::<Vec<_>>());
        assert_eq!(kernels.ran(NEW, PageId(30)), None, "it is the one that runs now");
    }

    #[test]
    fn a_kernel_that_runs_copies_of_anothers_pages_is_itself() {
        let mut kernels = Kernels::default();
        kernels.ran(OLD, PageId(1));
        for n in 0..100 {
            assert_eq!(kernels.ran(NEW, PageId(2 * n)), None);
            if n % 5 == 0 {
                assert_eq!(kernels.ran(OLD, PageId(2 * n + 1)), None);
            }
        }
    }

    #[test]
    fn one_page_that_is_looked_at_again_is_one_page() {
        let mut kernels = Kernels::default();
        kernels.ran(OLD, PageId(1));
        assert!((0..100).all(|_| kernels.ran(NEW, PageId(2)).is_none()));
    }
}
