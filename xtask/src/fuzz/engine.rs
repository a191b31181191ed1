//! The programs, built with what libFuzzer needs: coverage counters, and the comparisons that inputs run into.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nephoscope_e2e::command::run_logged;
use nephoscope_e2e::{Step, cache};

use super::targets::Target;
use crate::build;

/// Instrumentation that the stable compiler has; the same that `cargo fuzz` asks for, but for the address sanitiser,
/// which only a nightly one has. Passed to what is built for the target, not to build scripts.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "--cfg",
    "fuzzing",
];

/// For inputs that get through comparisons, magic numbers above all; most of the time goes there.
const COMPARISONS: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";

/// What steers the next inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Steering {
    /// Edges of the program that were reached, and the comparisons on the way.
    #[default]
    Comparisons,
    /// Edges alone: a few times as many inputs in the same time, from those that got through the comparisons before.
    Edges,
}

impl Steering {
    /// Its name in the tally.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Comparisons => "comparisons",
            Self::Edges => "edges",
        }
    }
}

/// The triple has to be named, or the flags reach build scripts too.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What was built, and where things are kept.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    programs: PathBuf,
    kept: PathBuf,
}

impl Engine {
    /// A target's program.
    pub(crate) fn program(&self, target: Target) -> PathBuf {
        self.programs.join(target.name)
    }

    /// Inputs that earlier runs found.
    pub(crate) fn found(&self, target: Target) -> PathBuf {
        self.kept.join("found").join(target.name)
    }

    /// Where inputs go that are a crash, a hang or too much memory.
    pub(crate) fn harmful(&self) -> PathBuf {
        self.kept.join("harmful")
    }

    /// The committed inputs.
    pub(crate) fn committed(target: Target) -> PathBuf {
        build::workspace().join("fuzz/corpus").join(target.name)
    }
}

/// How programs are compiled: `fuzz/Cargo.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// To run for long.
    Release,
    /// To be compiled soon.
    Quick,
}

impl Profile {
    const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }
}

/// Builds every program.
pub(crate) fn build(steering: Steering, profile: Profile) -> Result<Engine> {
    let kept = cache::folder()?.join("fuzz");
    for folder in ["found", "harmful"] {
        let folder = kept.join(folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut flags = FLAGS.to_vec();
    let folder = match steering {
        Steering::Comparisons => {
            flags.push(COMPARISONS);
            build::target_folder().join("fuzz")
        }
        Steering::Edges => build::target_folder().join("fuzz-edges"),
    };
    let mut step = Step::begin("Building the fuzz targets");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args([
            "build",
            "--profile",
            profile.name(),
            "--locked",
            "--bins",
            "--target",
            TRIPLE,
            "--target-dir",
        ])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .current_dir(build::workspace().join("fuzz"));
    run_logged(&mut step, &mut command, &kept.join("build.log"))?;
    step.done("");
    Ok(Engine {
        programs: folder.join(TRIPLE).join(profile.name()),
        kept,
    })
}
