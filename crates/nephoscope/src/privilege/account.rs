//! Whom a monitor becomes that root started.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, ensure};
use rustix::fs::{Gid, Uid};
use rustix::process::{geteuid, getuid};
use serde::{Deserialize, Serialize};

use super::{InForce, Keep};

/// A user and a group, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

/// The user that packages may make for monitors.
const SYSTEM_USER: &str = "nephoscope";

/// Numbers for users that exist for as long as a process runs: systemd's `DynamicUser=` takes them from here too
/// (systemd.io/UIDS-GIDS).
const TRANSIENT: std::ops::Range<u32> = 61_184..65_520;

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl FromStr for Account {
    type Err = String;

    /// `NAME`, `UID` or `UID:GID`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let (user, group) = text
            .split_once(':')
            .map_or((text, None), |(user, group)| (user, Some(group)));
        let found = match number(user) {
            Some(uid) => Some(Account { uid, gid: uid }),
            None => named(user),
        };
        let account = found.ok_or_else(|| format!("there is no user {user:?}"))?;
        match group {
            None => Ok(account),
            Some(group) => {
                let gid = number(group).ok_or_else(|| format!("{group:?} is no number of a group"))?;
                Ok(Account { gid, ..account })
            }
        }
    }
}

/// The line of `/etc/passwd` (passwd(5)) for this name.
fn named(name: &str) -> Option<Account> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        is_it.then_some(Account { uid, gid })
    })
}

/// Whom to become; nobody else if root did not start this.
pub(super) fn choose(keep: &Keep) -> anyhow::Result<Option<Account>> {
    if !geteuid().is_root() {
        let own = getuid().as_raw();
        let asked = keep.account.map_or(own, |account| account.uid);
        ensure!(
            asked == own,
            "only root can become user {asked}: leave out --user"
        );
        return Ok(None);
    }
    let account = keep.account.or_else(|| named(SYSTEM_USER));
    let account = match account {
        Some(account) => account,
        None => transient(keep.kept.as_ref().map(|kept| kept.path("")).as_deref())?,
    };
    Ok(Some(account).filter(|account| account.uid != 0))
}

/// A number that no user has and no process runs as: then nobody else can reach this monitor, nor it anybody else. Not
/// `nobody`, who is shared.
fn transient(vm: Option<&Path>) -> anyhow::Result<Account> {
    let taken = running_as();
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_known = |uid: u32| {
        known
            .lines()
            .any(|line| line.split(':').nth(2) == Some(&uid.to_string()))
    };
    let name = vm
        .map(|vm| vm.as_os_str().as_encoded_bytes().to_vec())
        .unwrap_or_default();
    let mut seed = u32::from_le_bytes(*blake3::hash(&name).as_bytes().first_chunk().unwrap_or(&[0; 4]));
    for _ in TRANSIENT {
        let uid = TRANSIENT.start + seed % (TRANSIENT.end - TRANSIENT.start);
        if !taken.contains(&uid) && !is_known(uid) {
            return Ok(Account { uid, gid: uid });
        }
        seed = seed.wrapping_add(1);
    }
    anyhow::bail!("no number for a user is free: give one with --user")
}

fn running_as() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    texts
        .filter_map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
            line.split_whitespace().next()?.parse().ok()
        })
        .collect()
}

/// Becomes it.
pub(super) fn become_it(account: Option<Account>, keep: &Keep, in_force: &mut InForce) -> anyhow::Result<()> {
    let Some(Account { uid, gid }) = account else {
        let own = getuid();
        if own.is_root() {
            in_force.lacks("user", "root, as --user says");
        } else {
            in_force.holds("user", format!("{} since the start", own.as_raw()));
        }
        return Ok(());
    };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if let Some(kept) = &keep.kept {
        kept.give(user, group)
            .with_context(|| format!("cannot give {} to user {uid}", kept.path("").display()))?;
    }
    // This holds for this thread; there is no other.
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user))
        .with_context(|| format!("cannot become user {uid}: see --user"))?;
    ensure!(
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err(),
        "root could be had back after becoming user {uid}"
    );
    in_force.holds("user", format!("{uid}, root before"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_given_by_name_or_number_and_wrong_ones_refused() {
        assert_eq!(
            "65534".parse(),
            Ok(Account {
                uid: 65534,
                gid: 65534
            })
        );
        assert_eq!("7:8".parse(), Ok(Account { uid: 7, gid: 8 }));
        assert_eq!("root".parse(), Ok(Account { uid: 0, gid: 0 }));
        for wrong in ["no-such-user", "7:x", "4294967295", ""] {
            assert!(wrong.parse::<Account>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_transient_user_is_one_that_nobody_is() {
        let first = transient(Some(Path::new("/run/a"))).unwrap();
        assert!(TRANSIENT.contains(&first.uid) && !running_as().contains(&first.uid));
        assert_ne!(transient(Some(Path::new("/run/b"))).unwrap(), first);
    }
}
