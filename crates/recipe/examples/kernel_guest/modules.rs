//! The modules to load, in the order of their dependencies.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Options;

/// One module.
pub(crate) struct Module {
    pub(crate) name: String,
    /// As in the package.
    pub(crate) file: Vec<u8>,
    /// Uncompressed.
    pub(crate) plain: Vec<u8>,
}

/// The modules named on the command line after those that they need.
pub(crate) fn in_order(options: &Options) -> Result<Vec<Module>> {
    let Some(dir) = &options.modules else {
        return Ok(Vec::new());
    };
    let mut paths = HashMap::new();
    find(dir, &mut paths)?;
    let mut ordered = Vec::new();
    for name in &options.load {
        add(&name.replace('-', "_"), &paths, &mut ordered)?;
    }
    Ok(ordered)
}

fn find(dir: &Path, paths: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), paths)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            paths.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn add(name: &str, paths: &HashMap<String, PathBuf>, ordered: &mut Vec<Module>) -> Result<()> {
    if ordered.iter().any(|m| m.name == name) {
        return Ok(());
    }
    let Some(path) = paths.get(name) else {
        println!("{name}: no such module, or built in");
        return Ok(());
    };
    let file = fs::read(path)?;
    let mut plain = Vec::new();
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => {
            liblzma::read::XzDecoder::new(file.as_slice()).read_to_end(&mut plain)?;
        }
        Some("zst") => plain = zstd::decode_all(file.as_slice())?,
        _ => plain.clone_from(&file),
    }
    let needs = memchr::memmem::find(&plain, b"\0depends=").map_or("", |at| {
        let text = &plain[at + 9..];
        let len = memchr::memchr(0, text).unwrap_or(0);
        std::str::from_utf8(&text[..len]).unwrap_or("")
    });
    for needed in needs
        .split(',')
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect::<Vec<_>>()
    {
        add(&needed.replace('-', "_"), paths, ordered)?;
    }
    ordered.push(Module {
        name: name.to_owned(),
        file,
        plain,
    });
    Ok(())
}
