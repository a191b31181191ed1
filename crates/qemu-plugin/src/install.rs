//! Loading: QEMU finds `qemu_plugin_version`, calls `qemu_plugin_install`, and later the callbacks given here.
#![allow(unsafe_code, reason = "what QEMU passes are C pointers")]

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nephoscope_wire::{Frame, RingMemory};

use crate::api::{Api, Info, text};
use crate::collect::{on_flush, on_idle};
use crate::collector::run_collector;
use crate::config::Config;
use crate::counters::Counters;
use crate::follow::Follow;
use crate::frames::{Frames, MAX_FRAMES};
use crate::marks::Marks;
use crate::memory::Memory;
use crate::plugin::{self, Plugin, guarded, now_ns};
use crate::registers::Registers;
use crate::translate::on_translation;
use crate::vcpu::Vcpu;
use nephoscope_isa::Roots;

/// The most vCPUs: a message can carry 253 descriptors.
const MAX_VCPUS: usize = 250;
/// QEMU makes scoreboards for this many vCPUs at least, and moves them when there are more.
const SCOREBOARD_VCPUS: c_int = 16;

static LISTENER: Mutex<Option<std::os::unix::net::UnixListener>> = Mutex::new(None);
static THREADS: OnceLock<()> = OnceLock::new();

/// Loads the plugin into the QEMU that calls. Not 0: QEMU prints that the plugin could not be loaded and exits.
/// `api_version` is what this build announced. Called by what [`crate::plugin_for_api`] makes, and by nothing else.
#[doc(hidden)]
#[must_use]
#[allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "QEMU is the only caller, through what `plugin_for_api` makes, and passes what it documents"
)]
pub fn install_for(
    api_version: c_int,
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let arguments = arguments(argc, argv);
    // SAFETY: QEMU passes a valid `qemu_info_t` that lives during this call.
    let Some(info) = (unsafe { info.as_ref() }) else {
        return -1;
    };
    match std::panic::catch_unwind(|| install(api_version, id, info, &arguments)) {
        Ok(Ok(())) => 0,
        Ok(Err(reason)) => {
            eprintln!("nephoscope plugin: {reason}");
            -1
        }
        Err(_) => -1,
    }
}

/// Makes a crate the plugin for one version of QEMU's plugin API. QEMU refuses a library outside the versions that it
/// supports, so there is a build per version; all but this announcement is the same.
#[macro_export]
macro_rules! plugin_for_api {
    ($version:literal) => {
        /// The announcement, which QEMU reads first.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals, reason = "QEMU's name")]
        pub static qemu_plugin_version: core::ffi::c_int = $version;

        /// Called once by QEMU.
        #[unsafe(no_mangle)]
        pub extern "C" fn qemu_plugin_install(
            id: u64,
            info: *const $crate::Info,
            argc: core::ffi::c_int,
            argv: *const *const core::ffi::c_char,
        ) -> core::ffi::c_int {
            $crate::install_for($version, id, info, argc, argv)
        }
    };
}

fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<&'static str> {
    let count = usize::try_from(argc).unwrap_or(0);
    let pointers = if argv.is_null() {
        &[]
    } else {
        // SAFETY: `argv` holds `argc` C strings that live as long as the plugin.
        unsafe { std::slice::from_raw_parts(argv, count) }
    };
    pointers.iter().filter_map(|pointer| text(*pointer)).collect()
}

/// How many vCPUs there may be.
fn vcpus(most: c_int) -> Result<usize, String> {
    let most = usize::try_from(most).unwrap_or(0).max(1);
    if most > MAX_VCPUS {
        return Err(format!("{most} vCPUs are too many: at most {MAX_VCPUS}"));
    }
    Ok(most)
}

fn install(api_version: c_int, id: u64, info: &Info, arguments: &[&str]) -> Result<(), String> {
    let config = Config::parse(arguments.iter().copied())?;
    let target = text(info.target_name).unwrap_or_default();
    if !info.system_emulation || !matches!(target, "x86_64" | "i386") {
        return Err(format!(
            "target {target:?} is not supported: use qemu-system-x86_64"
        ));
    }
    if config.kvm {
        return crate::guard::install(&config);
    }
    let api = Api::resolve()
        .map_err(|name| format!("this QEMU has no {name}: it needs plugin API 4 (QEMU 9.2) or later"))?;
    let most = vcpus(info.max_vcpus)?;
    if info.max_vcpus > info.smp_vcpus && info.max_vcpus > SCOREBOARD_VCPUS {
        return Err("hot-plugging vCPUs past the sixteenth is not supported: start with all of them".into());
    }
    let mut vcpus = Vec::with_capacity(most);
    for index in 0..most {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        let ring = RingMemory::create(&format!("nephoscope-ring-{index}"), config.ring_bytes)
            .map_err(|error| format!("no ring for vCPU {index}: {error}"))?;
        vcpus.push(Vcpu::new(index, ring));
    }
    let listener = crate::control::listen(&config.socket)
        .map_err(|error| format!("cannot listen on {}: {error}", config.socket.display()))?;
    if let Ok(mut slot) = LISTENER.lock() {
        *slot = Some(listener);
    }
    let wake = rustix::event::eventfd(
        0,
        rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
    )
    .map_err(|error| format!("no event descriptor: {error}"))?;
    let follow = if config.disks.is_empty() {
        None
    } else {
        let ring = RingMemory::create("nephoscope-ring-files", config.ring_bytes);
        Some(Follow::new(
            ring.map_err(|error| format!("no ring for files: {error}"))?,
        ))
    };
    let installed = plugin::set(Plugin {
        id,
        api,
        api_version,
        target: target.to_owned(),
        config,
        vcpus,
        start_vcpus: u32::try_from(info.smp_vcpus).unwrap_or(1),
        frames: Frames::new(MAX_FRAMES),
        marks: Marks::new(),
        roots: Roots::new(),
        memory: Memory::default(),
        counters: Counters::default(),
        registers: OnceLock::new(),
        attached: AtomicBool::new(false),
        blind_since: AtomicU64::new(0),
        installed_ns: now_ns(),
        wake,
        round_robin: AtomicBool::new(false),
        exiting: AtomicBool::new(false),
        follow,
    });
    if !installed {
        return Err("loaded twice".into());
    }
    let none = std::ptr::null_mut();
    (api.register_vcpu_init)(id, on_vcpu_init, none);
    (api.register_vcpu_idle)(id, on_idle, none);
    (api.register_tb_trans)(id, on_translation, none);
    (api.register_flush)(id, on_flush, none);
    (api.register_atexit)(id, on_exit, none);
    Ok(())
}

/// A vCPU starts, on its own thread. QEMU holds its big lock: the wait for the first monitor is for the handshake only,
/// which needs nothing of QEMU.
extern "C" fn on_vcpu_init(a: u64, b: u64) {
    guarded(|plugin| {
        let index = if a == plugin.id { b } else { a };
        let Ok(index) = u16::try_from(index & 0xffff_ffff) else {
            return;
        };
        plugin.adopt_thread(index);
        if plugin.registers.get().is_none() {
            match Registers::find(&plugin.api) {
                Ok(registers) => {
                    let _ = plugin.registers.set(registers);
                }
                Err(name) => {
                    eprintln!("nephoscope plugin: this QEMU does not show {name}: nothing can be watched")
                }
            }
        }
        if let Some(vcpu) = plugin.vcpus.get(usize::from(index)) {
            vcpu.started.store(true, Ordering::Release);
        }
        // Threads are started here and not when the library is loaded: `-daemonize` forks in between.
        THREADS.get_or_init(|| start_threads(plugin));
        let deadline = Instant::now() + Duration::from_millis(plugin.config.wait_ms);
        while !plugin.is_attached() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !plugin.is_attached() {
            let _ = plugin
                .blind_since
                .compare_exchange(0, now_ns(), Ordering::Relaxed, Ordering::Relaxed);
        }
    });
}

fn start_threads(plugin: &'static Plugin) {
    let listener = LISTENER.lock().ok().and_then(|mut slot| slot.take());
    if let Some(listener) = listener {
        let served = std::thread::Builder::new()
            .name("nephoscope-ctl".into())
            .spawn(move || crate::control::run(plugin, &listener));
        if served.is_err() {
            eprintln!("nephoscope plugin: no thread for the control socket");
        }
    }
    crate::follow::start(plugin);
    let collected = std::thread::Builder::new()
        .name("nephoscope-marks".into())
        .spawn(move || run_collector(plugin));
    if collected.is_err() {
        eprintln!("nephoscope plugin: no thread for the collector");
    }
}

extern "C" fn on_exit(_: u64, _: u64) {
    guarded(|plugin| {
        plugin.exiting.store(true, Ordering::Relaxed);
        for vcpu in &plugin.vcpus {
            if let Some(mut local) = vcpu.try_lock() {
                plugin.tell_pending(vcpu, &mut local, false);
            }
        }
        plugin.send_counters();
        if let Some(vcpu) = plugin.vcpus.first()
            && let Some(mut local) = vcpu.try_lock()
        {
            plugin.push(vcpu, &mut local, &Frame::Stopped, 0, false);
        }
        plugin.signal();
        let _ = std::fs::remove_file(&plugin.config.socket);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_vcpus_is_the_most_vcpus() {
        assert_eq!((vcpus(0), vcpus(250)), (Ok(1), Ok(MAX_VCPUS)));
        assert!(vcpus(251).is_err_and(|error| error.contains("at most 250")));
    }
}
