//! The attacks that share the plain machine, all in one boot.

use nephoscope_attacks::{Attack, Campaign, attack, group};
use nephoscope_e2e::Kernel;

#[test]
fn attacks_that_share_the_plain_machine_are_answered_rightly() {
    let campaign = Campaign::prepare(nephoscope_e2e::program().unwrap()).unwrap();
    let attacks: Vec<&'static dyn Attack> = attack::all()
        .into_iter()
        .filter(|attack| attack.group() == group::COMMON)
        .collect();
    let rows = campaign.run(Kernel::K6_1, &attacks);
    let wrong: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rows.len(), attacks.len());
}
