//! The plugin for QEMU 10.2.
#![allow(unsafe_code, reason = "the symbols that QEMU looks up")]

nephoscope_qemu_plugin::plugin_for_api!(6);
