//! Where a VM under KVM cannot be watched, that is said in one sentence that says what to do, and nothing is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use nephoscope_e2e::nested::{Nested, Shape};
use nephoscope_e2e::{Catalog, Image, Kernel, kbuild, program};

const LIMIT: Duration = Duration::from_secs(600);

/// A refusal: the exit code, and what was said, by `nephoscope` and by the kernel.
#[derive(Debug)]
struct Refusal {
    code: i32,
    said: String,
}

#[test]
fn what_cannot_be_watched_is_refused_with_a_sentence_and_leaves_nothing_behind() {
    let kernel = Kernel::K6_1;
    let (image, program) = (Image::ensure().unwrap(), program().unwrap());
    let nested = Nested::ensure(&image).unwrap();
    let share = tempfile::tempdir().unwrap();
    let catalog = Catalog::ensure_with(&image, &program, &nested.firmware().unwrap()).unwrap();
    let release = image.release(kernel).unwrap();
    let kvm = format!("usr/lib/modules/{release}/kernel/arch/x86/kvm/kvm-amd.ko");
    let otherwise =
        kbuild::trap_module_expecting(&image, kernel, "void (*kvm, 8, 8)", "void (*kvm, 8, 8, 4)");
    for (file, name) in [
        (program.clone(), "nephoscope"),
        (kbuild::trap_module(&image, kernel).unwrap(), "nephoscope_kvm.ko"),
        (
            kbuild::test_module(&image, kernel, "redirect").unwrap(),
            "redirect.ko",
        ),
        (otherwise.unwrap(), "otherwise.ko"),
        (image.root().join(kvm), "kvm-amd.ko"),
    ] {
        std::fs::copy(file, share.path().join(name)).unwrap();
    }
    copy(&catalog.path(), &share.path().join("catalog"));

    let script = include_str!("../../guest-files/refusals");
    let shape = Shape {
        kernel,
        ..Shape::default()
    };
    let mut said = Vec::new();
    let code = nested.run(&shape, share.path(), script, LIMIT, |line| {
        println!("{line}");
        said.push(line.to_owned());
    });
    assert_eq!(code.unwrap(), 0);
    assert!(said.iter().all(|line| {
        !["WARNING:", "BUG:", "Oops", "left behind"]
            .iter()
            .any(|word| line.contains(word))
    }));
    let refusals = refusals(&said);
    for (name, code, words) in [
        ("no-module", 23, &["nephoscope-kvm, which is not loaded"][..]),
        (
            "no-vm",
            30,
            &["has no VM under KVM", "the process of the VMM itself"],
        ),
        ("no-process", 30, &["there is no process 99999999"]),
        (
            "redirected",
            1,
            &[
                "redirected by somebody else",
                "nephoscope_kvm: make_spte cannot be hooked",
            ],
        ),
        ("watched-already", 1, &["another monitor watches it already"]),
        ("unload", 1, &["in use"]),
        (
            "other-parameters",
            1,
            &[
                "not one that it supports",
                "nephoscope_kvm: kvm_zap_gfn_range of kvm is void (*kvm, 8, 8), but void (*kvm, 8, 8, 4) is what is supported",
            ],
        ),
        (
            "no-nested-paging",
            1,
            &["not one that it supports", "load kvm_amd with npt=1"],
        ),
    ] {
        let refusal = refusals.get(name).unwrap_or_else(|| panic!("{name}: {said:#?}"));
        assert_eq!(refusal.code, code, "{name}: {refusal:?}");
        for word in words {
            assert!(refusal.said.contains(word), "{name}: {refusal:?}");
        }
    }
    assert!(
        !refusals["watched-already"].said.contains("unwatched"),
        "{refusals:?}"
    );
    let count = |word: &str| -> Option<u32> {
        said.iter()
            .find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
    };
    assert_eq!(count("attached"), Some(4), "{said:#?}");
    assert_eq!(count("detached"), Some(0), "{said:#?}");
    for line in ["unloaded beside a running VM", "the VM runs"] {
        assert!(said.iter().any(|said| said == line), "{line}: {said:#?}");
    }
}

fn refusals(said: &[String]) -> BTreeMap<String, Refusal> {
    let mut all: BTreeMap<String, Refusal> = BTreeMap::new();
    let mut last = None;
    for line in said {
        if let (Some(more), Some(name)) = (line.strip_prefix("    "), &last) {
            let refusal: Option<&mut Refusal> = all.get_mut::<String>(name);
            refusal.unwrap().said.push_str(&format!("{}\n", more.trim()));
        } else if let Some((name, code)) = line.split_once(' ')
            && let Ok(code) = code.parse()
        {
            last = Some(name.to_owned());
            let said = String::new();
            all.insert(name.to_owned(), Refusal { code, said });
        } else {
            last = None;
        }
    }
    all
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
