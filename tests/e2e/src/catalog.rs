//! A catalog of exactly what the guest is made of, and of the firmware that QEMU starts it with; made once, and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cache;
use crate::image::Image;
use crate::progress::Step;

/// Where Debian's packages put what QEMU loads into a PC: all of a folder, or its files with one of these endings.
const FIRMWARE: [(&str, &[&str]); 3] = [
    ("/usr/share/seabios", &[".bin"]),
    ("/usr/share/qemu", &[".bin", ".rom"]),
    ("/usr/lib/ipxe/qemu", &[".rom"]),
];

/// The exit code of `catalog add` for "some inputs were refused, everything else was added".
const REFUSED: i32 = 14;

/// A kept catalog.
#[derive(Debug, Clone)]
pub struct Catalog {
    folder: PathBuf,
}

impl Catalog {
    /// The catalog of this guest, made by this `nephoscope` when it is not there yet.
    ///
    /// Its key holds the digest of the program: any change of a recipe or of the format is another program, and no
    /// catalog that an older one made is taken for the new one's. A change elsewhere in the program costs a catalog too; that
    /// is cheaper than a wrong one. The guest's list of packages is in it as well: a guest that was removed from the cache
    /// and built again may have got a newer kernel under the same key.
    ///
    /// # Errors
    /// When the program cannot be run, refuses part of the guest, or cannot write.
    pub fn ensure(image: &Image, program: &Path) -> Result<Self> {
        Self::ensure_with(image, program, &[])
    }

    /// [`Catalog::ensure`], with packages (`.deb` files) that the guest gets from another disk.
    ///
    /// # Errors
    /// As [`Catalog::ensure`].
    pub fn ensure_with(image: &Image, program: &Path, packages: &[PathBuf]) -> Result<Self> {
        let added = packages;
        let firmware = firmware()?;
        let packages = digest(&image.root().join("var/lib/dpkg/status"))?;
        let mut parts = vec![image.key().into_bytes(), packages, digest(program)?];
        for path in firmware.iter().chain(added) {
            parts.push(path.as_os_str().as_encoded_bytes().to_vec());
            parts.push(digest(path)?);
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("catalog-{}", cache::key(&parts)), |work| {
            let catalog = work.join("catalog");
            add(program, &catalog, &[image.root()], work, "guest")?;
            if !added.is_empty() {
                add(program, &catalog, added, work, "further packages")?;
            }
            add(program, &catalog, &firmware, work, "firmware")
        })?;
        // The shipped build's and the tests', and those before them.
        cache::prune("catalog-", 4)?;
        Ok(Catalog { folder })
    }

    /// For `--catalog`.
    pub fn path(&self) -> PathBuf {
        self.folder.join("catalog")
    }

    /// What went into it, in words.
    ///
    /// # Errors
    /// When what `catalog add` said is not there any more.
    pub fn contents(&self) -> Result<String> {
        let count = |what: &str, name: &str| -> Result<u64> {
            let said: Value = serde_json::from_slice(&fs::read(self.folder.join(format!("{what}.json")))?)?;
            said.get(name)
                .and_then(Value::as_u64)
                .with_context(|| format!("`catalog add` gave no number of {name}"))
        };
        Ok(format!(
            "{} packages, {} files with code; {} firmware images, {} refused",
            count("guest", "packages")?,
            count("guest", "recognised")?,
            count("firmware", "recognised")?,
            count("firmware", "refused_total")?
        ))
    }
}

/// Firmware and what comes with a compiler (object files that are not linked yet) need not all be understood, and what is
/// refused is counted. A guest of which a part is missing in the catalog would be no use: its code would be found unknown.
fn add(program: &Path, catalog: &Path, inputs: &[PathBuf], work: &Path, what: &str) -> Result<()> {
    let mut step = Step::begin(&format!("Cataloguing the {what}"));
    step.note("every page of every program, library, module and kernel");
    let output = Command::new(program)
        .args(["catalog", "add", "--json", "--catalog"])
        .arg(catalog)
        .args(inputs)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let allowed = output.status.success() || (what != "guest" && output.status.code() == Some(REFUSED));
    if !allowed {
        bail!(
            "`catalog add` ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    fs::write(work.join(format!("{what}.json")), &output.stdout)?;
    step.done("");
    Ok(())
}

fn firmware() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (folder, endings) in FIRMWARE {
        let entries =
            fs::read_dir(folder).with_context(|| format!("{folder} is missing; run `cargo xtask setup`"))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.to_string_lossy();
            if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn digest(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(blake3::hash(&bytes).as_bytes().to_vec())
}
