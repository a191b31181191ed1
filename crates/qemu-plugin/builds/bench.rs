//! What QEMU's own machinery costs, and what ways to learn which user code runs cost, for benchmarks. It learns nothing.
//!
//! | `mode=` | what is done |
//! |---|---|
//! | `empty` | every translation is looked at, and nothing done |
//! | `inline` | every block of user code stores into its page's word before it runs, as the plugin has it |
//! | `callback` | every block of user code calls a function before it runs |
//! | `conditional` | the same, but only while its page's word is 0; the function sets it |
//! | `exits` | as `inline`, but only blocks that may leave their page |
#![allow(unsafe_code, reason = "the symbols that QEMU looks up, and those that it has")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// `qemu_plugin_u64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Word {
    score: *mut c_void,
    offset: usize,
}

type OnBlock = extern "C" fn(c_uint, *mut c_void);

/// `QEMU_PLUGIN_INLINE_STORE_U64`, `QEMU_PLUGIN_CB_NO_REGS`, `QEMU_PLUGIN_COND_EQ` (qemu-plugin.h of QEMU 9.2 to 10.0).
const STORE: c_int = 1;
const NO_REGS: c_int = 0;
const EQUAL: c_int = 2;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_scoreboard_new(bytes: usize) -> *mut c_void;
    fn qemu_plugin_u64_set(word: Word, vcpu: c_uint, value: u64);
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb: *mut c_void, op: c_int, word: Word, value: u64);
    fn qemu_plugin_register_vcpu_tb_exec_cb(tb: *mut c_void, call: OnBlock, flags: c_int, data: *mut c_void);
    fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        tb: *mut c_void,
        call: OnBlock,
        flags: c_int,
        condition: c_int,
        word: Word,
        value: u64,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const c_void) -> usize;
    fn qemu_plugin_tb_vaddr(tb: *const c_void) -> u64;
    fn qemu_plugin_tb_get_insn(tb: *const c_void, number: usize) -> *mut c_void;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    fn qemu_plugin_insn_size(insn: *const c_void) -> usize;
    fn qemu_plugin_insn_data(insn: *const c_void, to: *mut u8, bytes: usize) -> usize;
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Empty,
    Inline,
    Callback,
    Conditional,
    Exits,
}

/// A mode's name, as it is given.
const MODES: [(&CStr, Mode); 5] = [
    (c"mode=empty", Mode::Empty),
    (c"mode=inline", Mode::Inline),
    (c"mode=callback", Mode::Callback),
    (c"mode=conditional", Mode::Conditional),
    (c"mode=exits", Mode::Exits),
];

/// Pages that have words of their own; those further apart share.
const WORDS: usize = 1 << 16;

struct State {
    mode: Mode,
    score: usize,
}

static STATE: OnceLock<State> = OnceLock::new();

/// The announcement, which QEMU reads first: QEMU 9.2 to 10.0.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU's name")]
pub static qemu_plugin_version: c_int = 4;

/// Called once by QEMU.
///
/// # Safety
/// For QEMU alone, with `argc` pointers in `argv` to strings that end in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let mut mode = None;
    for number in 0..count {
        // SAFETY: QEMU gives `argc` pointers to strings that end in NUL.
        let argument = unsafe { CStr::from_ptr(*argv.add(number)) };
        mode = MODES
            .iter()
            .find(|(name, _)| *name == argument)
            .map(|(_, mode)| *mode);
    }
    let Some(mode) = mode else {
        eprintln!("this plugin takes one argument: mode=empty, inline, callback, conditional or exits");
        return 1;
    };
    // SAFETY: QEMU has these functions with these declarations (qemu-plugin.h), and calls us while it loads us, which is
    // when they may be called.
    unsafe {
        let score = qemu_plugin_scoreboard_new(WORDS * 8) as usize;
        if STATE.set(State { mode, score }).is_err() {
            return 1;
        }
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    }
    0
}

fn word(score: usize, page: u64) -> Word {
    Word {
        score: std::ptr::with_exposed_provenance_mut(score),
        offset: usize::try_from(page).unwrap_or(0) % WORDS * 8,
    }
}

extern "C" fn on_translation(_id: u64, tb: *mut c_void) {
    let Some(state) = STATE.get().filter(|state| state.mode != Mode::Empty) else {
        return;
    };
    // SAFETY: QEMU's functions, called with the block that it gave, while it waits for our return.
    unsafe {
        let at = qemu_plugin_tb_vaddr(tb);
        // The lower half is the users', but for firmware and the first moments of a boot.
        if at >> 47 != 0 {
            return;
        }
        let page = at >> 12;
        let (mine, data) = (
            word(state.score, page),
            std::ptr::without_provenance_mut(usize::try_from(page).unwrap_or(0)),
        );
        match state.mode {
            Mode::Empty => {}
            Mode::Exits if stays(tb, page) => {}
            Mode::Inline | Mode::Exits => {
                qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, STORE, mine, 1);
            }
            Mode::Callback => qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGS, data),
            Mode::Conditional => {
                qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, on_block, NO_REGS, EQUAL, mine, 0, data);
            }
        }
    }
}

extern "C" fn on_block(vcpu: c_uint, page: *mut c_void) {
    if let Some(state) = STATE.get() {
        // SAFETY: a word of our own scoreboard, and a vCPU that QEMU named.
        unsafe { qemu_plugin_u64_set(word(state.score, page.addr() as u64), vcpu, 1) };
    }
}

/// Whether a block ends in a direct jump or call within its page.
///
/// # Safety
/// A block that QEMU just gave.
unsafe fn stays(tb: *mut c_void, page: u64) -> bool {
    let mut bytes = [0_u8; 16];
    // SAFETY: as the caller's; at most as many bytes as there are.
    let (end, len) = unsafe {
        let last = qemu_plugin_tb_get_insn(tb, qemu_plugin_tb_n_insns(tb).wrapping_sub(1));
        if last.is_null() {
            return false;
        }
        let len = qemu_plugin_insn_data(last, bytes.as_mut_ptr(), bytes.len());
        (
            qemu_plugin_insn_vaddr(last).wrapping_add(qemu_plugin_insn_size(last) as u64),
            len,
        )
    };
    let near = |at: usize| {
        let field = bytes.get(at..at + 4).filter(|_| at + 4 == len);
        field
            .and_then(|field| field.try_into().ok())
            .map(i32::from_le_bytes)
    };
    let distance = match bytes {
        [0xeb | 0x70..=0x7f, distance, ..] if len == 2 => Some(i32::from(distance.cast_signed())),
        [0xe8 | 0xe9, ..] => near(1),
        [0x0f, 0x80..=0x8f, ..] => near(2),
        _ => None,
    };
    let to = |distance: i32| end.wrapping_add_signed(distance.into());
    distance.is_some_and(|distance| to(distance) >> 12 == page && end >> 12 == page)
}
