//! Bombs: bounded, nothing lost in silence, full sight afterwards.

use nephoscope_attacks::{Attack, Campaign, attack, group};
use nephoscope_e2e::Kernel;

#[test]
fn bombs_are_bounded_counted_and_survived() {
    let campaign = Campaign::prepare(nephoscope_e2e::program().unwrap()).unwrap();
    let attacks: Vec<&'static dyn Attack> = attack::all()
        .into_iter()
        .filter(|attack| attack.group() == group::BOMBS)
        .collect();
    let rows = campaign.run(Kernel::K6_12, &attacks);
    let wrong: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rows.len(), attacks.len());
}
