//! How much of the kernel's code was not as in its image, and which mechanism explains it.

use std::collections::BTreeMap;

use nephoscope_guest::Privilege;
use nephoscope_inventory::{Inventory, Verdict};

/// Counters `site_KIND_places` and `site_KIND_bytes` over all identified captures of kernel pages, named as
/// [`nephoscope_recipe::SiteKind`] is written.
pub(crate) fn counters(inventory: &Inventory) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let kernel = inventory
        .pages()
        .filter(|page| page.privilege == Privilege::Supervisor && page.paging && page.va.is_high_half());
    for page in kernel {
        let Verdict::Identified(identified) = &*page.verdict else {
            continue;
        };
        for (kind, places, bytes) in &identified.sites {
            let kind = serde_json::to_value(kind).ok();
            let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("unnamed");
            *counters.entry(format!("site_{kind}_places")).or_default() += u64::from(*places);
            *counters.entry(format!("site_{kind}_bytes")).or_default() += u64::from(*bytes);
        }
    }
    counters
}
