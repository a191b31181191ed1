//! Runs in a nested machine: attacks guests there under the machine's own KVM. What it is given and what comes out lies in one
//! folder.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nephoscope_attacks::{Attack, Campaign, Place, Row, attack};
use nephoscope_e2e::Kernel;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, kernel, names @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: attacked FOLDER KERNEL NAME…");
    };
    let folder = Path::new(folder);
    let kernel = Kernel::ALL
        .into_iter()
        .find(|one| one.version() == kernel)
        .context("no such kernel")?;
    let wanted = |attack: &&dyn Attack| names.iter().any(|name| name == attack.name());
    let attacks: Vec<&'static dyn Attack> = attack::all().into_iter().filter(wanted).collect();
    ensure!(attacks.len() == names.len(), "there is no such attack");
    let rows = Campaign::at(Place::nested(folder)).run(kernel, &attacks);
    let rows: Vec<_> = rows.iter().map(Row::json).collect();
    std::fs::write(folder.join("rows.json"), serde_json::to_vec(&rows)?)?;
    Ok(())
}
