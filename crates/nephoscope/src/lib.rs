//! Names the code that virtual machines really execute, from the host: the program `nephoscope`.

// A closed pipe is no error, and `println!` panics at it: `text::print` is the road.
#![cfg_attr(not(test), deny(clippy::print_stdout))]

mod cli;
mod client;
mod cmd;
mod control;
mod disks;
mod exit;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keep;
mod monitor;
mod privilege;
mod qemu;
mod runtime;
mod scan;
mod signals;
mod source;
mod state;
mod text;
mod view;

use std::process::ExitCode;

use clap::Parser;

/// The program: its arguments, its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = cli::Cli::parse();
    match cmd::dispatch(cli) {
        Ok(code) => code,
        // `nephoscope ps | head`: whoever read has read enough.
        Err(error) if error.is::<text::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what, why, and what to do.
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("nephoscope: {}", text::escape(&causes.join(": ")));
            let failure = error
                .downcast_ref::<exit::Exit>()
                .map_or(exit::Failure::Other, |exit| exit.failure);
            ExitCode::from(failure as u8)
        }
    }
}
