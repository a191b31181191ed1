//! The jobs: each a fixed amount of work, so that what differs is what it costs.

use anyhow::{Result, ensure};
use nephoscope_e2e::Guest;

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// For `--only`, and in tables.
    pub(crate) name: &'static str,
    /// In one line.
    pub(crate) what: &'static str,
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Done by starting the guest.
    Boot,
    /// A shell script in the guest.
    Script(&'static str),
    /// Requests from outside, one connection each: how many of the static page, how many of the PHP page.
    Requests(usize, usize),
}

/// All of them, in the order in which they are done in one boot.
pub(crate) const JOBS: [Job; 5] = [
    Job {
        name: "boot",
        what: "power-on until login and services are up",
        work: Work::Boot,
    },
    Job {
        name: "processes",
        what: "400 processes started and ended",
        work: Work::Script("/opt/nephoscope/shortlived 400"),
    },
    Job {
        name: "cpu",
        what: "a loop of 5 million rounds in Python",
        work: Work::Script(
            "python3 -c 'x = 0\nfor i in range(5000000): x = (x * 31 + i) & 0xffffffff\nprint(x)'",
        ),
    },
    Job {
        name: "kernel",
        what: "2,500,000 reads and writes of one byte",
        work: Work::Script("dd if=/dev/zero of=/dev/null bs=1 count=2500000 2>/dev/null"),
    },
    Job {
        name: "nginx",
        what: "1,500 requests of a static page and 300 of a PHP page",
        work: Work::Requests(1500, 300),
    },
];

impl Job {
    /// Whether starting the guest is the job.
    pub(crate) fn is_boot(&self) -> bool {
        self.work == Work::Boot
    }

    /// Does it.
    pub(crate) fn run(&self, guest: &mut Guest) -> Result<()> {
        match self.work {
            Work::Boot => Ok(()),
            Work::Script(script) => guest.run_ok(script).map(drop),
            Work::Requests(statics, php) => {
                get(guest, "/", statics)?;
                get(guest, "/index.php", php)
            }
        }
    }
}

fn get(guest: &Guest, path: &str, times: usize) -> Result<()> {
    for _ in 0..times {
        let (status, _) = guest.http_get(path)?;
        ensure!(status == 200, "the guest answers {status} to GET {path}");
    }
    Ok(())
}
