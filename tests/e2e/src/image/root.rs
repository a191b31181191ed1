//! The guest's root tree: Debian from packages, our few files, and a second kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::contents::{
    CONFIGURE, EARLY_FILES, Further, GuestFile, LATE_FILES, LEFT_OUT, PACKAGES, SECOND_KERNEL_SUITE, SUITES,
};
use crate::apt::{self, PrivateApt, Suite};
use crate::command::{find_program, privileged, run_logged, write_file};
use crate::progress::Step;

/// The machine's suites that the guest is made from.
pub(super) fn suites() -> Result<Vec<Suite>> {
    let suites: Vec<Suite> = apt::suites()?
        .into_iter()
        .filter(|suite| SUITES.contains(&suite.name.as_str()))
        .collect();
    ensure!(
        suites.iter().any(|suite| suite.name == "bookworm"),
        "apt on this machine has no suite `bookworm`: guests are built on Debian 12 only"
    );
    Ok(suites)
}

/// Builds the tree at `work/root`. Everything else that is put into `work` is only needed for that.
pub(super) fn build(work: &Path, further: &Further, log: &Path) -> Result<PathBuf> {
    let parts = work.join("parts");
    fs::create_dir(&parts)?;
    let kernels = second_kernel(&parts, log)?;
    stage(&parts.join("early"), &EARLY_FILES)?;
    stage(&parts.join("early"), further.early)?;
    stage(&parts.join("late"), &LATE_FILES)?;
    stage(&parts.join("late"), further.files)?;
    write_file(&parts.join("configure"), CONFIGURE)?;
    let sources: String = suites()?.iter().map(|suite| suite.line() + "\n").collect();
    write_file(&parts.join("sources.list"), sources)?;
    write_file(&parts.join("customize"), customize_hook(&parts, &kernels))?;

    let root = work.join("root");
    let mut step = Step::begin("Installing Debian into the guest");
    let mmdebstrap = find_program("mmdebstrap").context("mmdebstrap is missing; run `cargo xtask setup`")?;
    let mut command = privileged("env");
    command.args(["LC_ALL=C", "TMPDIR=/var/tmp"]).arg(mmdebstrap);
    command.args(["--variant=minbase", "--skip=cleanup/reproducible"]);
    command.arg(format!(
        "--include={}",
        [&PACKAGES[..], further.packages].concat().join(",")
    ));
    command.args(LEFT_OUT.map(|pattern| format!("--dpkgopt=path-exclude={pattern}")));
    command.arg("--dpkgopt=force-unsafe-io");
    command.args(
        apt::proxy_options()?
            .into_iter()
            .map(|option| format!("--aptopt={option}")),
    );
    command.arg(format!(
        "--essential-hook=cp -a --no-preserve=ownership '{}/early/.' \"$1\"",
        parts.display()
    ));
    command.arg(format!(
        "--customize-hook=sh -eu '{}/customize' \"$1\"",
        parts.display()
    ));
    command.args([
        "bookworm".as_ref(),
        root.as_os_str(),
        parts.join("sources.list").as_os_str(),
    ]);
    run_logged(&mut step, &mut command, log)?;
    step.done("");
    fs::remove_dir_all(&parts)?;
    Ok(root)
}

/// Downloads the other kernel with the package that its installation insists on.
fn second_kernel(parts: &Path, log: &Path) -> Result<Vec<PathBuf>> {
    let mut step = Step::begin("Fetching the second kernel");
    let apt = PrivateApt::open(&mut step, &parts.join("apt"), SECOND_KERNEL_SUITE, log)?;
    let dependencies = apt.dependencies("linux-image-amd64")?;
    let kernel = dependencies
        .iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{SECOND_KERNEL_SUITE} has no kernel behind linux-image-amd64"))?;
    let base = apt.download(&mut step, "linux-base", &parts.join("linux-base"), log)?;
    let image = apt.download(&mut step, kernel, &parts.join("linux-image"), log)?;
    step.done(kernel);
    Ok(vec![base, image])
}

fn stage(folder: &Path, files: &[GuestFile]) -> Result<()> {
    for (path, mode, content) in files {
        let path = folder.join(path);
        write_file(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// What mmdebstrap does last: the second kernel through the guest's own dpkg, so that its files belong to a package
/// there too; then our files and the settings.
fn customize_hook(parts: &Path, kernels: &[PathBuf]) -> String {
    let parts = parts.display();
    let debs: String = kernels
        .iter()
        .map(|path| format!(" '{}'", path.display()))
        .collect();
    format!(
        "mkdir \"$1/var/tmp/debs\"\n\
         cp{debs} \"$1/var/tmp/debs\"\n\
         chroot \"$1\" sh -c 'DEBIAN_FRONTEND=noninteractive dpkg --install /var/tmp/debs/*.deb'\n\
         rm -r \"$1/var/tmp/debs\"\n\
         cp -a --no-preserve=ownership '{parts}/late/.' \"$1\"\n\
         cp '{parts}/configure' \"$1/var/tmp/configure\"\n\
         chroot \"$1\" sh /var/tmp/configure\n\
         rm \"$1/var/tmp/configure\"\n"
    )
}
