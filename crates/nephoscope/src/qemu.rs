//! Which QEMU is this, and which build of the plugin does it take?

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exit::{Failure, exit};

/// A QEMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Qemu {
    /// As it was asked for.
    program: String,
    /// As QEMU prints it: `10.0.2`.
    pub(crate) version: String,
    has_plugins: bool,
}

impl Qemu {
    /// Asks a QEMU binary.
    ///
    /// # Errors
    /// If it does not start, or is none.
    pub(crate) fn ask(program: &OsString) -> anyhow::Result<Self> {
        let shown = program.to_string_lossy();
        let start = |argument: &str| {
            Command::new(program).arg(argument).output().map_err(|error| {
                exit(
                    Failure::NoQemu,
                    format!("cannot start {shown}: {error}: install qemu-system-x86 or give its path"),
                )
            })
        };
        let printed = start("--version")?;
        let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
        let version = parse_version(&printed).ok_or_else(|| {
            exit(
                Failure::NoQemu,
                format!("{shown} is no QEMU: it must print its version for --version"),
            )
        })?;
        let help = start("--help")?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        Ok(Self {
            program: shown.into_owned(),
            version,
            has_plugins: help.lines().any(|line| line.starts_with("-plugin ")),
        })
    }

    /// The plugin API that it has.
    ///
    /// # Errors
    /// If it has no plugins, or its API is not supported.
    fn api(&self) -> anyhow::Result<u32> {
        let (shown, version) = (&self.program, &self.version);
        if !self.has_plugins {
            let message = format!(
                "{shown} {version} was built without plugins: use one configured with --enable-plugins"
            );
            return Err(exit(Failure::NoPlugins, message));
        }
        api_of(version).ok_or_else(|| {
            let message = format!("QEMU {version} is not supported: use 9.2 or later (plugin API 4 to 7)");
            exit(Failure::PluginApi, message)
        })
    }

    /// The build of the plugin for it: `$NEPHOSCOPE_PLUGIN_DIR`, else beside this program, else where packages put it.
    ///
    /// # Errors
    /// If there is none, or this QEMU takes none.
    pub(crate) fn plugin(&self) -> anyhow::Result<PathBuf> {
        let file = format!("libnephoscope-qemu-api{}.so", self.api()?);
        let beside = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_path_buf));
        let from_env = std::env::var_os("NEPHOSCOPE_PLUGIN_DIR").map(PathBuf::from);
        let mut places: Vec<PathBuf> = from_env.into_iter().collect();
        places.extend(
            beside
                .iter()
                .flat_map(|dir| [dir.join("plugins"), dir.join("../lib/nephoscope")]),
        );
        places.push(PathBuf::from("/usr/lib/nephoscope"));
        places
            .iter()
            .map(|dir| dir.join(&file))
            .find(|path| path.exists())
            .ok_or_else(|| {
                let message = format!(
                    "{file} is not found: build it with `cargo xtask build`, or set NEPHOSCOPE_PLUGIN_DIR"
                );
                exit(Failure::NoPluginLibrary, message)
            })
    }
}

fn parse_version(printed: &str) -> Option<String> {
    let rest = printed.split_once("QEMU emulator version ")?.1;
    let version: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    (!version.is_empty()).then_some(version)
}

/// The plugin API of a QEMU version (`include/plugins/qemu-plugin.h` of each release).
fn api_of(version: &str) -> Option<u32> {
    let mut numbers = version.split('.').map_while(|n| n.parse::<u32>().ok());
    match (numbers.next()?, numbers.next().unwrap_or(0)) {
        (9, 2..) | (10, 0) => Some(4),
        (10, 1) => Some(5),
        (10, 2..) => Some(6),
        (11.., _) => Some(7),
        _ => None,
    }
}

/// Whether the command line asks for KVM, and how.
#[must_use]
pub(crate) fn asks_for_kvm(arguments: &[OsString]) -> bool {
    let text: Vec<String> = arguments
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    text.iter().enumerate().any(|(i, argument)| {
        let value = text.get(i + 1).map_or("", String::as_str);
        match argument.trim_start_matches('-') {
            "enable-kvm" => argument.starts_with('-'),
            "accel" => value
                .split(',')
                .next()
                .is_some_and(|name| name == "kvm" || name == "accel=kvm"),
            "machine" | "M" => value.split(',').any(|o| {
                o.strip_prefix("accel=")
                    .is_some_and(|a| a.split(':').any(|a| a == "kvm"))
            }),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_read() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(parse_version(debian).as_deref(), Some("10.0.2"));
        assert_eq!(
            parse_version("true (GNU coreutils) 9.1\nLicense GPLv3+: GNU GPL version 3"),
            None
        );
    }

    #[test]
    fn each_release_has_the_api_of_its_header() {
        let apis: Vec<_> = ["9.1.0", "9.2.1", "10.0.2", "10.1", "10.2.0", "11.0.0", "11.1.3"]
            .map(api_of)
            .into();
        assert_eq!(apis, [None, Some(4), Some(4), Some(5), Some(6), Some(7), Some(7)]);
    }

    #[test]
    fn kvm_is_found_however_it_is_asked_for() {
        let ask = |line: &str| asks_for_kvm(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "-enable-kvm",
            "-accel kvm",
            "-accel kvm,kernel-irqchip=on",
            "-machine q35,accel=kvm",
            "-M accel=kvm:tcg",
        ] {
            assert!(ask(line), "{line}");
        }
        for line in ["-accel tcg", "-machine q35", "-name kvm", "-M q35 -cpu max"] {
            assert!(!ask(line), "{line}");
        }
    }
}
