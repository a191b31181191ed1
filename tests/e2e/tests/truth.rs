//! What is seen from outside against what the guest says of itself, at quiet moments.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nephoscope_e2e::living::disagreements;
use nephoscope_e2e::{Guest, Image, Kernel, Options, Watched};
use serde_json::Value;

/// `cargo xtask test` says where the program is that it built.
fn program() -> PathBuf {
    let program = std::env::var_os("NEPHOSCOPE").expect("NEPHOSCOPE is not set: run `cargo xtask test`");
    PathBuf::from(program)
}

struct Watch {
    guest: Guest,
    name: String,
    folder: tempfile::TempDir,
}

impl Watch {
    fn begin(options: Options) -> Self {
        let image = Image::ensure().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("catalog");
        let status = Command::new(program())
            .args(["catalog", "add", "--catalog"])
            .arg(&catalog)
            .arg(image.root())
            .status()
            .unwrap();
        assert!(status.success());
        let name = format!("truth-{}-{}", std::process::id(), options.smp);
        let watched = Watched {
            program: program(),
            catalog,
            name: name.clone(),
            report: Some(folder.path().join("report.json")),
            extra: vec!["--watch".into()],
        };
        let mut guest = Guest::boot(
            &image,
            Options {
                watched: Some(watched),
                ..options
            },
        )
        .unwrap();
        guest.wait_ready().unwrap();
        Self { guest, name, folder }
    }

    fn report(&self) -> Value {
        use std::io::{BufRead, BufReader, Write};
        let path = format!("/run/nephoscope/{}/control.sock", self.name);
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        (&stream).write_all(b"{\"ask\":\"report\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["report"].take()
    }

    /// A moment counts when nothing but the writers of the truth came or went. Timers of the guest may disturb one, so
    /// there are some tries; the last one's disagreements are what is wrong.
    fn agrees(&mut self, when: &str) {
        let mut wrong = Vec::new();
        for _ in 0..5 {
            let before = self.guest.truth().unwrap();
            std::thread::sleep(Duration::from_secs(1));
            let report = self.report();
            let after = self.guest.truth().unwrap();
            wrong = disagreements(&report, &before, &after);
            if wrong.is_empty() {
                println!(
                    "{when}: {} processes agree",
                    nephoscope_e2e::living::living(&report).count()
                );
                return;
            }
            println!("{when}: {wrong:#?}");
            std::fs::write(self.folder.path().join("wrong.json"), report.to_string()).unwrap();
        }
        panic!("{when}: {wrong:#?}");
    }
}

fn the_living_are_who_the_guest_says(smp: u32, kernel: Kernel, cmdline: &str) {
    let options = Options {
        smp,
        kernel,
        cmdline: cmdline.into(),
        ..Options::default()
    };
    let mut watch = Watch::begin(options);
    assert_eq!(watch.guest.http_get("/index.php").unwrap().0, 200);
    watch.guest.run_ok("python3 /opt/nephoscope/work.py").unwrap();
    watch.agrees("after the boot");
    watch.guest.run_ok("/opt/nephoscope/shortlived 2000").unwrap();
    watch.agrees("after 2,000 processes");
    let report_file = watch.folder.path().join("report.json");
    assert_eq!(watch.guest.power_off().unwrap(), 0);
    let report: Value = serde_json::from_slice(&std::fs::read(report_file).unwrap()).unwrap();
    println!("pages: {}\ncounters: {}", report["pages"], report["counters"]);
    println!("coverage: {}", report["coverage"]);
    std::fs::write(
        format!("/tmp/log/report-{smp}-{}.json", kernel.version()),
        report.to_string(),
    )
    .unwrap();
    assert_eq!(report["coverage"]["code"], "complete");
    assert_eq!(report["coverage"]["attribution"], "complete");
}

#[test]
fn the_living_are_who_the_guest_says_with_one_vcpu() {
    the_living_are_who_the_guest_says(1, Kernel::K6_1, "");
}

#[test]
fn the_living_are_who_the_guest_says_with_four_vcpus_and_isolated_page_tables() {
    the_living_are_who_the_guest_says(4, Kernel::K6_12, "pti=on");
}
