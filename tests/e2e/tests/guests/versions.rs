//! Versions of one library: each address space names the one that it uses, and where nothing tells two apart they are two.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nephoscope_e2e::apt::PrivateApt;
use nephoscope_e2e::living::{list, living, merged};
use nephoscope_e2e::{Catalog, Control, Guest, Image, Options, Step, Watched, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A package of one file.
fn package(folder: &Path, name: &str, version: &str, path: &str, file: &Path) -> PathBuf {
    let root = folder.join(format!("{name}-{version}"));
    let target = root.join(path);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(file, target).unwrap();
    fs::create_dir(root.join("DEBIAN")).unwrap();
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <nobody@example.invalid>\n\
         Description: for a test\n"
    );
    fs::write(root.join("DEBIAN/control"), control).unwrap();
    let deb = folder.join(format!("{name}_{version}_amd64.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&root)
        .arg(&deb));
    deb
}

const LIBRARY: &str = "usr/lib/nephoscope-versions/libtwice.so.1";

/// The two versions of the library and the program that uses it, as files and as packages.
struct Twice {
    library: PathBuf,
    holder: PathBuf,
    debs: Vec<PathBuf>,
}

impl Twice {
    fn build(folder: &Path) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("versions");
        let mut debs = Vec::new();
        let libraries = ["1.0", "1.1"].map(|version| {
            let file = folder.join(format!("libtwice-{version}.so"));
            let number = version.replace('.', "");
            run(Command::new("gcc")
                .args([
                    "-shared",
                    "-nostdlib",
                    "-Wl,--build-id=none",
                    "-Wl,-soname,libtwice.so.1",
                ])
                .arg(format!("-DVERSION={number}"))
                .arg("-o")
                .arg(&file)
                .arg(sources.join("twice.S")));
            debs.push(package(folder, "libtwice", version, LIBRARY, &file));
            file
        });
        let [library, other] = libraries;
        let (one, two) = (fs::read(&library).unwrap(), fs::read(other).unwrap());
        let pages = one
            .chunks(4096)
            .zip(two.chunks(4096))
            .filter(|(one, two)| one != two);
        assert_eq!(
            (one.len(), pages.count()),
            (two.len(), 1),
            "the versions differ in one page"
        );
        let holder = folder.join("holder");
        run(Command::new("gcc")
            .args(["-O1", "-Wl,-rpath,/usr/lib/nephoscope-versions"])
            .arg("-o")
            .arg(&holder)
            .arg(sources.join("holder.c"))
            .arg(&library));
        debs.push(package(folder, "holder", "1.0", "usr/bin/holder", &holder));
        Self {
            library,
            holder,
            debs,
        }
    }
}

/// What another suite's `xz` needs, taken out of its packages.
struct OtherRoot {
    tar: PathBuf,
    debs: Vec<PathBuf>,
    version: String,
}

impl OtherRoot {
    fn fetch(folder: &Path) -> Self {
        let log = folder.join("apt.log");
        let mut step = Step::begin("Fetching another version of a library");
        let apt = PrivateApt::open(&mut step, &folder.join("apt"), "trixie", &log).unwrap();
        let root = folder.join("root");
        fs::create_dir(&root).unwrap();
        let debs: Vec<PathBuf> = ["libc6", "liblzma5", "xz-utils"]
            .iter()
            .map(|package| {
                apt.download(&mut step, package, &folder.join(package), &log)
                    .unwrap()
            })
            .collect();
        for deb in &debs {
            run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&root));
        }
        step.done("");
        let tar = folder.join("root.tar");
        // Only what runs: the way into the guest is narrow.
        let script = "cd \"$1\" && find . \\( -name 'ld-linux-x86-64.so.2' -o -name 'libc.so.6' -o -name 'liblzma.so.5*' -o \
                      -path ./usr/bin/xz -o -type l -name 'lib*' \\) -print0 | tar --null -T - -cf \"$2\"";
        run(Command::new("sh")
            .args(["-ec", script, "sh"])
            .arg(&root)
            .arg(&tar));
        let version = apt.candidate("liblzma5").unwrap().unwrap();
        Self { tar, debs, version }
    }
}

fn space_of<'a>(report: &'a Value, program: &str) -> Vec<&'a Value> {
    living(report)
        .filter(|space| merged(space["program"]["path"].as_str().unwrap_or_default()) == program)
        .collect()
}

/// The versions of the package that a module of this address space may be of.
fn versions(space: &Value, package: &str) -> Vec<String> {
    let modules = list(space, "modules").iter();
    let of = modules.filter(|module| list(module, "candidates").iter().any(|c| c["package"] == package));
    let of: Vec<&Value> = of.collect();
    assert_eq!(of.len(), 1, "{package} is one module: {space}");
    list(of[0], "candidates")
        .iter()
        .map(|candidate| candidate["version"].as_str().unwrap().to_owned())
        .collect()
}

/// Asks until it is so, for as long as a person would wait.
fn soon(control: &mut Control, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let report = control.report().unwrap();
        if is_so(&report) {
            return report;
        }
        assert!(Instant::now() < deadline, "{what}: {report}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn each_address_space_names_its_version_and_two_that_nothing_tells_apart_are_two() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (twice, other) = (Twice::build(folder.path()), OtherRoot::fetch(folder.path()));
    let catalog = folder.path().join("catalog");
    let kept = Catalog::ensure(&image, &program()).unwrap().path();
    run(Command::new("cp").args(["-r", "--link"]).arg(kept).arg(&catalog));
    run(Command::new(program())
        .args(["catalog", "add", "--catalog"])
        .arg(&catalog)
        .args(&twice.debs)
        .args(&other.debs));
    let name = vm_name("versions");
    let watched = Some(Watched {
        program: program(),
        catalog,
        name: name.clone(),
        report: None,
        extra: Vec::new(),
    });
    let mut guest = Guest::boot_ready(
        &image,
        Options {
            watched,
            ..Options::default()
        },
    )
    .unwrap();
    let mut control = Control::connect(&name).unwrap();

    undecided_until_a_page_decides(&mut guest, &mut control, &twice);
    two_roots(&mut guest, &mut control, &other);
    assert_eq!(guest.power_off().unwrap(), 0);
}

/// The guest has version 1.0. What it executes first, 1.1 has too.
fn undecided_until_a_page_decides(guest: &mut Guest, control: &mut Control, twice: &Twice) {
    guest.run_ok("mkdir -p /usr/lib/nephoscope-versions").unwrap();
    guest
        .put(&format!("/{LIBRARY}"), &fs::read(&twice.library).unwrap())
        .unwrap();
    guest
        .put("/usr/bin/holder", &fs::read(&twice.holder).unwrap())
        .unwrap();
    for how in ["call", "read"] {
        guest
            .start(&format!("/usr/bin/holder /tmp/now-{how} {how}"))
            .unwrap();
        let is_there = |report: &Value| {
            let spaces = space_of(report, "/bin/holder");
            spaces.len() == 1
                && list(spaces[0], "modules")
                    .iter()
                    .any(|m| m["path"] == format!("/{LIBRARY}"))
        };
        soon(control, "the program runs", is_there);
        // Long enough for every page that is mapped by now to be looked at.
        std::thread::sleep(Duration::from_secs(2));
        let report = control.report().unwrap();
        assert_eq!(
            versions(space_of(&report, "/bin/holder")[0], "libtwice"),
            ["1.0", "1.1"],
            "before: {how}"
        );
        guest.run_ok(&format!("touch /tmp/now-{how}")).unwrap();
        soon(control, how, |report| {
            versions(space_of(report, "/bin/holder")[0], "libtwice") == ["1.0"]
        });
        guest.run_ok("pkill holder").unwrap();
        soon(control, "the program ended", |report| {
            space_of(report, "/bin/holder").is_empty()
        });
    }
}

/// The same library in the guest's own root and in another, where Debian 13's is.
fn two_roots(guest: &mut Guest, control: &mut Control, other: &OtherRoot) {
    guest
        .put("/tmp/root.tar", &fs::read(&other.tar).unwrap())
        .unwrap();
    let script = "mkdir -p /srv/other && cd /srv/other && tar xf /tmp/root.tar && \
                  { [ -e lib64 ] || ln -s usr/lib64 lib64; } && { [ -e lib ] || ln -s usr/lib lib; } && mkfifo /tmp/pipe";
    guest.run_ok(script).unwrap();
    guest
        .start("sh -c \"sleep 300 >/tmp/pipe & exec chroot /srv/other /usr/bin/xz -c </tmp/pipe\"")
        .unwrap();
    guest
        .start("python3 -c \"import lzma, time; lzma.compress(bytes(100000)); time.sleep(300)\"")
        .unwrap();
    let here = guest.run_ok("dpkg-query -W -f '${Version}' liblzma5").unwrap();
    assert_ne!(here, other.version);
    let both_run = |report: &Value| {
        let uses = |program: &str| {
            let spaces = space_of(report, program);
            spaces.len() == 1
                && list(spaces[0], "modules").iter().any(|module| {
                    module["path"]
                        .as_str()
                        .is_some_and(|path| path.contains("liblzma"))
                })
        };
        uses("/bin/python3.11") && uses("/bin/xz")
    };
    let report = soon(control, "both use the library", both_run);
    assert_eq!(
        versions(space_of(&report, "/bin/python3.11")[0], "liblzma5"),
        [here]
    );
    assert_eq!(
        versions(space_of(&report, "/bin/xz")[0], "liblzma5"),
        std::slice::from_ref(&other.version)
    );
}
