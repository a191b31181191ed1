//! What packages and root trees are made of: the outer archive, control data, paths, dpkg's database, trees of any names.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Unstructured;
use nephoscope_catalog::fuzzing;

/// A file in memory that is written anew for each input.
fn memory_file() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        File::from(fd)
    })
}

fn written(bytes: &[u8]) -> File {
    let file = memory_file();
    file.set_len(0)
        .and_then(|()| file.write_all_at(bytes, 0))
        .expect("memory");
    file.try_clone().expect("a descriptor")
}

/// A `.deb`, whole. The first byte says whether the input is one or the members of one: `ar` with its headers right.
pub fn deb(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = match how % 4 {
        0 => bytes.to_vec(),
        how => members(how, bytes),
    };
    fuzzing::archive(&written(&whole), whole.len() as u64);
    let _ = fuzzing::deb(written(&whole));
}

/// A package whose control archive is right and whose data archive is the input, or the other way round; or whose
/// `control` file is the input.
fn members(how: u8, bytes: &[u8]) -> Vec<u8> {
    const CONTROL: &[u8] = b"Package: a\nVersion: 1\n";
    let (control, data) = match how {
        1 => (tar("./control", CONTROL), bytes.to_vec()),
        2 => (bytes.to_vec(), tar("./usr/bin/a", b"x")),
        _ => (tar("./control", bytes), tar("./usr/bin/a", b"x")),
    };
    archive(&[
        ("debian-binary", b"2.0\n"),
        ("control.tar", &control),
        ("data.tar", &data),
    ])
}

/// An outer archive.
pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        out.extend(
            format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                "100644",
                bytes.len()
            )
            .bytes(),
        );
        out.extend(*bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

/// One file in a tar archive.
pub(crate) fn tar(path: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar ");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = header.to_vec();
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(512) + 1024, 0);
    out
}

/// Control data and paths, from the same text.
pub fn control(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    fuzzing::control(&text);
    for line in bytes.split(|byte| *byte == b'\n') {
        fuzzing::check_path(line);
    }
}

pub(crate) fn scratch(name: &str) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let folder = base.join(format!("nephoscope-fuzz-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for files");
    folder
}

/// Files of a database that stay open, to be written anew.
struct Admin {
    root: PathBuf,
    files: [File; 4],
}

/// dpkg's database: `status`, a list, checksums, diversions, parted by a line of `%`.
pub fn dpkg(bytes: &[u8]) {
    static ADMIN: OnceLock<Admin> = OnceLock::new();
    let admin = ADMIN.get_or_init(|| {
        let root = scratch("dpkg");
        let folder = root.join("var/lib/dpkg");
        std::fs::create_dir_all(folder.join("info")).expect("a folder");
        let open = |name: &str| File::create(folder.join(name)).expect("a file");
        let files = [
            open("status"),
            open("info/a.list"),
            open("info/a.md5sums"),
            open("diversions"),
        ];
        Admin { root, files }
    });
    let mut pieces = bytes.split(|byte| *byte == b'%');
    for file in &admin.files {
        let piece = pieces.next().unwrap_or_default();
        file.set_len(0)
            .and_then(|()| file.write_all_at(piece, 0))
            .expect("memory");
    }
    fuzzing::database(&admin.root, &["/usr/bin/a", "/bin/a", "/b", ""]);
}

/// Trees of any names: files, folders, links and pipes, some of which lead out or in circles.
pub fn tree(bytes: &[u8]) {
    let root = {
        static ROOT: OnceLock<PathBuf> = OnceLock::new();
        ROOT.get_or_init(|| scratch("tree"))
    };
    let mut files = 0;
    let _ = build(root, &mut Unstructured::new(bytes), &mut files);
    let found = fuzzing::walk(root);
    assert!(found <= files, "nothing outside of the tree is found");
    for entry in std::fs::read_dir(root).expect("the root").flatten() {
        let path = entry.path();
        let _ = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
    }
}

fn build(root: &Path, input: &mut Unstructured<'_>, files: &mut usize) -> arbitrary::Result<()> {
    let mut folders = vec![root.to_path_buf()];
    for _ in 0..input.int_in_range(0..=10)? {
        let at = folders[usize::from(input.arbitrary::<u8>()?) % folders.len()].clone();
        let len = input.int_in_range(1..=12)?;
        let name: Vec<u8> = input
            .bytes(len)?
            .iter()
            .map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { *byte })
            .collect();
        if name == b"." || name == b".." {
            continue;
        }
        let path = at.join(std::ffi::OsStr::from_bytes(&name));
        match input.arbitrary::<u8>()? % 8 {
            0 | 1 => {
                if std::fs::create_dir(&path).is_ok() {
                    folders.push(path);
                }
            }
            2 => {
                let _ = std::os::unix::fs::symlink(
                    ["..", "/", "/etc", ".", "x"][usize::from(input.arbitrary::<u8>()?) % 5],
                    path,
                );
            }
            3 => {
                let _ = rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RWXU,
                    0,
                );
            }
            _ => *files += usize::from(File::create_new(&path).is_ok()),
        }
    }
    Ok(())
}
