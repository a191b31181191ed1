//! The jobs: each a fixed amount of work, so that what differs is what it costs.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::{Guest, Tools};

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// For `--only`, and in tables.
    pub(crate) name: &'static str,
    /// In one line.
    pub(crate) what: &'static str,
    /// The guest's vCPUs: those with the same number share a boot.
    pub(crate) smp: u32,
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Done by starting the guest.
    Boot,
    /// A shell script in the guest.
    Script(&'static str),
    /// A shell script in the guest that needs the disk with the compiler.
    Compile(&'static str),
    /// Requests from outside, one connection each, some at a time: how many of the static page, how many of the PHP page.
    Requests(usize, usize),
}

/// How many clients ask at the same time.
const CLIENTS: usize = 4;

/// All of them, in the order in which they are done.
pub(crate) const JOBS: [Job; 7] = [
    Job {
        name: "boot",
        what: "power-on until login and services are up",
        smp: 1,
        work: Work::Boot,
    },
    Job {
        name: "processes",
        what: "1,000 processes started and ended",
        smp: 1,
        work: Work::Script("/opt/nephoscope/shortlived 1000"),
    },
    Job {
        name: "cpu",
        what: "a loop of 5 million rounds in Python",
        smp: 1,
        work: Work::Script(
            "python3 -c 'x = 0\nfor i in range(5000000): x = (x * 31 + i) & 0xffffffff\nprint(x)'",
        ),
    },
    Job {
        name: "kernel",
        what: "the file tree walked five times, 100,000 blocks of 512 bytes through a pipe",
        smp: 1,
        work: Work::Script(
            "for i in 0 1 2 3 4; do find /etc /usr /var -xdev -newer /etc/hostname >/dev/null; done\n\
             dd if=/dev/zero bs=512 count=100000 2>/dev/null | dd of=/dev/null bs=512 2>/dev/null",
        ),
    },
    Job {
        name: "nginx",
        what: "1,500 requests of a static page and 300 of a PHP page from four clients outside",
        smp: 1,
        work: Work::Requests(1500, 300),
    },
    Job {
        name: "compile",
        what: "gcc -O1 of 5,000 lines of C",
        smp: 1,
        work: Work::Compile(
            "chroot /mnt gcc -O1 -DSTB_TRUETYPE_IMPLEMENTATION -x c -c /usr/include/stb/stb_truetype.h -o /tmp/out.o",
        ),
    },
    Job {
        name: "smp4",
        what: "four vCPUs busy: on each a loop of 1.5 million rounds in Python, 150 processes and a file tree walked",
        smp: 4,
        work: Work::Script(
            "for i in 0 1 2 3; do (\n\
             python3 -c 'x = 0\nfor i in range(1500000): x = (x * 31 + i) & 0xffffffff\n'\n\
             /opt/nephoscope/shortlived 150\n\
             find /etc /usr -xdev -newer /etc/hostname >/dev/null\n\
             ) & done; wait",
        ),
    },
];

impl Job {
    /// Whether starting the guest is the job.
    pub(crate) fn is_boot(&self) -> bool {
        self.work == Work::Boot
    }

    /// Whether the guest needs the disk with the compiler.
    pub(crate) fn needs_tools(&self) -> bool {
        matches!(self.work, Work::Compile(_))
    }

    /// What has to be done in the guest once before, and is not measured.
    pub(crate) fn prepare(&self, guest: &mut Guest) -> Result<()> {
        if self.needs_tools() {
            guest.run_ok(Tools::MOUNT)?;
        }
        Ok(())
    }

    /// Does it.
    pub(crate) fn run(&self, guest: &mut Guest) -> Result<()> {
        match self.work {
            Work::Boot => Ok(()),
            Work::Script(script) | Work::Compile(script) => guest.run_ok(script).map(drop),
            Work::Requests(statics, php) => {
                get(guest, "/", statics)?;
                get(guest, "/index.php", php)
            }
        }
    }
}

fn get(guest: &Guest, path: &str, times: usize) -> Result<()> {
    let begun = AtomicUsize::new(0);
    let client = || -> Result<()> {
        while begun.fetch_add(1, Ordering::Relaxed) < times {
            // A guest that is stopped by turns may miss a connection's first packets: one in some thousands is reset.
            let (status, _) = guest.http_get(path).or_else(|_| guest.http_get(path))?;
            ensure!(status == 200, "the guest answers {status} to GET {path}");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for client in clients {
            client.join().ok().context("a client died")??;
        }
        Ok(())
    })
}
