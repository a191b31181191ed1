//! The plugin for QEMU 11.0 and later.
#![allow(unsafe_code, reason = "the symbols that QEMU looks up")]

nephoscope_qemu_plugin::plugin_for_api!(7);
