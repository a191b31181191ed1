//! The plugin for QEMU 9.2 to 10.0.
#![allow(unsafe_code, reason = "the symbols that QEMU looks up")]

nephoscope_qemu_plugin::plugin_for_api!(4);
