//! What the guest is made of. Any change here changes the key under which the guest is kept.

/// Raised when the way of building changes and neither the packages nor the files below show it.
pub(super) const BUILDER_VERSION: &[u8] = b"1";

/// The suites of the machine from which the guest is made.
pub(super) const SUITES: [&str; 3] = ["bookworm", "bookworm-updates", "bookworm-security"];

/// Where the second kernel comes from.
pub(super) const SECOND_KERNEL_SUITE: &str = "trixie";

/// What is installed, beyond what every Debian has and what these depend on.
pub(super) const PACKAGES: [&str; 20] = [
    "busybox",
    "curl",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-amd64",
    "netcat-openbsd",
    "nginx",
    "openssh-client",
    "openssh-server",
    "php-cli",
    "php-fpm",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux-extra",
    "zstd",
];

/// Kinds of files that no program of the guest reads; leaving them out makes building faster.
pub(super) const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// A file put into the guest: where, with which mode, and its content.
pub(super) type GuestFile = (&'static str, u32, &'static [u8]);

/// Files that must be there before packages are configured.
pub(super) const EARLY_FILES: [GuestFile; 2] = [
    (
        "etc/initramfs-tools/conf.d/guest",
        0o644,
        include_bytes!("../../guest-files/initramfs.conf"),
    ),
    (
        "etc/initramfs-tools/modules",
        0o644,
        include_bytes!("../../guest-files/initramfs-modules"),
    ),
];

/// Files that replace or complete what the packages brought.
pub(super) const LATE_FILES: [GuestFile; 16] = [
    ("etc/hostname", 0o644, b"nephoscope-guest\n"),
    ("etc/hosts", 0o644, b"127.0.0.1 localhost nephoscope-guest\n"),
    // Fixed: a fresh one would make systemd go through its first-boot work at every boot of a snapshot.
    ("etc/machine-id", 0o444, b"6e6570686f73636f7065677565737401\n"),
    ("etc/fstab", 0o644, b"/dev/vda / ext4 rw,noatime 0 0\n"),
    (
        "etc/modprobe.d/guest.conf",
        0o644,
        include_bytes!("../../guest-files/modprobe.conf"),
    ),
    // Written to RAM only: the disk forgets it anyway.
    (
        "etc/systemd/journald.conf.d/guest.conf",
        0o644,
        b"[Journal]\nStorage=volatile\n",
    ),
    (
        "etc/nginx/sites-available/default",
        0o644,
        include_bytes!("../../guest-files/nginx-site"),
    ),
    (
        "etc/systemd/network/10-guest.network",
        0o644,
        include_bytes!("../../guest-files/network"),
    ),
    (
        "etc/systemd/system/nephoscope-command.service",
        0o644,
        include_bytes!("../../guest-files/command-server.service"),
    ),
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
        0o644,
        include_bytes!("../../guest-files/autologin.conf"),
    ),
    (
        "opt/nephoscope/command-server",
        0o755,
        include_bytes!("../../guest-files/command-server"),
    ),
    (
        "opt/nephoscope/truth",
        0o755,
        include_bytes!("../../guest-files/truth"),
    ),
    (
        "opt/nephoscope/shortlived",
        0o755,
        include_bytes!("../../guest-files/shortlived"),
    ),
    (
        "opt/nephoscope/work.py",
        0o644,
        include_bytes!("../../guest-files/work.py"),
    ),
    (
        "var/www/html/index.html",
        0o644,
        b"<!doctype html><title>guest</title><p>It runs.\n",
    ),
    (
        "var/www/html/index.php",
        0o644,
        include_bytes!("../../guest-files/index.php"),
    ),
];

/// What a guest has beyond that.
#[derive(Debug)]
pub(super) struct Further {
    pub(super) packages: &'static [&'static str],
    /// There before packages are configured.
    pub(super) early: &'static [GuestFile],
    pub(super) files: &'static [GuestFile],
}

/// The plain guest.
pub(super) const NOTHING: Further = Further {
    packages: &[],
    early: &[],
    files: &[],
};

/// Applications of some size for each interpreter.
pub(super) const SCRIPTS: Further = Further {
    packages: &[
        "ant",
        "dokuwiki",
        "fio",
        "openjdk-17-jre-headless",
        "python3-jinja2",
        "python3-yaml",
        "strace",
    ],
    // Java's alternatives have manuals, which are left out; their folder has to be there.
    early: &[("usr/share/man/man1/.keep", 0o644, b"")],
    files: &[
        (
            "etc/nginx/sites-enabled/wiki",
            0o644,
            include_bytes!("../../guest-files/scripts/nginx-wiki"),
        ),
        (
            "opt/scripts/build.xml",
            0o644,
            include_bytes!("../../guest-files/scripts/build.xml"),
        ),
        (
            "opt/scripts/job.py",
            0o644,
            include_bytes!("../../guest-files/scripts/job.py"),
        ),
        (
            "opt/scripts/job.sh",
            0o755,
            include_bytes!("../../guest-files/scripts/job.sh"),
        ),
    ],
};

/// The script that is run in the root last.
pub(super) const CONFIGURE: &[u8] = include_bytes!("../../guest-files/configure");
