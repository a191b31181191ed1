//! What is this file? Decided by its contents.

use crate::compression::Format;
use crate::error::RecipeError;
use crate::object::Object;
use crate::{elf, firmware, interpreted, kernel, module};

/// Machine type and kind of an ELF header: `ET_REL`.
const RELOCATABLE: [u8; 2] = [1, 0];

/// The recipe of a file that holds code, or is read by an interpreter; `None` for any other file. `path` helps to tell a
/// compressed module from other compressed files, and what interpreters read from other texts.
///
/// # Errors
/// [`RecipeError`] if it is of a kind that has recipes, but malformed.
pub fn recognise(file: &[u8], path: &str) -> Result<Option<Object>, RecipeError> {
    if file.starts_with(b"\x7fELF") {
        return elf_file(file);
    }
    if file.get(0x202..0x206) == Some(b"HdrS") {
        return kernel::recognise(file).map(Some);
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.contains(".ko.") && Format::of(file).is_some() {
        return module::recognise(file).map(Some);
    }
    if let Some(object) = interpreted::recognise(file, path) {
        return Ok(Some(object));
    }
    firmware::recognise(file)
}

fn elf_file(file: &[u8]) -> Result<Option<Object>, RecipeError> {
    if file.get(16..18) == Some(&RELOCATABLE) {
        // Object files are not loaded; modules are, and say so.
        return match module::recognise(file) {
            Ok(object) => Ok(Some(object)),
            Err(RecipeError::Other { .. }) => Ok(None),
            Err(error) => Err(error),
        };
    }
    match elf::recognise(file) {
        Ok(object) if is_vmlinux(file, &object) => kernel::recognise(file).map(Some),
        Ok(object) => Ok(Some(object)),
        // For another machine, or a core dump.
        Err(RecipeError::Other { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kernel is linked where only kernels are.
fn is_vmlinux(file: &[u8], object: &Object) -> bool {
    let _ = file;
    object.loads.iter().any(|load| load.va >= 0xffff_ffff_8000_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectKind;

    #[test]
    fn programs_are_recognised_and_texts_are_not() {
        let bash = recognise(&std::fs::read("/bin/bash").unwrap(), "/bin/bash")
            .unwrap()
            .unwrap();
        assert_eq!(bash.kind, ObjectKind::Executable);
        assert_eq!(recognise(b"a text\n", "/bin/x").unwrap(), None);
        assert_eq!(recognise(b"", "/empty").unwrap(), None);
    }

    /// As an assembler writes them: `crtn.o` and `Mcrt1.o` of the C library have no symbol table, and an object file of
    /// a large program has more sections than the header can count.
    #[test]
    fn object_files_are_not_modules_whatever_they_lack() {
        let folder = tempfile::tempdir().unwrap();
        let assembled = |source: &str| {
            let (asm, object) = (folder.path().join("a.s"), folder.path().join("a.o"));
            std::fs::write(&asm, source).unwrap();
            let status = std::process::Command::new("as")
                .args([asm.as_os_str(), "-o".as_ref(), object.as_os_str()])
                .status()
                .unwrap();
            assert!(status.success());
            std::fs::read(object).unwrap()
        };
        let bare = assembled(".section .init\nret\n.section .fini\nret\n");
        assert_eq!(recognise(&bare, "/usr/lib/crtn.o").unwrap(), None);
        let many: String = (0..70_000)
            .map(|n| format!(".section .text.f{n},\"ax\"\nret\n"))
            .collect();
        assert_eq!(recognise(&assembled(&many), "/usr/lib/many.o").unwrap(), None);
        // A module without symbols is one that no kernel loads: said, not passed over.
        let marked = assembled(".section .gnu.linkonce.this_module,\"aw\"\n.quad 0\n");
        let error = recognise(&marked, "/lib/modules/x.ko").unwrap_err();
        assert!(error.to_string().contains("the symbol table"), "{error}");
        // Nor is one that ends before its section table.
        assert!(recognise(&bare[..bare.len() / 2], "/lib/modules/x.ko").is_err());
    }
}
