//! Which files can be reached, by Landlock.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    make_bitflags,
};

use super::{InForce, Keep};

/// The newest version of Landlock whose rights are all taken away. Older kernels have fewer.
const NEWEST: ABI = ABI::V6;

/// Nothing but what is kept; no TCP, and no abstract sockets of others.
/// Folders are opened while that is still allowed: those that only root reaches would get no rule afterwards.
pub(super) fn prepare(keep: &Keep) -> Result<RulesetCreated, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | MakeReg | RemoveFile});
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for folder in &keep.read {
        rules = allow(rules, folder, read)?;
    }
    for folder in &keep.write {
        rules = allow(rules, folder, write)?;
    }
    if let Some(kept) = &keep.kept {
        rules = rules.add_rule(PathBeneath::new(kept, write))?;
    }
    Ok(rules)
}

/// From here on.
pub(super) fn restrict(rules: Result<RulesetCreated, RulesetError>, in_force: &mut InForce) {
    match rules.and_then(RulesetCreated::restrict_self) {
        Ok(status) => match (status.ruleset, status.landlock) {
            (RulesetStatus::FullyEnforced, _) => in_force.holds("landlock", "all of it"),
            (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
                in_force.holds("landlock", format!("{effective_abi:?}, which this kernel has"));
            }
            (_, landlock) => in_force.lacks("landlock", format!("{landlock:?}")),
        },
        Err(error) => in_force.lacks("landlock", error),
    }
}

/// A folder that is not there is not needed.
fn allow(
    rules: RulesetCreated,
    folder: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(folder) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, rights)),
        Err(_) => Ok(rules),
    }
}
