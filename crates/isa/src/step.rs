//! One entry, interpreted by the facts of its level. Everything that walks goes through [`step`].

use crate::controls::Mode;
use crate::facts::{Denials, Level, Meaning, SupervisorFetch};

/// What may be done with an address: what no entry on its way denies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permissions {
    /// Written. Supervisors may write anywhere while CR0.WP is 0.
    pub write: bool,
    /// Reached by user code at all.
    pub user: bool,
    /// Executed by user code.
    pub execute_user: bool,
    /// Executed by the supervisor.
    pub execute_supervisor: bool,
}

impl Permissions {
    /// Before the first entry nothing is denied.
    pub(crate) const ALL: Self = Self {
        write: true,
        user: true,
        execute_user: true,
        execute_supervisor: true,
    };

    /// Whether anybody may execute there.
    #[must_use]
    pub const fn execute(self) -> bool {
        self.execute_user || self.execute_supervisor
    }

    const fn without(self, denies: &Denials, entry: u64) -> Self {
        Self {
            write: self.write && !denies.write.holds(entry),
            user: self.user && !denies.user.holds(entry),
            execute_user: self.execute_user && !denies.execute_user.holds(entry),
            execute_supervisor: self.execute_supervisor && !denies.execute_supervisor.holds(entry),
        }
    }

    /// The rules that look at more than one right, applied once everything is known.
    const fn settled(self, rule: SupervisorFetch) -> Self {
        let forbidden = match rule {
            SupervisorFetch::Anywhere => false,
            SupervisorFetch::NotFromUserPages => self.user,
            SupervisorFetch::NotFromUserWritable => self.user && self.write,
        };
        Self {
            execute_user: self.execute_user && self.user,
            execute_supervisor: self.execute_supervisor && !forbidden,
            ..self
        }
    }
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Absent,
    Reserved,
    /// A table at this physical address; rights as far as they are known.
    Table(u64, Permissions),
    /// Memory at this physical address.
    Leaf(u64, Permissions),
}

/// Interprets `entry`, found at `level`, below entries that left `rights`.
pub(crate) fn step(mode: &Mode, level: &Level, entry: u64, rights: Permissions) -> Step {
    if !level.present.holds(entry) {
        return Step::Absent;
    }
    let leaf = level.leaf.holds(entry);
    let meaning = if leaf { &level.as_leaf } else { &level.as_table };
    let address = address(meaning, entry);
    if entry & reserved(mode, meaning) != 0 || mode.too_high(address) {
        return Step::Reserved;
    }
    let rights = rights.without(&meaning.denies, entry);
    if leaf {
        Step::Leaf(address, rights.settled(mode.supervisor_fetch()))
    } else {
        Step::Table(address, rights)
    }
}

fn address(meaning: &Meaning, entry: u64) -> u64 {
    meaning
        .address
        .iter()
        .fold(0, |address, field| address | (entry & field.mask) << field.left)
}

fn reserved(mode: &Mode, meaning: &Meaning) -> u64 {
    meaning
        .reserved_without
        .iter()
        .filter(|(feature, _)| !mode.has(*feature))
        .fold(meaning.reserved, |reserved, (_, bits)| reserved | bits)
}
