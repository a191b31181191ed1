//! Boots that attacks can share.

use nephoscope_e2e::Options;

/// How a guest is started for some attacks. Attacks of one group run one after the other in one guest; an attack that
/// leaves the guest unfit for others, or needs another machine, has a group of its own.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Groups are the same if their names are.
    pub name: &'static str,
    /// Changes the options of the boot; the kernel, the watch and the disks are there already.
    pub adapt: fn(&mut Options),
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Group {}

/// One vCPU, the plain machine: attacks of user programs that leave nothing behind.
pub const COMMON: Group = Group {
    name: "common",
    adapt: |_| {},
};

/// Those that try to make the monitor lose what it sees, or grow without end. With two vCPUs, so that one can work against
/// the other.
pub const BOMBS: Group = Group {
    name: "bombs",
    adapt: |options| options.smp = 2,
};

/// Attacks on the kernel that leave nothing behind.
pub const KERNEL: Group = Group {
    name: "kernel",
    adapt: |_| {},
};

/// The guest gets another kernel.
pub const KEXEC: Group = Group {
    name: "kexec",
    adapt: |_| {},
};

/// The machine is reset, and boots again.
pub const RESET: Group = Group {
    name: "reset",
    adapt: |options| {
        options
            .extra
            .extend(["-action", "reboot=reset"].map(str::to_owned))
    },
};

/// Page tables with everything the architecture has: 1 GiB leaves, and a display whose memory can hold a root.
pub const TABLES: Group = Group {
    name: "tables",
    adapt: |options| {
        options.cpu.push_str(",+pdpe1gb");
        options.extra.extend(["-device", "VGA"].map(str::to_owned));
    },
};
