//! Walks over ranges of tables that never end: bounded, in order, and each leaf is what a single translation says.

use arbitrary::Unstructured;
use nephoscope_guest::{Gva, Root};
use nephoscope_isa::{Bounds, Ended, Walker, Want, Way};

use crate::memory::Sparse;
use crate::walk::kind;

/// Walks a range, and what else reads tables.
pub fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

fn check(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mode = kind(input.arbitrary()?).mode(input.arbitrary()?);
    let root = Root(u64::from(input.arbitrary::<u16>()?));
    let range = Gva(input.arbitrary()?)..=Gva(input.arbitrary()?);
    let range = if input.arbitrary()? {
        range
    } else {
        Gva(0)..=Gva(u64::MAX)
    };
    let want = if input.arbitrary()? {
        Want::Everything
    } else {
        Want::Executable
    };
    let bounds = Bounds {
        tables: input.int_in_range(0..=12)?,
        leaves: input.int_in_range(0..=600)?,
    };
    let memory = Sparse::read_from(input)?;
    let walker = Walker::new(mode, &memory);
    let mut last = None;
    let mut found = 0;
    let census = walker.leaves(root, &range, want, bounds, |leaf| {
        assert!(last.is_none_or(|last| leaf.va > last), "in ascending order");
        last = Some(leaf.va);
        let end = leaf.va.0 + (leaf.size_bytes - 1);
        assert!(leaf.va <= *range.end() && end >= range.start().0, "of the range");
        assert!(want == Want::Everything || leaf.permissions.execute());
        if found < 4 {
            let one = walker.translate(root, leaf.va).expect("a leaf translates");
            assert_eq!(
                (one.gpa, one.size_bytes, one.permissions),
                (leaf.gpa, leaf.size_bytes, leaf.permissions)
            );
        }
        found += 1;
    });
    assert_eq!(census.leaves, found);
    assert!(census.leaves <= bounds.leaves && census.tables <= bounds.tables);
    if let Ended::Bound { at } = census.ended {
        assert!(range.contains(&at) && last.is_none_or(|last| last <= at));
    }
    let half = mode.spaces().next().expect("every mode has addresses");
    let _ = walker.is_empty(root, &half);
    let _ = walker.isolation_pair(root, &mode.user_half());
    if let Ok(Some(way)) = Way::find(&memory, &mode, root) {
        assert!(
            way.holds(&memory, root),
            "what was found holds as long as nothing changes"
        );
    }
    Ok(())
}
