//! PID 1 of the guest: applies the OCI configuration and runs processes. Knows nothing of the VMM.
//!
//! One binary, two programs: PID 1 boots the guest and serves the host ([`pid1`]); re-executed with
//! `stage` it sets a container up ([`stage`]), so that PID 1 never changes itself. What both
//! need stands outside of the two folders: what they say to each other ([`task`]), and what they
//! have to do with the kernel. And it is the program of a container that is there for its namespaces
//! alone ([`hold`]).

mod answer;
mod clock;
mod error;
mod hierarchy;
mod hold;
mod paths;
mod pid1;
mod stage;
mod sys;
mod task;
mod vsock;

use std::process::ExitCode;

fn main() -> ExitCode {
    // There is no console: the kernel log is where the host finds last words.
    std::panic::set_hook(Box::new(|panic| error::log(&panic.to_string())));
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("stage") => stage::main(&arguments.collect::<Vec<_>>()),
        Some(role) if role == protocol::HOLDER[1] => hold::main(),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("chiton agent: runs as the init of a guest");
        return ExitCode::FAILURE;
    }
    // The end of PID 1 is the end of the guest: the kernel panics, and the host shows its log.
    if let Err(error) = pid1::run() {
        error::log(&error.failure().to_string());
    }
    ExitCode::FAILURE
}
