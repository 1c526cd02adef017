//! The program of a container that is there for its namespaces alone, which others join: it waits until it is told to
//! end.

use nix::sys::signal::{SigSet, Signal};

/// Waits for SIGTERM or SIGINT. Only while they are blocked do they reach the init of a pid namespace that does not
/// handle them.
pub(crate) fn main() -> ! {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    let waited = ends.thread_block().and_then(|()| ends.wait());
    std::process::exit(i32::from(waited.is_err()))
}
