//! What goes wrong in the guest, and how the host is told.

use std::error::Error as StdError;
use std::io;

use protocol::{Failure, FailureKind};

/// Result of anything in the agent.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error of the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An operation of the kernel failed; says what was attempted on what.
    #[error("{what}")]
    Os {
        /// The attempt, for instance `mount tmpfs on /tmp`.
        what: String,
        /// The kernel's errno.
        #[source]
        source: io::Error,
    },
    /// The configuration is invalid or asks for something that is not supported.
    #[error("{0}")]
    Config(String),
    /// The bytes of `config.json` are not a configuration.
    #[error("config.json is not valid")]
    Parse(#[source] serde_json::Error),
    /// `process.args[0]` does not exist. The text is the one that callers look for.
    #[error("{0}")]
    NotFound(String),
    /// `process.args[0]` may not be executed. The text is the one that callers look for.
    #[error("{0}")]
    NotExecutable(String),
    /// There is no process that it could be done to. The text is the one that callers look for.
    #[error("container not running")]
    NotRunning,
    /// A stream of frames is broken.
    #[error("the {0} stream is broken")]
    Stream(&'static str, #[source] protocol::Error),
    /// The other end is gone.
    #[error("{0} has closed its end")]
    Closed(&'static str),
}

impl Error {
    /// What the host is told.
    pub(crate) fn failure(&self) -> Failure {
        let kind = match self {
            Error::NotFound(_) => FailureKind::NotFound,
            Error::NotExecutable(_) => FailureKind::PermissionDenied,
            Error::NotRunning => FailureKind::NotRunning,
            Error::Config(_) | Error::Parse(_) => FailureKind::Config,
            _ => FailureKind::Other,
        };
        let error: &(dyn StdError + 'static) = self;
        Failure::new(kind, error)
    }
}

/// Says what was attempted when a call fails.
pub(crate) trait During<T> {
    /// `what` is evaluated on failure only.
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Os {
            what: what().into(),
            source: error.into(),
        })
    }
}

/// Writes an error to the kernel log, whose tail the host shows when the guest dies. Best effort:
/// there is nowhere else to say so when it fails.
pub(crate) fn log(text: &str) {
    // A record ends at a newline; level 3 is KERN_ERR.
    let line = format!("<3>chiton: {}\n", text.replace('\n', " "));
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = io::Write::write_all(&mut kmsg, line.as_bytes());
    }
}
