//! The harness itself, without anything that watches.

use std::path::Path;

use nephoscope_e2e::{Guest, Image, Kernel, Options};

fn boots_works_and_switches_itself_off(kernel: Kernel) {
    let image = Image::ensure().unwrap();
    let mut guest = Guest::boot(
        &image,
        Options {
            kernel,
            ..Options::default()
        },
    )
    .unwrap();
    let ready = guest.wait_ready().unwrap();
    println!(
        "Linux {} is ready after {:.1} s",
        kernel.version(),
        ready.as_secs_f64()
    );
    assert!(
        guest
            .run_ok("uname -r")
            .unwrap()
            .starts_with(&format!("{}.", kernel.version()))
    );
    assert_eq!(
        guest
            .run_ok("systemctl list-units --failed --no-legend --plain")
            .unwrap(),
        ""
    );

    let failed = guest.run("echo to the error output >&2; exit 3").unwrap();
    assert_eq!(
        (failed.status, failed.stderr_text().as_str()),
        (3, "to the error output\n")
    );

    assert_eq!(guest.http_get("/").unwrap().0, 200);
    let (status, body) = guest.http_get("/index.php").unwrap();
    assert!(status == 200 && body.contains("\"php\":8"), "{status} {body}");
    assert!(
        guest
            .run_ok("python3 /opt/nephoscope/work.py")
            .unwrap()
            .starts_with("2000 ")
    );
    let over_ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new localhost hostname";
    assert_eq!(guest.run_ok(over_ssh).unwrap(), "nephoscope-guest\n");

    assert_eq!(guest.power_off().unwrap(), 0);
}

#[test]
fn a_guest_with_debian_12s_kernel_boots_works_and_switches_itself_off() {
    boots_works_and_switches_itself_off(Kernel::K6_1);
}

#[test]
fn a_guest_with_debian_13s_kernel_boots_works_and_switches_itself_off() {
    boots_works_and_switches_itself_off(Kernel::K6_12);
}

#[test]
fn a_guest_tells_the_truth_and_runs_what_is_planted_in_it() {
    let image = Image::ensure().unwrap();
    let mut guest = Guest::boot_ready(&image, Options::default()).unwrap();
    let exe_of = |guest: &mut Guest, pid: u32| guest.run_ok(&format!("readlink /proc/{pid}/exe")).unwrap();

    let truth = guest.truth().unwrap();
    let nginx: Vec<_> = truth
        .processes
        .values()
        .filter(|process| process.exe == "/usr/sbin/nginx")
        .collect();
    assert!(nginx.len() >= 2, "a master and a worker");
    let libc = nginx[0]
        .mappings
        .iter()
        .find(|mapping| mapping.executable() && mapping.path.ends_with("libc.so.6"));
    assert_eq!(truth.owner(&libc.unwrap().path).unwrap().source, "glibc");
    let unowned = |path: &&str| path.starts_with('/') && truth.owner(path).is_none();
    let mapped = truth
        .processes
        .values()
        .flat_map(|process| &process.mappings)
        .filter(|mapping| mapping.executable());
    assert_eq!(
        mapped
            .map(|mapping| mapping.path.as_str())
            .filter(unowned)
            .collect::<Vec<_>>(),
        [""; 0]
    );

    let pid = guest
        .start("/opt/planted/plant-memfd /opt/planted/stranger 10")
        .unwrap();
    guest.run_ok("sleep 1").unwrap();
    assert!(exe_of(&mut guest, pid).starts_with("/memfd:payload"));

    let stranger = std::fs::read(image.plants().program("stranger")).unwrap();
    guest.put("/tmp/stranger", &stranger).unwrap();
    let pid = guest.start("/tmp/stranger 10").unwrap();
    assert_eq!(exe_of(&mut guest, pid), "/tmp/stranger\n");

    let worker = guest.run_ok("pgrep -f 'nginx: worker' | head -1").unwrap();
    let patched = guest
        .run_ok(&format!(
            "/opt/planted/plant-patch {} ngx_http_process_request",
            worker.trim()
        ))
        .unwrap();
    assert!(patched.starts_with("/usr/sbin/nginx "), "{patched}");
    assert_eq!(
        guest.http_get("/index.php").unwrap().0,
        200,
        "a patched worker goes on as before"
    );

    let flashed = guest
        .run_ok("/opt/planted/flash /usr/lib/x86_64-linux-gnu/libc.so.6 0")
        .unwrap();
    assert!(
        flashed.starts_with("/usr/lib/x86_64-linux-gnu/libc.so.6 "),
        "{flashed}"
    );
    guest.run_ok("/opt/nephoscope/shortlived 20").unwrap();
    println!("{patched}{flashed}");

    let folder = guest.folder().to_owned();
    assert_eq!(guest.power_off().unwrap(), 0);
    assert!(
        !Path::new(&folder).exists(),
        "no logs are left of a guest that ended in order"
    );
}
