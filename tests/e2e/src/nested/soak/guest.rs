//! What runs in the VMs of the soak.

use std::path::{Path, PathBuf};

use super::plan::{Ending, Inside, Vm};
use crate::initramfs::UP;

/// What the machine was given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// `nephoscope`, with its plugins.
    pub(super) program: PathBuf,
    pub(super) catalog: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// QEMU and its arguments, with its sockets and logs in `folder`.
pub(super) fn vmm(plan: &Vm, given: &Given, folder: &Path) -> Vec<String> {
    let mut words = vec!["qemu-system-x86_64".to_owned()];
    let mut add = |text: &str| words.extend(text.split(' ').map(str::to_owned));
    add("-nodefaults -no-user-config -display none -no-reboot -accel kvm -cpu qemu64");
    add(&format!("-name {} -smp {}", plan.name, plan.vcpus));
    add(&format!("-serial file:{}", folder.join("serial").display()));
    let own_qmp = folder.join("qmp.sock");
    add(&format!("-qmp unix:{},server=on,wait=off", own_qmp.display()));
    match plan.inside {
        Inside::Firmware => add("-m 64M"),
        Inside::Linux => {
            add("-m 128M");
            add(&format!("-kernel {}", given.kernel.display()));
            add(&format!("-initrd {}", given.initramfs.display()));
            // How many processes; without end where something else ends it.
            let end = if plan.ending == Ending::PoweredOff { 10 } else { 0 };
            words.push("-append".to_owned());
            words.push(format!(
                "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests soak.end={end}"
            ));
        }
    }
    words
}

/// What the Linux in a VM does: it starts processes, and switches itself off after so many if it was told to.
pub(super) fn init() -> String {
    format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
end=$($b sed 's/.*soak.end=\\([0-9]*\\).*/\\1/' /proc/cmdline)
echo {UP} > /dev/ttyS0
i=0
while :; do
    $b ls -l /proc/self/maps | $b md5sum > /dev/null
    i=$((i + 1))
    if [ $i = \"$end\" ]; then $b poweroff -f; fi
done
"
    )
}
