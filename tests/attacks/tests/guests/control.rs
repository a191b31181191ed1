//! Ordinary work without attacks: nothing is found that is not so.

use std::time::Duration;

use nephoscope_attacks::{Campaign, control};
use nephoscope_e2e::Kernel;

#[test]
fn ordinary_work_and_upgrades_give_no_false_alarm() {
    let campaign = Campaign::prepare(nephoscope_e2e::program().unwrap()).unwrap();
    let rows = control::run(&campaign, Kernel::K6_12, Duration::from_secs(10)).unwrap();
    let wrong: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rows.len(), 4);
}
