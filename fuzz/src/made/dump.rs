//! Dumps: ELF cores of both widths, and LiME images.

use super::Seed;

/// A range of a LiME image.
fn range(first: u64, bytes: &[u8]) -> Vec<u8> {
    let last = first + bytes.len() as u64 - 1;
    let mut out = b"EMiL\x01\0\0\0".to_vec();
    for word in [first, last, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(bytes);
    out
}

/// A number of so many bytes.
fn put(out: &mut Vec<u8>, number: u64, bytes: usize) {
    out.extend(number.to_le_bytes().iter().take(bytes));
}

/// A core with a note of one CPU's registers and two ranges of memory, one of which goes on with zeros.
fn core(wide: bool) -> Vec<u8> {
    let (word, header, segment) = if wide { (8, 64, 56) } else { (4, 52, 32) };
    let mut note = Vec::new();
    for number in [5, 440, 0] {
        put(&mut note, number, 4);
    }
    note.extend(b"QEMU\0\0\0\0\x01\0\0\0");
    note.resize(12 + 8 + 440, 0);
    let at = header + 3 * segment;
    let memory = at + note.len() as u64;
    let mut out = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
    out.resize(16, 0);
    put(&mut out, 4, 2);
    put(&mut out, if wide { 62 } else { 3 }, 2);
    put(&mut out, 1, 4);
    for number in [0, header, 0] {
        put(&mut out, number, word);
    }
    put(&mut out, 0, 4);
    for number in [header, segment, 3, 0, 0, 0] {
        put(&mut out, number, 2);
    }
    let len = note.len() as u64;
    for (kind, at, address, len, all) in [
        (4, at, 0, len, len),
        (1, memory, 0, 4, 4),
        (1, memory + 4, 0x10_0000, 4, 0x1000),
    ] {
        put(&mut out, kind, 4);
        if wide {
            put(&mut out, 0, 4);
        }
        for number in [at, 0, address, len, all] {
            put(&mut out, number, word);
        }
        if !wide {
            put(&mut out, 0, 4);
        }
        put(&mut out, 0, word);
    }
    out.extend(note);
    out.extend(b"low.high");
    out
}

/// With the byte before them that the target takes.
pub(crate) fn seeds() -> Vec<Seed> {
    let lime = [range(0x10_0000, b"high"), range(0x1000, b"low.")].concat();
    let seed = |name: &str, pages: u8, bytes: Vec<u8>| {
        let bytes = [vec![pages << 6], bytes].concat();
        ("dump", name.to_owned(), bytes)
    };
    vec![
        seed("core-64", 0, core(true)),
        seed("core-32", 1, core(false)),
        seed("lime", 0, lime),
        seed("raw", 2, Vec::new()),
    ]
}
