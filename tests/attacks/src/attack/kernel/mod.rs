//! Attacks on and from the guest's kernel, and below it.

mod dma;
mod relocation;
mod rootkit;
mod rootkit_hidden;
mod second_boot;
mod smm;
mod tables;
mod vdso;

use super::{Attack, Seen};

/// All of them, by number.
pub(super) fn all() -> Vec<&'static dyn Attack> {
    let mut all: Vec<&'static dyn Attack> = vec![
        &rootkit::ByPatch,
        &rootkit::ByFtrace,
        &rootkit_hidden::RootkitHidden,
        &vdso::Vdso,
        &dma::Dma,
        &second_boot::Kexec,
        &second_boot::Reset,
        &relocation::OtherSymbol,
        &relocation::OtherAddend,
    ];
    all.extend(tables::ALL.iter().map(|attack| attack as &dyn Attack));
    all.extend(smm::ALL.iter().map(|attack| attack as &dyn Attack));
    all
}
