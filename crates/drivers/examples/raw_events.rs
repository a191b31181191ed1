//! Attaches to a plugin and counts its events: `raw_events SOCKET`.
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use nephoscope_drivers::QemuPlugin;
use nephoscope_guest::{Event, Privilege};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: raw_events SOCKET")?;
    let mut plugin = loop {
        match QemuPlugin::attach(socket.as_ref()) {
            Ok(plugin) => break plugin,
            Err(error) if !std::path::Path::new(&socket).exists() => {
                let _ = error;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    };
    println!("{:?}", plugin.hello());
    let (mut kinds, mut roots, mut events) = (BTreeMap::<String, u64>::new(), HashSet::new(), Vec::new());
    let mut last = Instant::now();
    let mut counters = Vec::new();
    while !plugin.is_closed() {
        plugin.next(Duration::from_millis(500), &mut events)?;
        for stamped in events.drain(..) {
            let kind = match &stamped.event {
                Event::CodeCaptured(c) => {
                    let who = match (c.privilege, c.paging, c.va.is_high_half()) {
                        (Privilege::User, ..) => "user",
                        (_, true, true) => "kernel",
                        (_, true, false) => "supervisor low",
                        _ => "no paging",
                    };
                    let again = if c.generation > 0 {
                        "recaptured"
                    } else {
                        "captured"
                    };
                    let frame = if c.frame == 0 { " without frame" } else { "" };
                    format!("{again} {who}{frame}")
                }
                Event::Executed(e) => {
                    roots.insert(e.incarnation);
                    "executed".into()
                }
                Event::Located { .. } => "located".into(),
                Event::Extended { .. } => "extended".into(),
                Event::Gap(gap) => format!("gap {:?}", gap.reason),
                Event::Counters(values) => {
                    counters = values.clone();
                    continue;
                }
                other => format!("{other:?}"),
            };
            *kinds.entry(kind).or_default() += 1;
        }
        if last.elapsed() > Duration::from_secs(5) {
            println!("{kinds:?} incarnations {}", roots.len());
            last = Instant::now();
        }
    }
    println!("{kinds:#?} incarnations {}\n{counters:?}", roots.len());
    Ok(())
}
