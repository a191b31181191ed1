//! Reading the CPU's registers through QEMU's gdb descriptions.
#![allow(unsafe_code, reason = "reads GLib arrays that QEMU fills")]

use std::ffi::{c_char, c_void};

use nephoscope_isa::{Mode, X86Controls};
use nephoscope_wire::Controls;

use crate::api::{Api, GArray, text};

const CR0_PG: u64 = 1 << 31;
const EFER_LMA: u64 = 1 << 10;

/// A register's handle, kept as a number so that it can be shared.
type Handle = usize;

/// The registers that are used, found by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    cr0: Handle,
    cr3: Handle,
    cr4: Handle,
    efer: Handle,
    cs: Handle,
    eflags: Handle,
    general: [Handle; 16],
}

const GENERAL_64: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const GENERAL_32: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

/// What a translation needs to know of the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CpuState {
    /// CR0.PG.
    pub(crate) paging: bool,
    /// CR0.PE.
    pub(crate) protected: bool,
    /// EFER.LMA.
    pub(crate) long: bool,
    /// CPL 3.
    pub(crate) user: bool,
}

impl Registers {
    /// Finds the registers of the current vCPU. `Err` names one that is missing.
    pub(crate) fn find(api: &Api) -> Result<Self, &'static str> {
        let array = (api.get_registers)();
        if array.is_null() {
            return Err("any register");
        }
        let mut named = Vec::new();
        let size = (api.g_array_get_element_size)(array) as usize;
        // SAFETY: a GArray that QEMU returned; `len` elements of `size` bytes start at `data`.
        let (data, len) = unsafe { ((*array).data, (*array).len as usize) };
        for i in 0..len {
            // SAFETY: element `i` is inside the array. A `qemu_plugin_reg_descriptor` starts with the handle and the
            // name in every API version; later ones only append to it.
            let (handle, name) = unsafe {
                let element = data.add(i * size);
                (
                    element.cast::<*mut c_void>().read_unaligned(),
                    element.add(8).cast::<*const c_char>().read_unaligned(),
                )
            };
            if let Some(name) = text(name) {
                named.push((name, handle as Handle));
            }
        }
        let found =
            Self::from_names(|name| named.iter().find(|(n, _)| *n == name).map(|(_, handle)| *handle));
        (api.g_array_free)(array, 1);
        found
    }

    fn from_names(find: impl Fn(&str) -> Option<Handle>) -> Result<Self, &'static str> {
        let mut registers = Self {
            cr0: find("cr0").ok_or("cr0")?,
            cr3: find("cr3").ok_or("cr3")?,
            cr4: find("cr4").ok_or("cr4")?,
            efer: find("efer").ok_or("efer")?,
            cs: find("cs").ok_or("cs")?,
            eflags: find("eflags").ok_or("eflags")?,
            general: [0; 16],
        };
        for (i, slot) in registers.general.iter_mut().enumerate() {
            let wide = GENERAL_64.get(i).and_then(|name| find(name));
            let narrow = || GENERAL_32.get(i).and_then(|name| find(name));
            *slot = wide.or_else(narrow).unwrap_or(0);
        }
        Ok(registers)
    }

    /// CR3.
    fn cr3(&self, api: &Api, buffer: &Buffer) -> Option<u64> {
        buffer.read(api, self.cr3)
    }

    /// How tables are read by a CPU in long mode or not. In 32-bit code without paging it is how they will be.
    fn mode(&self, api: &Api, buffer: &Buffer, long: bool) -> Option<Mode> {
        Mode::x86(&X86Controls {
            cr0: CR0_PG,
            cr4: buffer.read(api, self.cr4)?,
            efer: buffer.read(api, self.efer)? & !EFER_LMA | if long { EFER_LMA } else { 0 },
            physical_bits: 52,
            gib_pages: true,
        })
    }

    /// The root that is loaded, and how its tables are read. In long mode whether they have a fifth level is not looked at,
    /// which telling address spaces apart does not need, and which would be two more registers at each change of the root.
    pub(crate) fn root(&self, api: &Api, buffer: &Buffer, long: bool) -> Option<(u64, Mode)> {
        let mode = if long {
            Mode::long()
        } else {
            self.mode(api, buffer, long)?
        };
        Some((mode.root(self.cr3(api, buffer)?).0, mode))
    }

    /// The root that is loaded, and how its tables are read, the number of their levels too.
    pub(crate) fn root_and_levels(&self, api: &Api, buffer: &Buffer, long: bool) -> Option<(u64, Mode)> {
        let mode = self.mode(api, buffer, long)?;
        Some((mode.root(self.cr3(api, buffer)?).0, mode))
    }

    /// What says how the CPU reads its tables.
    pub(crate) fn controls(&self, api: &Api, buffer: &Buffer) -> Option<Controls> {
        // What is above these bits changes nothing of it.
        let low = |value: u64| value & 0xffff_ffff;
        Some(Controls {
            cr4: u32::try_from(low(buffer.read(api, self.cr4)?)).ok()?,
            efer: u16::try_from(buffer.read(api, self.efer)? & 0xffff).ok()?,
        })
    }

    /// EFER.LMA.
    pub(crate) fn is_long(&self, api: &Api, buffer: &Buffer) -> Option<bool> {
        Some(buffer.read(api, self.efer)? & EFER_LMA != 0)
    }

    /// A general register by its number in the instruction encoding.
    pub(crate) fn general(&self, api: &Api, buffer: &Buffer, number: u8) -> Option<u64> {
        let handle = self
            .general
            .get(usize::from(number))
            .copied()
            .filter(|handle| *handle != 0)?;
        buffer.read(api, handle)
    }

    /// What a translation of code at `va` needs.
    pub(crate) fn state(&self, api: &Api, buffer: &Buffer, va: u64) -> Option<CpuState> {
        // Only 64-bit mode has addresses above 4 GiB (AMD64 Architecture Programmer's Manual, volume 2, 1.3 "Operating
        // Modes"), and that is where nearly all code is: one register tells the rest.
        if va > u64::from(u32::MAX) {
            return Some(CpuState {
                paging: true,
                protected: true,
                long: true,
                user: buffer.read(api, self.cs)? & 3 == 3,
            });
        }
        let cr0 = buffer.read(api, self.cr0)?;
        let protected = cr0 & 1 != 0;
        let long = self.is_long(api, buffer)?;
        let level = buffer.read(api, self.cs)? & 3;
        // Virtual-8086 mode (EFLAGS.VM) always runs at CPL 3; real mode has no privilege levels.
        let virtual_8086 = !long && protected && buffer.read(api, self.eflags)? & (1 << 17) != 0;
        Some(CpuState {
            paging: cr0 & CR0_PG != 0,
            protected,
            long,
            user: protected && (level == 3 || virtual_8086),
        })
    }
}

/// A GLib byte array that one thread reads registers and memory into.
#[derive(Debug)]
pub(crate) struct Buffer(*mut GArray);

impl Buffer {
    pub(crate) fn new(api: &Api) -> Self {
        Self((api.g_byte_array_new)())
    }

    fn read(&self, api: &Api, register: Handle) -> Option<u64> {
        (api.g_byte_array_set_size)(self.0, 0);
        // API 6 turned the result from a length (or -1) into a truth value; what was appended says the same in both.
        (api.read_register)(register as *mut c_void, self.0);
        let mut value = [0; 8];
        let bytes = self.bytes();
        let len = bytes.len().min(8);
        value.get_mut(..len)?.copy_from_slice(bytes.get(..len)?);
        (len > 0).then(|| u64::from_le_bytes(value))
    }

    /// Reads guest memory as the current vCPU sees it. `None` if it cannot.
    pub(crate) fn memory(&self, api: &Api, at: u64, page: &mut [u8; 4096]) -> Option<()> {
        (api.g_byte_array_set_size)(self.0, 0);
        if !(api.read_memory_vaddr)(at, self.0, page.len()) {
            return None;
        }
        page.copy_from_slice(self.bytes().get(..4096)?);
        Some(())
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: a GByteArray of our own, which only this thread uses; `len` bytes start at `data`.
        unsafe {
            let (data, len) = ((*self.0).data, (*self.0).len as usize);
            if data.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts(data, len)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_register_is_named() {
        let names = ["cr0", "cr3", "cr4", "efer", "cs"];
        let find = |name: &str| names.iter().position(|n| *n == name).map(|i| i + 1);
        assert_eq!(Registers::from_names(find).unwrap_err(), "eflags");
    }

    #[test]
    fn a_32_bit_target_uses_the_narrow_names() {
        let names = ["cr0", "cr3", "cr4", "efer", "cs", "eflags", "eax", "edi"];
        let find = |name: &str| names.iter().position(|n| *n == name).map(|i| i + 1);
        let registers = Registers::from_names(find).unwrap();
        assert_eq!(
            (registers.general[0], registers.general[7], registers.general[8]),
            (7, 8, 0)
        );
    }
}
