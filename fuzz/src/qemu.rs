//! What QEMU says: QMP's lines, the human monitor's tables, the plugin's first message, and what a monitor asks of the
//! plugin.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nephoscope_drivers::{Hva, Qmp, RamMap, paging_mode};
use nephoscope_guest::Gpa;
use nephoscope_wire::{Hello, Request, receive};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}}}"#;

/// QMP: the greeting (made, or the input's), then whatever comes.
pub fn qmp(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    if how & 1 == 0 {
        let _ = writeln!(theirs, "{GREETING}\n{{\"return\": {{}}, \"id\": 0}}");
    }
    theirs.write_all(bytes).expect("room for an input");
    theirs.shutdown(Shutdown::Write).expect("an open socket");
    let Ok(mut qmp) = Qmp::from_stream(ours, Duration::from_secs(60)) else {
        return;
    };
    assert!(!qmp.version().contains('\n'));
    let _ = qmp.execute("query-status", None);
    let _ = qmp.wait_event(Duration::from_secs(60));
    let _ = paging_mode(&mut qmp);
    let _ = RamMap::read(&mut qmp);
    assert!(qmp.take_events().len() <= 1024);
}

/// The tables of `info ramblock` and `info mtree -f`, parted by `%`: what is mapped is mapped both ways.
pub fn ram_map(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (blocks, tree) = text.split_once('%').unwrap_or((&text, ""));
    let Ok(map) = RamMap::from_monitor_text(blocks, tree) else {
        return;
    };
    for segment in map.segments() {
        let last = segment.size_bytes - 1;
        for offset in [0, last / 2, last] {
            let gpa = Gpa(segment.gpa.0 + offset);
            let hva = map.hva_of(gpa).expect("a segment is mapped");
            assert_eq!(hva, Hva(segment.hva.0 + offset));
            let back = map.gpa_of(hva).expect("and back");
            assert!(back <= gpa, "the lowest of them");
            assert_eq!(map.hva_of(back), Some(hva));
            assert!(map.block_of(hva).is_some());
        }
    }
}

/// The messages between plugin and monitor, and the ranges that the plugin is told.
pub fn control(bytes: &[u8]) {
    let Some((how, body)) = bytes.split_first() else {
        return;
    };
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    if how & 1 == 0 {
        let len = u32::try_from(body.len()).expect("an input is short");
        theirs.write_all(&len.to_le_bytes()).expect("room");
    }
    theirs.write_all(body).expect("room for an input");
    theirs.shutdown(Shutdown::Write).expect("an open socket");
    if how & 2 == 0 {
        let _ = receive::<Hello>(&mut ours);
    } else if let Ok((Request::Ram { ranges }, _)) = receive::<Request>(&mut ours) {
        let memory = crate::plugin_memory::Memory::default();
        let dropped = memory.set(&ranges);
        assert!(dropped <= ranges.len());
        for range in &ranges {
            for at in [range.gpa, range.gpa.wrapping_add(range.len), u64::MAX] {
                let _ = memory.host(Gpa(at), 4096);
            }
        }
    }
}
