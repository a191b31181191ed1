//! Frames and the shared-memory ring between the QEMU plugin and the monitor.
