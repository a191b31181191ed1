//! `stranger [SECONDS]`: a program that belongs to no package and does some work, for 10 seconds or so. It is what
//! gets copied into a guest from nowhere, and what is run from a memfd.

fn main() {
    let seconds = nephoscope_guest_tools::work::seconds_from_arguments(10);
    println!("{:x}", nephoscope_guest_tools::work::for_seconds(seconds));
}
