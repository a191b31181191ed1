//! Real work for the guest, so that there is something to make an inventory of.

use anyhow::{Result, ensure};
use nephoscope_e2e::{Guest, Step};

/// How many times each page is fetched.
const PAGES: [(&str, usize); 2] = [("/", 20), ("/index.php", 5)];

/// Pages through nginx and PHP, a Python script, a shell over ssh.
pub(super) fn run(guest: &mut Guest) -> Result<()> {
    let step = Step::begin("Fetching pages through nginx and PHP");
    let mut fetched = 0_usize;
    for (path, times) in PAGES {
        for _ in 0..times {
            let (status, _) = guest.http_get(path)?;
            ensure!(status == 200, "the guest answers {status} to GET {path}");
            fetched += 1;
        }
    }
    step.done(&format!("{fetched} answers"));

    let step = Step::begin("Running a Python script, and a shell over ssh");
    guest.run_ok("python3 /opt/nephoscope/work.py")?;
    let over_ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new localhost hostname";
    let host = guest.run_ok(over_ssh)?;
    step.done(host.trim());

    let step = Step::begin("Starting and ending 100 processes");
    guest.run_ok("/opt/nephoscope/shortlived 100")?;
    step.done("");
    Ok(())
}
