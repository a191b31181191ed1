//! One page-table walker and one table of facts per paging mode.
