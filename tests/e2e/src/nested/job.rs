//! What a guest does while it is watched: it boots, serves a page of PHP, runs Python, reads code from its disk by DMA into a
//! frame that was executed, says what it is made of, and switches itself off. Under KVM its host does something too, to its memory and by
//! devices of its own.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{devices, moves};
use crate::{Guest, Image, Options};

/// Does it, and writes what the guest says of itself to `truth`.
///
/// # Errors
/// When the guest does not come up, or a part of the work fails in it.
pub fn job(image: &Image, mut options: Options, truth: &Path, mut say: impl FnMut(&str)) -> Result<()> {
    let by_kvm = options.accel == "kvm";
    if by_kvm {
        devices::make()?;
        options.extra.extend(devices::ARGUMENTS.map(str::to_owned));
        options.extra.extend(moves::ARGUMENTS.map(str::to_owned));
        options.cmdline.push_str(moves::CMDLINE);
    }
    let watch = options.watched.as_ref().map(|watched| watched.name.clone());
    let mut guest = Guest::boot(image, options)?;
    say(&format!("ready after {:?}", guest.wait_ready()?));
    let (status, body) = guest.http_get("/index.php")?;
    ensure!(status == 200, "{status} {body}");
    say("PHP answers");
    if by_kvm {
        moves::moves(&mut guest, watch.as_deref(), &mut say)?;
    }
    guest.run_ok("python3 /opt/nephoscope/work.py")?;
    say("Python has worked");
    guest.put("/var/tmp/dma.py", include_bytes!("../../guest-files/dma.py"))?;
    let read = guest.run_ok("python3 /var/tmp/dma.py")?;
    say(&format!("code from the disk: {}", read.trim_end()));
    if by_kvm {
        devices::devices(&mut guest, &mut say)?;
    }
    std::fs::write(truth, guest.run_ok("/opt/nephoscope/truth")?)?;
    say(&format!("ended with {}", guest.power_off()?));
    Ok(())
}
