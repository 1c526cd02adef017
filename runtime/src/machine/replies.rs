//! What the agent answers, as the machine process's clients are told.

use protocol::{Failure, FailureKind, Reply};

use crate::control::ControlReply;

/// Maximum number of characters of an error text that are taken from the guest.
const WORDS_MAX: usize = 4096;

/// A failure to start, in the words callers of runc look for.
pub(super) fn start_failure(failure: &Failure) -> String {
    format!("unable to start container process: {}", words(failure))
}

/// The failure of an exec, likewise.
pub(super) fn exec_failure(failure: &Failure) -> ControlReply {
    match failure.kind {
        FailureKind::NotRunning => ControlReply::NotRunning,
        _ => ControlReply::Failed(start_failure(failure)),
    }
}

/// The agent's failure as a client is told.
pub(super) fn failed(failure: &Failure) -> ControlReply {
    match failure.kind {
        FailureKind::NotRunning => ControlReply::NotRunning,
        _ => ControlReply::Failed(words(failure)),
    }
}

/// The agent's success as a client is told.
pub(super) fn answer(reply: Reply) -> ControlReply {
    match reply {
        Reply::Statistics(files) => ControlReply::Statistics(files),
        Reply::Processes { now, processes } => ControlReply::Processes { now, processes },
        _ => ControlReply::Done,
    }
}

/// The guest's words, fit for somebody's terminal: bounded, without control characters.
fn words(failure: &Failure) -> String {
    let text = failure.to_string();
    text.chars()
        .filter(|c| !c.is_control())
        .take(WORDS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_speaks_no_terminal_commands() {
        let failure = Failure::message(FailureKind::Other, "\x1b[2Jexec: \u{9b}x\n".repeat(1000));
        let text = start_failure(&failure);
        assert!(text.starts_with("unable to start container process: [2Jexec: x[2J"));
        assert!(text.len() < 2 * WORDS_MAX && !text.contains(char::is_control));
    }
}
