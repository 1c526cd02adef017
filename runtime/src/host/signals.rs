//! Signals to a verb that waits for a process are signals to the process.

use std::io;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};

/// Takes every signal as an event from now on. A job in the background that is about to use its terminal stops here
/// first, as jobs do, until the shell lets it have the terminal.
pub(crate) fn take(terminal: bool) -> io::Result<SignalFd> {
    let stdin = io::stdin();
    if terminal
        && isatty(&stdin)
        && let Ok(attributes) = tcgetattr(&stdin)
    {
        // Whether it can be used is seen later.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &attributes);
    }
    let signals = SigSet::all();
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

/// Whether a verb passes a signal on: all but those that are about the verb itself, as runc does.
pub(crate) fn is_passed_on(signal: i32) -> bool {
    !matches!(
        signal,
        libc::SIGCHLD | libc::SIGWINCH | libc::SIGURG | libc::SIGPIPE
    )
}
