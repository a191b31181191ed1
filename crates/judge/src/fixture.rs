//! Guests for the rules' tests, fed by hand.

use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::{Executed, Gpa, Gva, PageId, Privilege, Root};
use nephoscope_inventory::{CandidateReport, Change, Inventory, Names, ObjectFacts, PageRecord, Verdict};
use nephoscope_recipe::ObjectKind;

/// Knows no file's name.
pub(crate) struct NoNames;

impl ObjectFacts for NoNames {
    fn kind(&self, _: ObjectId) -> Option<ObjectKind> {
        None
    }
}

impl Names for NoNames {
    fn placements(&self, _: ObjectId) -> Vec<(String, CandidateReport)> {
        Vec::new()
    }

    fn build_id(&self, _: ObjectId) -> Option<Vec<u8>> {
        None
    }
}

/// One page runs, in a frame of its own; a user's in the one address space there is.
pub(crate) fn run(inventory: &mut Inventory, id: u64, privilege: Privilege, verdict: Verdict) -> Vec<Change> {
    let mut changes = Vec::new();
    let base = match privilege {
        Privilege::User => 0x10_0000,
        Privilege::Supervisor => 0xffff_ffff_8000_0000,
    };
    let page = PageRecord {
        id: PageId(id),
        at_ns: id,
        gpa: Some(Gpa(id << 12)),
        frame: id << 12,
        generation: 0,
        root: Root(0x1000),
        va: Gva(base + (id << 12)),
        privilege,
        paging: true,
        bits: 64,
        first: 0,
        digest: [0; 32],
        verdict: Arc::new(verdict),
        executed: vec![(0, 1)],
    };
    inventory.captured(page, &mut changes);
    if privilege == Privilege::User {
        let executed = Executed {
            page: PageId(id),
            root: Root(0x1000),
            vcpu: 0,
            incarnation: 1,
        };
        inventory.executed(id, executed, &mut changes);
    }
    changes
}
