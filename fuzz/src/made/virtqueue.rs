//! One request of each kind in a virtqueue, as `virtqueue` reads them.

use super::Seed;

/// A descriptor: its number, where it lies in pieces of 64 bytes behind 4 KiB, which length, its flags; it leads to the next.
fn descriptor(number: u8, at: u8, len: u8, flags: u8) -> Vec<u8> {
    vec![1, number, 1, at, 1, len, flags, number + 1]
}

/// A request with a header of this kind and one descriptor of data of this length and direction.
fn request(kind: u8, len: u8, device_writes: bool) -> Vec<u8> {
    let data = if device_writes { 3 } else { 1 };
    [
        descriptor(0, 0, 1, 1),
        descriptor(1, 64, len, data),
        descriptor(2, 128, 0, 2),
        vec![2, 0, kind, 1, 3],
        vec![4, 1, 0],
    ]
    .concat()
}

pub(crate) fn seeds() -> Vec<Seed> {
    // Three sectors from the first on, in the data's place; nothing may be undone.
    let range = vec![3, 64, 1, 3, 0];
    let flush = [
        descriptor(0, 0, 1, 1),
        descriptor(1, 128, 0, 2),
        vec![2, 0, 2, 1, 0],
        vec![4, 1, 0],
    ]
    .concat();
    let indirect = [
        descriptor(0, 0, 5, 4),
        [&[0, 0, 0x10][..], &[0; 16]].concat(),
        vec![4, 2, 0, 0],
    ]
    .concat();
    let seed = |name: &str, bytes: Vec<u8>| ("virtqueue", name.to_owned(), bytes);
    vec![
        seed("read", request(0, 3, true)),
        seed("written", request(1, 4, false)),
        seed("flush", flush),
        seed("name", request(3, 2, true)),
        seed("discard", [range.clone(), request(4, 1, false)].concat()),
        seed("zeros", [range, request(5, 1, false)].concat()),
        seed("two", [request(1, 3, false), request(0, 3, true)].concat()),
        seed("indirect", indirect),
    ]
}
