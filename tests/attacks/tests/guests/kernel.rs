//! Attacks on the guest's kernel and below it: modules, page tables, another kernel.

use nephoscope_attacks::{Attack, Campaign, Group, attack, group};
use nephoscope_e2e::Kernel;

fn are_answered_rightly(group: Group, kernel: Kernel) {
    let campaign = Campaign::prepare(nephoscope_e2e::program().unwrap()).unwrap();
    let attacks: Vec<&'static dyn Attack> = attack::all()
        .into_iter()
        .filter(|attack| attack.group() == group)
        .collect();
    let rows = campaign.run(kernel, &attacks);
    let wrong: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rows.len(), attacks.len());
}

#[test]
fn modules_and_what_the_kernel_maps_are_answered_rightly() {
    are_answered_rightly(group::KERNEL, Kernel::K6_12);
}

#[test]
fn strange_page_tables_are_answered_rightly() {
    are_answered_rightly(group::TABLES, Kernel::K6_1);
}

#[test]
fn another_kernel_by_kexec_is_answered_rightly() {
    are_answered_rightly(group::KEXEC, Kernel::K6_1);
}

#[test]
fn a_second_boot_is_answered_rightly() {
    are_answered_rightly(group::RESET, Kernel::K6_12);
}
