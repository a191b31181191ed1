//! The road of one event: take it, identify the page, record the change, judge it, emit findings.
