//! The kernel modules that L1 needs before it has a root, and KVM's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What L1 needs, by name; what they need comes with them.
pub(super) const L1: [&str; 13] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    // Ext4 asks for it by what it does.
    "crc32c_generic",
    "ext4",
    "9p",
    "9pnet_virtio",
    "kvm-amd",
    // Disks that the host's kernel serves, and one that takes its time.
    "vhost_scsi",
    "target_core_file",
    "brd",
    "dm-delay",
];

/// What a guest needs that runs guests.
pub(super) const KVM: [&str; 1] = ["kvm-amd"];

/// These modules for a kernel, out of the root of the guest that has it: names and contents, each after those it needs. What is
/// built into the kernel is left out.
pub(super) fn of(root: &Path, release: &str, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = root.join("usr/lib/modules").join(release);
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let mut out = Vec::new();
    for path in in_order(&dependencies, &builtin, wanted)? {
        out.push((format!("{}.ko", name_of(path)), content(&folder.join(path))?));
    }
    Ok(out)
}

/// Modules that lie somewhere, in the order of these.
pub(super) fn from(files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    let named = |path: &PathBuf| {
        let name = name_of(&path.to_string_lossy());
        Ok((format!("{name}.ko"), content(path)?))
    };
    files.iter().map(named).collect()
}

/// The name of a module, as it is asked for: `kvm-amd` and `kvm_amd` are one.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

/// Paths in the order in which they can be loaded. `dependencies` is `modules.dep`: a path, a colon, and the paths of all that
/// it needs, those that need others first.
fn in_order<'a>(dependencies: &'a str, builtin: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let by_name: BTreeMap<String, (&str, &str)> = lines
        .map(|(path, needs)| (name_of(path), (path, needs)))
        .collect();
    let builtin: Vec<String> = builtin.lines().map(name_of).collect();
    let mut order = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let Some((path, needs)) = by_name.get(&name) else {
            if builtin.contains(&name) {
                continue;
            }
            bail!("the kernel has no module {name}");
        };
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// A module as `insmod` takes it: Debian 13 packs them with xz.
fn content(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()?;
    anyhow::ensure!(output.status.success(), "cannot unpack {}", path.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_those_they_need_and_built_in_ones_not_at_all() {
        let dependencies = "kernel/a/kvm-amd.ko.xz: kernel/a/kvm.ko.xz kernel/b/irqbypass.ko.xz\n\
                            kernel/a/kvm.ko.xz: kernel/b/irqbypass.ko.xz\nkernel/b/irqbypass.ko.xz:\n";
        let order = in_order(
            dependencies,
            "kernel/fs/ext4/ext4.ko\n",
            &["kvm", "ext4", "kvm-amd"],
        )
        .unwrap();
        assert_eq!(
            order,
            [
                "kernel/b/irqbypass.ko.xz",
                "kernel/a/kvm.ko.xz",
                "kernel/a/kvm-amd.ko.xz"
            ]
        );
        let error = in_order(dependencies, "", &["nowhere"]).unwrap_err();
        assert!(error.to_string().contains("no module nowhere"));
    }
}
