//! The programs and libraries of the attacks: `guest/*.c`, compiled for the guest.
//!
//! In C, because each of them needs to know every byte of what it runs and where it lies, and because what is attacked is
//! used to that. They are linked dynamically with the guest's own libraries: only their own pages are unknown.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nephoscope_e2e::command::{output_of, run_logged};
use nephoscope_e2e::{Step, cache};

/// Where they are put in the guest.
pub const FOLDER: &str = "/opt/attacks";

/// The compiled programs on the host.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Compiles all of them when they are not there yet.
    ///
    /// # Errors
    /// When the compiler is missing or refuses one.
    pub fn ensure() -> Result<Self> {
        let sources = sources("guest")?;
        let compiler = output_of(Command::new("gcc").arg("--version"))
            .context("gcc is missing; run `cargo xtask setup`")?;
        let mut parts = vec![FLAGS.join(" ").into_bytes(), compiler.into_bytes()];
        for path in &sources {
            parts.push(path.as_os_str().as_encoded_bytes().to_vec());
            parts.push(fs::read(path)?);
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let folder = cache::build_once(&format!("attacks-{}", cache::key(&parts)), |work| {
            let mut step = Step::begin("Compiling the attacks");
            for path in sources
                .iter()
                .filter(|path| path.extension() == Some("c".as_ref()))
            {
                compile(&mut step, path, work)?;
            }
            step.done("");
            Ok(())
        })?;
        cache::prune("attacks-", 2)?;
        Ok(Tools { folder })
    }

    /// Those that somebody else compiled and put into this folder.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Tools { folder }
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of them, on the host: `inject`, or `libhide.so` of `guest/libhide.c`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Its bytes.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| format!("no attack is made with {name}"))
    }
}

const FLAGS: [&str; 5] = ["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"];

/// The files of a folder of this crate, in order.
pub(crate) fn sources(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

/// `lib*.c` becomes a library, anything else a program.
fn compile(step: &mut Step, path: &Path, work: &Path) -> Result<()> {
    let name = path
        .file_stem()
        .context("a source without a name")?
        .to_string_lossy();
    let mut gcc = Command::new("gcc");
    gcc.args(FLAGS);
    if name.starts_with("lib") {
        gcc.args(["-shared", "-fPIC", "-o"])
            .arg(work.join(format!("{name}.so")));
    } else {
        gcc.arg("-o").arg(work.join(&*name));
    }
    gcc.arg(path);
    run_logged(step, &mut gcc, &work.join("build.log"))
}
