//! What goes wrong while a machine starts.

use std::borrow::Cow;
use std::io;

use crate::control;
use crate::error::SystemError;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: Cow<'static, str>,
        /// The cause.
        source: io::Error,
    },
    /// The machine process could not get the container ready; its own words.
    #[error("{0}")]
    Refused(String),
    /// The machine process ended without a word.
    #[error("the machine process ended unexpectedly ({0})")]
    Died(String),
    /// The machine of another container could not be spoken to.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// What the verb does when the namespaces are there failed; its own words.
    #[error(transparent)]
    NamespacesReady(Box<dyn std::error::Error + Send + Sync>),
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
}

/// A step into the jail that failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct JailError(#[from] pub(super) SystemError);

impl From<JailError> for Error {
    fn from(JailError(e): JailError) -> Error {
        e.into()
    }
}
