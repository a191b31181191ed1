//! Runs in a nested machine whose kernel looks for mistakes: VMs are started, watched and ended there in random order, while the
//! module comes and goes. What it is given and what comes out lies in one folder.

use std::path::Path;

use anyhow::Result;
use nephoscope_e2e::nested::soak_inside;

const USAGE: &str = "usage: soak FOLDER SEED VMS debug|stock";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seed, vms, kernel] = arguments.as_slice() else {
        anyhow::bail!(USAGE);
    };
    let debug = match kernel.as_str() {
        "debug" => true,
        "stock" => false,
        _ => anyhow::bail!(USAGE),
    };
    let say = |said: &str| println!("{said}");
    soak_inside(Path::new(folder), seed.parse()?, vms.parse()?, debug, say)
}
