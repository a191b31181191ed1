//! The targets: `fuzz/src/bin` has a program for each.

/// One target and its bounds. Its heap is bounded by the program itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// What it reads.
    pub(crate) reads: &'static str,
    /// The longest input that is tried, in bytes.
    pub(crate) longest: usize,
}

/// An input that takes longer is a hang, in seconds: the machine may be busy, the targets take microseconds.
pub(crate) const HANG_SECONDS: u32 = 10;

/// More memory than any target needs with its fuzzer, in MiB: what C libraries take is not in the program's own bound.
pub(crate) const PROCESS_MIB: u32 = 768;

const fn target(name: &'static str, reads: &'static str, longest: usize) -> Target {
    Target { name, reads, longest }
}

/// All of them, the quick ones first.
pub(crate) const TARGETS: [Target; 33] = [
    target("frame", "frames of the ring", 256),
    target("walk", "page tables, one address at a time, against a twin", 600),
    target(
        "leaves",
        "page tables, whole ranges of them, and the ways through them",
        600,
    ),
    target("ring", "the ring's memory, whatever its writer does", 1024),
    target("windows", "content windows, against their definition", 640),
    target("elf", "user programs and libraries", 2048),
    target("vdso", "vDSO images in a kernel", 4096),
    target("firmware", "BIOS, option ROMs, UEFI flash and boot loaders", 8192),
    target(
        "module",
        "kernel modules and every table that rewrites them",
        3072,
    ),
    target("kernel", "kernel images, their tables and their symbols", 8192),
    target("compare", "a page against a part with any sites and values", 512),
    target("control", "control data of packages, and paths", 1024),
    target("dpkg", "dpkg's database in a root tree", 1024),
    target(
        "deb",
        "packages: the outer archive, its members, their headers",
        4096,
    ),
    target("tree", "root trees with any names, links and pipes", 256),
    target("catalog", "catalogs with flipped bytes: no answer is wrong", 96),
    target(
        "catalog-believed",
        "catalogs with flipped bytes, their checks forged",
        96,
    ),
    target("messages", "control messages of the plugin and to it", 1024),
    target("qmp", "QMP answers and events", 1024),
    target("ram-map", "QEMU's tables of its memory", 1024),
    target("dump", "dumps of memory: ELF cores, LiME images", 1024),
    target("partitions", "partition tables of a disk", 1024),
    target("ext4", "ext4, read once", 1024),
    target(
        "ext4-current",
        "ext4 and its journal, while they are written to",
        1024,
    ),
    target("xfs", "XFS, read once", 1024),
    target("xfs-current", "XFS and its log, while they are written to", 2048),
    target("virtqueue", "a disk's virtqueue and its requests", 1024),
    target("escape", "text on its way to a terminal", 192),
    target("server", "questions to a watch", 512),
    target("client", "a watch's answers", 1024),
    target(
        "report",
        "saved and asked reports, as `ps` and `findings` show them",
        512,
    ),
    target("evidence", "a page's evidence, as `why` shows it", 512),
    target(
        "session",
        "any events, over a small catalog and hostile memory",
        1024,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_target_has_a_program_and_committed_inputs_and_every_program_is_a_target() {
        let fuzz = crate::build::workspace().join("fuzz");
        let programs: BTreeSet<String> = std::fs::read_dir(fuzz.join("src/bin"))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(programs, targets);
        for target in TARGETS {
            let inputs = std::fs::read_dir(fuzz.join("corpus").join(target.name))
                .unwrap()
                .count();
            assert!(inputs > 0, "{} has no inputs", target.name);
        }
    }
}
