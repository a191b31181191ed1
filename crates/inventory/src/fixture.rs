//! Pages, executions and names for tests.

use std::sync::Arc;

use nephoscope_guest::{Executed, Gpa, Gva, PageId, Privilege, Root};

use crate::page::PageRecord;
use crate::report::Names;
use crate::verdict::{Unknown, Verdict};

pub(crate) fn page(id: u64, privilege: Privilege, va: u64) -> PageRecord {
    PageRecord {
        id: PageId(id),
        at_ns: id,
        gpa: Some(Gpa(0)),
        frame: 1,
        generation: 0,
        root: Root(0x1000),
        va: Gva(va),
        privilege,
        paging: true,
        bits: 64,
        first: 0,
        digest: [0; 32],
        verdict: Arc::new(Verdict::Unknown(Unknown::default())),
        executed: vec![(0, 1)],
    }
}

pub(crate) fn ran(page: u64, root: u64, incarnation: u32) -> Executed {
    Executed {
        page: PageId(page),
        root: Root(root),
        vcpu: 0,
        incarnation,
    }
}

/// No file is known.
pub(crate) struct NoNames;

impl crate::modules::ObjectFacts for NoNames {
    fn kind(&self, _object: nephoscope_catalog::ObjectId) -> Option<nephoscope_recipe::ObjectKind> {
        None
    }
}

impl Names for NoNames {
    fn placements(
        &self,
        _object: nephoscope_catalog::ObjectId,
    ) -> Vec<(String, crate::report::CandidateReport)> {
        Vec::new()
    }

    fn build_id(&self, _object: nephoscope_catalog::ObjectId) -> Option<Vec<u8>> {
        None
    }
}
