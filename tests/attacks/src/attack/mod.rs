//! The attacks, one file each. [`all`] is the list; an attack that is not in it does not run.

mod aliased;
mod bombs;
mod chain;
mod deleted;
mod disguise;
mod flash;
mod hollow;
mod huge;
mod inject;
mod jit;
mod kernel;
mod memfd;
mod patched_library;
pub mod preload;
mod selfmod;

use std::time::Duration;

use anyhow::Result;
use nephoscope_e2e::planted::Case;

use crate::group::Group;
use crate::scene::Scene;

/// One attack.
pub trait Attack: Sync {
    /// Its number in the list of what there must be; variants of one attack have the same.
    fn number(&self) -> u8;

    /// Its name, unique: words with dashes.
    fn name(&self) -> &'static str;

    /// The right answer in a few words.
    fn expected(&self) -> &'static str;

    /// The boot that it runs in.
    fn group(&self) -> Group;

    /// Whether the watch may be blind while it runs, if it says so. Otherwise a gap makes the answer wrong.
    fn may_blind(&self) -> bool {
        false
    }

    /// Does it, and judges what was seen.
    ///
    /// # Errors
    /// When the guest or the watch does not answer, or the attack itself did not work: nothing is known then.
    fn run(&self, scene: &mut Scene) -> Result<Seen>;
}

/// What was seen of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is the right answer.
    pub ok: bool,
    /// In a few words.
    pub text: String,
    /// From the first execution of the code to its finding, if there has to be one.
    pub to_finding: Option<Duration>,
}

impl Seen {
    /// The right answer.
    pub fn right(text: impl Into<String>, to_finding: Option<Duration>) -> Self {
        Seen {
            ok: true,
            text: text.into(),
            to_finding,
        }
    }

    /// Another answer, or none.
    pub fn wrong(text: impl Into<String>) -> Self {
        Seen {
            ok: false,
            text: text.into(),
            to_finding: None,
        }
    }
}

/// Of a case that the demonstration shows too.
fn of_case(case: Case) -> Seen {
    match case.found {
        Ok(sighting) => Seen::right(
            format!("f{}: {}", sighting.finding, sighting.equal),
            Some(sighting.since_first_run),
        ),
        Err(why) => Seen::wrong(why),
    }
}

/// Every attack, by number.
pub fn all() -> Vec<&'static dyn Attack> {
    let mut all: Vec<&'static dyn Attack> = vec![
        &memfd::Memfd,
        &deleted::Known,
        &deleted::Unknown,
        &inject::ThroughPtrace,
        &inject::ThroughMem,
        &preload::Preload,
        &preload::HiddenNetcat,
        &flash::Flash,
        &selfmod::SelfModifying,
        &aliased::Aliased,
        &hollow::Hollow,
        &huge::Huge,
        &patched_library::PatchedLibrary,
        &jit::Php,
        &jit::Ebpf,
        &bombs::Forks,
        &bombs::Translations,
        &bombs::Generations,
        &disguise::Padding,
        &disguise::SharedPages,
        &chain::Chain,
    ];
    all.extend(kernel::all());
    all.sort_by_key(|attack| attack.number());
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::all;

    #[test]
    fn every_attack_has_a_name_of_its_own_and_they_stand_by_number() {
        let names: BTreeSet<&str> = all().iter().map(|attack| attack.name()).collect();
        assert_eq!(names.len(), all().len());
        assert!(all().is_sorted_by_key(|attack| attack.number()));
    }
}
