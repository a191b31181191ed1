//! Serves an image at a socket until it is ended: qcow2 by its name, else raw.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use nephoscope_disk::{Device, Format, Image, Serial, Server, Stop, Transfer, Transfers};

struct Silent;

impl Transfers for Silent {
    fn moved(&self, _: Transfer<'_>) {}
    fn zeroed(&self, _: u64, _: u64) {}
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, socket, queues] = arguments.as_slice() else {
        return Err("usage: serve IMAGE SOCKET QUEUES".into());
    };
    let format = if image.ends_with(".qcow2") {
        Format::Qcow2
    } else {
        Format::Raw
    };
    let image = Image::open(Path::new(image), format, false)?;
    let device = Device::new(Arc::new(image), Serial::new("disk0"), Box::new(Silent));
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    let (never, _kept) = std::os::unix::net::UnixStream::pair()?;
    Server::new(device, queues.parse()?).run(listener, &Stop::new(never.into()))?;
    Ok(())
}
