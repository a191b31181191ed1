//! What the command line of QEMU says: `-plugin LIBRARY,socket=PATH,wait_ms=N,…`.

use std::path::PathBuf;

/// The plugin's arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Config {
    /// Where monitors connect.
    pub(crate) socket: PathBuf,
    /// How long the guest waits for its first monitor before it runs unwatched, in milliseconds.
    pub(crate) wait_ms: u64,
    /// Bytes of each vCPU's ring.
    pub(crate) ring_bytes: usize,
    /// How long a vCPU waits for room in its ring before a frame is lost, in milliseconds.
    pub(crate) full_ms: u64,
    /// How often marks are collected, in milliseconds.
    pub(crate) collect_ms: u64,
    /// The VM runs under KVM: nothing is translated here, and executable frames are guarded.
    pub(crate) kvm: bool,
    /// Where the servers of disks listen whose files are followed.
    pub(crate) disks: Vec<PathBuf>,
    /// Where QEMU's test protocol is spoken.
    pub(crate) qtest: Option<PathBuf>,
}

impl Config {
    /// Reads `name=value` arguments; the error says which one is wrong and what it may be.
    pub(crate) fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut config = Self {
            socket: PathBuf::new(),
            wait_ms: 0,
            ring_bytes: 8 << 20,
            full_ms: 2_000,
            collect_ms: 4,
            kvm: false,
            disks: Vec::new(),
            qtest: None,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            match name {
                "socket" => config.socket = PathBuf::from(value),
                "wait_ms" => config.wait_ms = number(argument, value, 600_000)?,
                "ring_kib" => {
                    let kib = number(argument, value, 128 << 10)?;
                    config.ring_bytes = usize::try_from(kib).unwrap_or(0) << 10;
                }
                "full_ms" => config.full_ms = number(argument, value, 60_000)?,
                "collect_ms" => config.collect_ms = number(argument, value, 10)?.max(1),
                "disk" => config.disks.push(PathBuf::from(value)),
                "qtest" => config.qtest = Some(PathBuf::from(value)),
                "kvm" if value == "on" => config.kvm = true,
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        if !config.disks.is_empty() && config.qtest.is_none() && !config.kvm {
            return Err(
                "disk=PATH needs qtest=PATH: what a disk's server writes to, QEMU does not see".into(),
            );
        }
        if config.socket.as_os_str().is_empty() {
            return Err("socket=PATH is missing: where monitors connect".into());
        }
        Ok(config)
    }
}

fn number(argument: &str, value: &str, most: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if number <= most => Ok(number),
        _ => Err(format!("{argument:?} needs a number from 0 to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_and_wrong_ones_named() {
        let config = Config::parse(["socket=/run/x", "wait_ms=5", "ring_kib=64"].into_iter()).unwrap();
        assert_eq!((config.wait_ms, config.ring_bytes), (5, 65_536));
        for bad in [
            &["wait_ms=5"][..],
            &["socket=/x", "nonsense=1"],
            &["socket=/x", "kvm=maybe"],
            &["socket=/x", "wait_ms=x"],
            &["socket=/x", "collect_ms=11"],
            &["socket=/x", "disk=/y"],
        ] {
            let error = Config::parse(bad.iter().copied()).unwrap_err();
            assert!(
                error.contains("socket") || error.contains(bad[1].split('/').next().unwrap()),
                "{error}"
            );
        }
    }
}
