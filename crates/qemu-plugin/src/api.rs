//! QEMU's plugin API (`include/plugins/qemu-plugin.h`), as much of it as is used, for API versions 4 to 7.
//!
//! The functions are looked up in the running QEMU instead of being linked, so that a function that is missing is an
//! error with a name, newer ones are optional, and the rest of the crate can be tested without QEMU. Version 7 gives
//! every callback and registration a trailing user-data argument. The C calling conventions that QEMU runs on
//! (System V AMD64, AAPCS64) let a callee ignore trailing arguments, so one declaration with the argument serves all.
#![allow(unsafe_code, reason = "the boundary to QEMU's C functions")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// Opaque `struct qemu_plugin_tb`.
#[repr(C)]
pub(crate) struct Tb {
    _private: [u8; 0],
}

/// Opaque `struct qemu_plugin_insn`.
#[repr(C)]
pub(crate) struct Insn {
    _private: [u8; 0],
}

/// `qemu_info_t`.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    pub(crate) target_name: *const c_char,
    pub(crate) version_min: c_int,
    pub(crate) version_cur: c_int,
    pub(crate) system_emulation: bool,
    pub(crate) smp_vcpus: c_int,
    pub(crate) max_vcpus: c_int,
}

/// The start of `GArray` and `GByteArray`, which have the same public fields.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct GArray {
    pub(crate) data: *mut u8,
    pub(crate) len: c_uint,
}

/// `qemu_plugin_u64`: a place in every vCPU's entry of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreboardU64 {
    pub(crate) score: *mut c_void,
    pub(crate) offset: usize,
}

/// `QEMU_PLUGIN_INLINE_STORE_U64`.
pub(crate) const INLINE_STORE_U64: c_int = 1;
/// `QEMU_PLUGIN_CB_R_REGS`.
pub(crate) const CB_R_REGS: c_int = 1;

/// A callback with two arguments: before API 7 (plugin id, subject), from 7 on (subject, user data).
pub(crate) type PairCallback = extern "C" fn(u64, u64);
/// A callback on execution: (vCPU index, user data).
pub(crate) type ExecCallback = extern "C" fn(c_uint, *mut c_void);

macro_rules! api {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: $type:ty;)*) => {
        /// QEMU's functions.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Api {
            $($(#[$doc])* pub(crate) $field: $type,)*
        }

        impl Api {
            /// Looks every function up; the error is the name of the first one that is missing.
            pub(crate) fn resolve() -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the name is a C string that ends in NUL.
                        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, concat!($symbol, "\0").as_ptr().cast()) };
                        if address.is_null() {
                            return Err($symbol);
                        }
                        // SAFETY: the symbol is the function of that name in QEMU or GLib, whose declaration is `$type`
                        // (up to trailing arguments that it ignores, see the module's documentation).
                        unsafe { std::mem::transmute::<*mut c_void, $type>(address) }
                    },)*
                })
            }
        }
    };
}

api! {
    register_vcpu_init = "qemu_plugin_register_vcpu_init_cb": extern "C" fn(u64, PairCallback, *mut c_void);
    register_vcpu_idle = "qemu_plugin_register_vcpu_idle_cb": extern "C" fn(u64, PairCallback, *mut c_void);
    register_tb_trans = "qemu_plugin_register_vcpu_tb_trans_cb": extern "C" fn(u64, PairCallback, *mut c_void);
    register_atexit = "qemu_plugin_register_atexit_cb": extern "C" fn(u64, PairCallback, *mut c_void);
    register_flush = "qemu_plugin_register_flush_cb": extern "C" fn(u64, PairCallback, *mut c_void);
    tb_exec = "qemu_plugin_register_vcpu_tb_exec_cb": extern "C" fn(*mut Tb, ExecCallback, c_int, *mut c_void);
    tb_exec_inline = "qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu":
        extern "C" fn(*mut Tb, c_int, ScoreboardU64, u64);
    insn_exec = "qemu_plugin_register_vcpu_insn_exec_cb": extern "C" fn(*mut Insn, ExecCallback, c_int, *mut c_void);
    tb_n_insns = "qemu_plugin_tb_n_insns": extern "C" fn(*const Tb) -> usize;
    tb_vaddr = "qemu_plugin_tb_vaddr": extern "C" fn(*const Tb) -> u64;
    tb_get_insn = "qemu_plugin_tb_get_insn": extern "C" fn(*const Tb, usize) -> *mut Insn;
    insn_data = "qemu_plugin_insn_data": extern "C" fn(*const Insn, *mut u8, usize) -> usize;
    insn_size = "qemu_plugin_insn_size": extern "C" fn(*const Insn) -> usize;
    insn_vaddr = "qemu_plugin_insn_vaddr": extern "C" fn(*const Insn) -> u64;
    insn_haddr = "qemu_plugin_insn_haddr": extern "C" fn(*const Insn) -> *mut u8;
    get_registers = "qemu_plugin_get_registers": extern "C" fn() -> *mut GArray;
    read_register = "qemu_plugin_read_register": extern "C" fn(*mut c_void, *mut GArray) -> c_int;
    read_memory_vaddr = "qemu_plugin_read_memory_vaddr": extern "C" fn(u64, *mut GArray, usize) -> bool;
    scoreboard_new = "qemu_plugin_scoreboard_new": extern "C" fn(usize) -> *mut c_void;
    scoreboard_find = "qemu_plugin_scoreboard_find": extern "C" fn(*mut c_void, c_uint) -> *mut u64;
    g_byte_array_new = "g_byte_array_new": extern "C" fn() -> *mut GArray;
    g_byte_array_set_size = "g_byte_array_set_size": extern "C" fn(*mut GArray, c_uint) -> *mut GArray;
    g_array_get_element_size = "g_array_get_element_size": extern "C" fn(*mut GArray) -> c_uint;
    g_array_free = "g_array_free": extern "C" fn(*mut GArray, c_int) -> *mut c_char;
}

/// Text of a C string that QEMU owns. `None` if it is null or not UTF-8.
pub(crate) fn text<'a>(pointer: *const c_char) -> Option<&'a str> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: QEMU gives NUL-terminated strings that live as long as the plugin (names are interned, arguments
    // "remain valid throughout the lifetime of the loaded plugin").
    unsafe { CStr::from_ptr(pointer) }.to_str().ok()
}
