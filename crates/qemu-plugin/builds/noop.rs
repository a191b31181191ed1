//! A plugin that looks at every translation and does nothing: what QEMU's own machinery costs, for benchmarks.
#![allow(unsafe_code, reason = "the symbols that QEMU looks up, and one that it has")]

use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: extern "C" fn(u64, *mut c_void));
}

/// The announcement, which QEMU reads first: QEMU 9.2 to 10.0.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU's name")]
pub static qemu_plugin_version: c_int = 4;

/// Called once by QEMU.
#[unsafe(no_mangle)]
pub extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU has this function in every version that takes plugins, with this declaration (qemu-plugin.h), and
    // calls us while it loads us, which is when it may be called.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation) };
    0
}

extern "C" fn on_translation(_id: u64, _block: *mut c_void) {}
