//! Which paging mode the guest's CPUs are in, as QEMU's human monitor prints their registers.
//!
//! The monitor protocol has no command for registers; `info registers` has printed `CR0=`, `CR4=` and `EFER=` in
//! hexadecimal since QEMU 0.10 (`target/i386/cpu-dump.c`).

use nephoscope_isa::{Mode, X86Controls};
use thiserror::Error;

use crate::qmp::{Qmp, QmpError};

/// TCG takes page-table entries up to 52 bits (`TARGET_PHYS_ADDR_SPACE_BITS`); a frame that the machine has not is no
/// memory, which reading it tells.
pub(crate) const PHYSICAL_BITS: u8 = 52;

/// Why the mode is not known.
#[derive(Debug, Error)]
pub enum CpuStateError {
    /// QEMU did not answer.
    #[error("QEMU does not tell its registers")]
    Qmp(#[from] QmpError),
    /// The answer has no such register, or it is no number.
    #[error("QEMU's registers have no {0}")]
    Missing(&'static str),
}

/// The paging mode of the first CPU; `None` while paging is off.
///
/// # Errors
/// If QEMU does not answer, or prints registers in another way.
pub fn paging_mode(qmp: &mut Qmp) -> Result<Option<Mode>, CpuStateError> {
    parse(&qmp.monitor("info registers")?)
}

fn parse(text: &str) -> Result<Option<Mode>, CpuStateError> {
    let controls = X86Controls {
        cr0: register(text, "CR0=")?,
        cr4: register(text, "CR4=")?,
        efer: register(text, "EFER=")?,
        physical_bits: PHYSICAL_BITS,
        gib_pages: true,
    };
    Ok(Mode::x86(&controls))
}

fn register(text: &str, name: &'static str) -> Result<u64, CpuStateError> {
    let missing = CpuStateError::Missing(name.trim_end_matches('='));
    let Some((_, rest)) = text.split_once(name) else {
        return Err(missing);
    };
    let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    rest.get(..end)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From QEMU 10.0, shortened.
    const LONG: &str = "CPU#0\r\nRAX=0 CR0=80050033 CR2=00007f2c4d1c1000 CR3=0000000003f3c000 CR4=000006f0\r\n\
        DR0=0000000000000000\r\nEFER=0000000000000d01\r\n";

    #[test]
    fn the_mode_follows_from_the_printed_registers() {
        assert_eq!(
            parse(LONG).unwrap().unwrap().name(),
            Mode::x86(&X86Controls {
                cr0: 0x8005_0033,
                cr4: 0x6f0,
                efer: 0xd01,
                physical_bits: 52,
                gib_pages: true,
            })
            .unwrap()
            .name()
        );
        assert!(
            parse(&LONG.replace("CR0=80050033", "CR0=00000010"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_missing_register_and_one_without_a_number_are_named() {
        for (from, to) in [("CR4=", "CRX="), ("EFER=0000000000000d01", "EFER=")] {
            let error = parse(&LONG.replace(from, to)).unwrap_err();
            assert!(matches!(error, CpuStateError::Missing("CR4" | "EFER")), "{error}");
        }
    }
}
