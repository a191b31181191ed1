//! Names the code that virtual machines really execute, from the host.

use std::process::ExitCode;

fn main() -> ExitCode {
    nephoscope::run()
}
