//! Makes the first inputs of every target: small structures of each kind, none of them anybody's file.
//! `cargo run --release --example seeds -- FOLDER` writes `FOLDER/TARGET/NAME`.

mod elf;
mod firmware;
#[allow(dead_code, clippy::pedantic, reason = "of tests, which use more of it")]
#[path = "../../../crates/recipe/src/firmware/uefi/tests/made.rs"]
mod made;
mod kernel;
mod module;
mod wire;

use std::path::PathBuf;

/// A target, a name, an input.
type Seed = (&'static str, String, Vec<u8>);

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "corpus".into()));
    let seeds = [
        elf::seeds(),
        module::seeds(),
        kernel::seeds(),
        firmware::seeds(),
        wire::seeds(),
    ];
    for (target, name, bytes) in seeds.concat() {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("seed-{name}")), bytes)?;
    }
    Ok(())
}
