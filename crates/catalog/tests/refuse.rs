//! What is not as it should be is refused by name, and the rest goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::os::unix::fs::FileExt;

use nephoscope_catalog::{AddError, Adder, Catalog, limits};
use support::*;

#[test]
fn a_truncated_package_is_refused_and_the_rest_goes_on() {
    let debs = tempfile::tempdir().unwrap();
    let whole = simple(debs.path(), "whole", "1", program(1));
    for pack in [Pack::Plain, Pack::Gz, Pack::Xz, Pack::Zst] {
        let cut = deb(
            debs.path(),
            &control("cut", "1"),
            &[Member::File("./bin/cut", program(2))],
            pack,
        );
        let bytes = std::fs::read(&cut).unwrap();
        for len in (1..bytes.len()).step_by(bytes.len() / 12) {
            std::fs::write(&cut, &bytes[..len]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let summary = add(dir.path(), &[cut.clone(), whole.clone()]);
            assert_eq!((summary.packages, summary.refused_total), (1, 1), "{len} bytes");
            let catalog = Catalog::open(dir.path()).unwrap();
            assert_eq!(whose(&catalog, &page(1)), ["whole 1 /usr/bin/whole"]);
            assert_eq!(catalog.info().unwrap().objects, 1, "nothing of the cut one");
        }
    }
}

#[test]
fn a_package_that_is_damaged_inside_is_refused_whole() {
    let debs = tempfile::tempdir().unwrap();
    for pack in [Pack::Gz, Pack::Xz] {
        let members = [
            Member::File("./bin/a", program(2)),
            Member::File("./bin/b", program(3)),
        ];
        let path = deb(debs.path(), &control("bad", "1"), &members, pack);
        let mut bytes = std::fs::read(&path).unwrap();
        // Near the end, in the last file's data or in the checksum after it.
        let at = bytes.len() - 40;
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let summary = add(dir.path(), &[path]);
        assert_eq!((summary.packages, summary.refused_total), (0, 1));
        assert_eq!(Catalog::open(dir.path()).unwrap().info().unwrap().objects, 0);
    }
}

#[test]
fn no_flipped_byte_of_a_package_stops_the_others() {
    let debs = tempfile::tempdir().unwrap();
    let path = deb(
        debs.path(),
        &control("bad", "1"),
        &[Member::File("./bin/a", program(2))],
        Pack::Plain,
    );
    let good = std::fs::read(&path).unwrap();
    let whole = simple(debs.path(), "whole", "1", program(1));
    let dir = tempfile::tempdir().unwrap();
    let mut adder = Adder::new(dir.path()).unwrap();
    for at in (0..good.len()).step_by(11) {
        let mut bad = good.clone();
        bad[at] ^= 0x81;
        std::fs::write(&path, bad).unwrap();
        adder.add(std::slice::from_ref(&path)).unwrap();
    }
    adder.add(&[whole]).unwrap();
    adder.commit().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(whose(&catalog, &page(1)), ["whole 1 /usr/bin/whole"]);
    assert!(catalog.verify().is_sound());
}

#[test]
fn a_file_that_is_named_and_holds_no_code_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "just text").unwrap();
    let summary = add(&dir.path().join("catalog"), &[text]);
    assert_eq!(summary.refused[0].reason, "holds no code of a known kind");
}

#[test]
fn a_path_that_does_not_exist_is_an_error_and_adds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut adder = Adder::new(dir.path()).unwrap();
    assert!(matches!(
        adder.add(&["/nonexistent.deb".into()]),
        Err(AddError::Input { .. })
    ));
}

#[test]
fn a_single_program_is_kept_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stray");
    std::fs::write(&file, program(5)).unwrap();
    add(&dir.path().join("catalog"), std::slice::from_ref(&file));
    let catalog = Catalog::open(&dir.path().join("catalog")).unwrap();
    let expected = format!("- {}", file.canonicalize().unwrap().display());
    assert_eq!(whose(&catalog, &page(5)), [expected]);
}

#[test]
fn max_file_bytes_stops_a_file_too_large_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("huge");
    std::fs::write(&file, program(5)).unwrap();
    let end = limits::MAX_FILE_BYTES + 1;
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .write_at(&[1], end - 1)
        .unwrap();
    let summary = add(&dir.path().join("catalog"), &[file]);
    assert_eq!((summary.refused_total, summary.objects_added), (1, 0));
    assert!(summary.refused[0].reason.starts_with("larger than"));
}

#[test]
fn max_control_bytes_stops_a_package_that_describes_itself_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(usize::try_from(limits::MAX_CONTROL_BYTES).unwrap());
    let control = format!("{}Description: {long}\n", control("long", "1"));
    let path = deb(
        dir.path(),
        &control,
        &[Member::File("./bin/a", program(1))],
        Pack::Gz,
    );
    let summary = add(&dir.path().join("catalog"), &[path]);
    assert!(
        summary.refused[0].reason.contains("control file larger"),
        "{:?}",
        summary.refused
    );
}

#[test]
fn max_xz_memory_stops_a_dictionary_of_gigabytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = deb(
        dir.path(),
        &control("xz", "1"),
        &[Member::File("./bin/a", program(1))],
        Pack::Plain,
    );
    let mut options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
    options.dict_size(1 << 30);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let stream =
        liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc64).unwrap();
    let mut out = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    std::io::Write::write_all(&mut out, &[0; 4096]).unwrap();
    let data = out.finish().unwrap();
    let mut source = ar::Archive::new(std::fs::File::open(&path).unwrap());
    let bad = dir.path().join("bad.deb");
    let mut ar = ar::Builder::new(std::fs::File::create(&bad).unwrap());
    while let Some(entry) = source.next_entry() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        if header.identifier() == b"data.tar" {
            ar.append(
                &ar::Header::new(b"data.tar.xz".to_vec(), data.len() as u64),
                data.as_slice(),
            )
            .unwrap();
        } else {
            ar.append(&header, &mut entry).unwrap();
        }
    }
    let summary = add(&dir.path().join("catalog"), &[bad]);
    assert_eq!((summary.packages, summary.refused_total), (0, 1), "{summary:?}");
}

#[test]
fn an_ar_archive_without_the_members_of_a_package_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.deb");
    let mut ar = ar::Builder::new(std::fs::File::create(&path).unwrap());
    ar.append(&ar::Header::new(b"debian-binary".to_vec(), 4), &b"2.0\n"[..])
        .unwrap();
    drop(ar);
    let summary = add(&dir.path().join("catalog"), &[path]);
    assert_eq!(summary.refused[0].reason, "not a Debian package: no control.tar");
}

#[test]
fn max_refusals_listed_bounds_a_summary_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "no code").unwrap();
    let summary = add(
        &dir.path().join("catalog"),
        &vec![text; limits::MAX_REFUSALS_LISTED + 5],
    );
    assert_eq!(summary.refused.len(), limits::MAX_REFUSALS_LISTED);
    assert_eq!(summary.refused_total, limits::MAX_REFUSALS_LISTED as u64 + 5);
}

#[test]
fn max_zstd_window_log_stops_a_window_of_gigabytes() {
    let packed = |log: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        // The head is written before the length is known, so that it names the window.
        std::io::Write::flush(&mut encoder).unwrap();
        std::io::Write::write_all(&mut encoder, &[0; 1024]).unwrap();
        encoder.finish().unwrap()
    };
    let added = |log| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("window.deb");
        let mut ar = ar::Builder::new(std::fs::File::create(&path).unwrap());
        let whole = deb(dir.path(), &control("window", "1"), &[], Pack::Plain);
        let mut source = ar::Archive::new(std::fs::File::open(&whole).unwrap());
        while let Some(entry) = source.next_entry() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            if header.identifier() == b"data.tar" {
                let data = packed(log);
                let header = ar::Header::new(b"data.tar.zst".to_vec(), data.len() as u64);
                ar.append(&header, data.as_slice()).unwrap();
            } else {
                ar.append(&header, &mut entry).unwrap();
            }
        }
        drop(ar);
        add(&dir.path().join("catalog"), &[path]).packages
    };
    assert_eq!(added(limits::MAX_ZSTD_WINDOW_LOG), 1);
    assert_eq!(added(limits::MAX_ZSTD_WINDOW_LOG + 1), 0);
}
