//! PID 1 of the guest: applies the OCI configuration and runs processes. Knows nothing of the VMM.
//!
//! One binary, two roles: PID 1 boots the guest and serves the host ([`agent`]); re-executed with
//! `stage` it sets a container up ([`stage`]), so that PID 1 never changes itself.

mod agent;
mod boot;
mod cgroup;
mod container;
mod control;
mod device;
mod errand;
mod error;
mod names;
mod network;
mod notify;
mod process;
mod stage;
mod stream;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    // There is no console: the kernel log is where the host finds last words.
    std::panic::set_hook(Box::new(|panic| error::log(&panic.to_string())));
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("stage") {
        stage::main(&arguments.collect::<Vec<_>>());
    }
    if std::process::id() != 1 {
        eprintln!("chiton agent: runs as the init of a guest");
        return ExitCode::FAILURE;
    }
    // The end of PID 1 is the end of the guest: the kernel panics, and the host shows its log.
    if let Err(error) = boot::boot().and_then(agent::Agent::run) {
        error::log(&error.failure().to_string());
    }
    ExitCode::FAILURE
}
