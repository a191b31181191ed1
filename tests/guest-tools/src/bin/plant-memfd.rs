//! `plant-memfd ELF [ARGUMENT…]`: copies an executable into a memfd and becomes it. The program that then runs has no
//! file behind it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::fexecve;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().context("usage: plant-memfd ELF [ARGUMENT…]")?;
    let mut payload = File::from(memfd_create("payload", MFdFlags::MFD_CLOEXEC)?);
    io::copy(
        &mut File::open(path).with_context(|| format!("cannot read {path}"))?,
        &mut payload,
    )?;
    payload.flush()?;
    let arguments = arguments
        .iter()
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<Vec<_>, _>>()?;
    fexecve(&payload, &arguments, &[] as &[CString])?;
    Ok(())
}
