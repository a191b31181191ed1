//! The machine with KVM that this machine makes of itself.

use std::time::Duration;

use nephoscope_e2e::nested::{Nested, Shape};
use nephoscope_e2e::{Image, Kernel};

const LIMIT: Duration = Duration::from_secs(200);

/// The younger of the kernels: whatever else runs in such a machine has the older one.
const KERNEL: Kernel = Kernel::K6_12;

#[test]
fn a_nested_machine_has_kvm_and_qemu_and_gives_the_scripts_exit_code() {
    let image = Image::ensure().unwrap();
    let nested = Nested::ensure(&image).unwrap();
    let shape = Shape {
        kernel: KERNEL,
        ..Shape::default()
    };
    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("given"), "from outside\n").unwrap();
    let script = "cat /host/given\nuname -r >/host/release\n\
                  qemu-system-x86_64 -nodefaults -display none -accel kvm -S -monitor none -daemonize \
                  && echo taken\n\
                  grep Cpus_allowed_list /proc/self/status >/host/cpus\n[ -b /dev/vdb ] && exit 7";
    let mut said = Vec::new();
    let code = nested
        .run(&shape, share.path(), script, LIMIT, |line| {
            said.push(line.to_owned())
        })
        .unwrap();
    assert_eq!(code, 7, "{said:#?}");
    let release = std::fs::read_to_string(share.path().join("release")).unwrap();
    assert_eq!(release.trim(), image.release(KERNEL).unwrap());
    let cpus = std::fs::read_to_string(share.path().join("cpus")).unwrap();
    assert!(cpus.trim().ends_with("\t1-2"), "all but the first: {cpus}");
    for line in ["from outside", "taken"] {
        assert!(said.iter().any(|said| said == line), "{said:#?}");
    }
}
