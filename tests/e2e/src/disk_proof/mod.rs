//! Disks that are served, worked on at random, while their servers are killed: nothing of what was written is lost or changed.
//!
//! ```text
//!  root, ext4, raw       packages are upgraded, over and over
//!  data, ext4, raw       random work (`tests/guest-tools`), each step held to what the files must hold
//!  data, ext4, qcow2     the same
//! ```
//!
//! When the guest is off, each file system is checked and its files are compared with what the guest said they must hold, and with
//! what the packages have.

mod disks;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Signal, kill_process};

use crate::faults::ours::{self, Role};
use crate::{Catalog, Guest, Image, Kernel, Options, Watched, vm_name};

/// How it is done.
#[derive(Debug, Clone, Copy)]
pub struct Proof {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// How long the guest works.
    pub time: Duration,
    /// How often a server is killed in that time.
    pub kills: u32,
    /// For the work and the kills.
    pub seed: u64,
}

/// What was done, all of it rightly.
#[derive(Debug, Default)]
pub struct Account {
    /// Servers that were killed.
    pub kills: u32,
    /// Steps of the work, by kind, on each disk.
    pub steps: Vec<(String, String, u64)>,
    /// Upgrades of the package.
    pub upgrades: u64,
    /// Files that were compared when the guest was off, and their bytes.
    pub files: usize,
    /// See [`Account::files`].
    pub bytes: u64,
}

/// Where the data disks are in the guest.
pub const FOLDERS: [&str; 2] = ["/mnt/raw", "/mnt/qcow2"];
/// More than the guest's own clock is late, and than the last comparison takes.
const MORE: Duration = Duration::from_secs(600);

/// Boots a guest, has it work, kills servers, and compares. `program` is `nephoscope`.
///
/// # Errors
/// When something was lost or changed, a file system is not clean, or a part cannot be built.
pub fn prove(program: &Path, proof: Proof, mut say: impl FnMut(&str)) -> Result<Account> {
    let image = Image::with_scripts()?;
    let folder = tempfile::tempdir()?;
    let name = vm_name("disks");
    let root = image.writable_disk(folder.path())?;
    let data = disks::data(folder.path())?;
    let packages = disks::packages(folder.path())?;
    let options = Options {
        kernel: proof.kernel,
        plants: false,
        disk: Some(root.clone()),
        watched: Some(Watched {
            program: program.to_owned(),
            catalog: Catalog::ensure(&image, program)?.path(),
            name: name.clone(),
            report: None,
            extra: vec!["--watch-files".into()],
        }),
        extra: data.iter().flat_map(disks::Data::arguments).collect(),
        ..Options::default()
    };
    say("the guest boots");
    let mut guest = Guest::boot_ready(&image, options)?;
    guest.put(
        "/root/disk-work",
        &std::fs::read(image.plants().program("disk-work"))?,
    )?;
    for (number, package) in packages.iter().enumerate() {
        guest.put(
            &format!("/root/package-{number}.deb"),
            &std::fs::read(&package.file)?,
        )?;
    }
    guest.run_ok(
        "set -e; mkdir -p /mnt/raw /mnt/qcow2; mount /dev/vdb /mnt/raw; mount /dev/vdc /mnt/qcow2; \
         echo 3 >/proc/sys/vm/drop_caches",
    )?;
    let mut account = Account::default();
    let told = while_killing(&name, proof, &mut account, &mut say, |limit| {
        let output = guest.run_within(&work(proof), limit)?;
        ensure!(
            output.success(),
            "the work failed: {} {}",
            output.stderr_text(),
            output.stdout_text()
        );
        Ok(output.stdout_text())
    })?;
    say("the guest is switched off");
    ensure!(guest.power_off()? == 0, "the guest was not switched off in order");
    say("all is compared");
    let told = disks::Told::parse(&told)?;
    account.upgrades = told.upgrades;
    account.steps.clone_from(&told.steps);
    for (disk, folder) in data.iter().zip(FOLDERS) {
        disks::compare(&disk.raw()?, "/", told.files(folder), &mut account)
            .with_context(|| format!("the disk of {folder}"))?;
    }
    let installed = usize::try_from(told.upgrades % 2).unwrap_or(0);
    let package = packages.get(installed).context("no package")?;
    disks::compare(&root, disks::INSTALLED, package.files.iter(), &mut account).context("the root disk")?;
    Ok(account)
}

/// In the guest: both disks are worked on, and packages installed, the second, the first, the second, ….
fn work(proof: Proof) -> String {
    let (seconds, seed) = (proof.time.as_secs(), proof.seed);
    let [raw, qcow2] = FOLDERS;
    format!(
        "set -e
         /root/disk-work {raw} {seed} {seconds} >/root/raw.told 2>&1 & raw=$!
         /root/disk-work {qcow2} {other} {seconds} >/root/qcow2.told 2>&1 & qcow2=$!
         end=$(( $(date +%s) + {seconds} )); upgrades=0
         while [ $upgrades = 0 ] || [ $(date +%s) -lt $end ]; do
             upgrades=$(( upgrades + 1 ))
             dpkg -i /root/package-$(( upgrades % 2 )).deb >/root/dpkg.log 2>&1 || {{ cat /root/dpkg.log; exit 1; }}
             sleep 1
         done
         wait $raw || {{ cat /root/raw.told; exit 1; }}
         wait $qcow2 || {{ cat /root/qcow2.told; exit 1; }}
         echo upgrades $upgrades
         echo folder {raw}; cat /root/raw.told
         echo folder {qcow2}; cat /root/qcow2.told
         sync",
        other = seed.wrapping_mul(31).wrapping_add(7),
    )
}

/// Does that, and kills meanwhile: one server, or all at once.
fn while_killing<T: Send>(
    vm: &str,
    proof: Proof,
    account: &mut Account,
    say: &mut impl FnMut(&str),
    work: impl FnOnce(Duration) -> Result<T> + Send,
) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            let done = work(proof.time + MORE);
            over.store(true, Ordering::Release);
            done
        });
        let (begun, mut state) = (Instant::now(), proof.seed | 1);
        let every = proof.time.checked_div(proof.kills.max(1)).unwrap_or_default();
        while !over.load(Ordering::Acquire) {
            let due = every * account.kills + every.mul_f64(part(&mut state));
            // The kill after the last is due when all is over.
            if account.kills < proof.kills && begun.elapsed() >= due && kill(vm, &mut state) {
                account.kills += 1;
            }
            let left = proof.time.saturating_sub(begun.elapsed()).as_secs();
            say(&format!(
                "{} of {} kills, {left} s left",
                account.kills, proof.kills
            ));
            thread::sleep(Duration::from_millis(200));
        }
        let done = working.join().map_err(|_| anyhow!("the work ended in a panic"))?;
        if done.is_ok() && account.kills < proof.kills {
            bail!("{} of {} kills: too little time", account.kills, proof.kills);
        }
        done
    })
}

/// Whether there was one.
fn kill(vm: &str, state: &mut u64) -> bool {
    let servers = ours::of(vm, Role::ServeDisk);
    let (one, all) = (part(state), part(state) < 0.2);
    let mut killed = false;
    for (number, server) in servers.iter().enumerate() {
        let place = number as f64 / servers.len() as f64;
        let next = (number + 1) as f64 / servers.len() as f64;
        if all || (place..next).contains(&one) {
            killed |= kill_process(*server, Signal::KILL).is_ok();
        }
    }
    killed
}

/// From 0 to 1, without 1.
fn part(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1_u64 << 53) as f64
}
