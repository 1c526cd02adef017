//! System calls that failed, by what they were for: what the errors of every layer are made of.

use std::borrow::Cow;
use std::io;
use std::path::Path;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub(crate) struct SystemError {
    /// What was being done, for instance `open /dev/kvm`.
    pub(crate) doing: Cow<'static, str>,
    /// The cause.
    pub(crate) source: io::Error,
}

/// The error and its sources in one line.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Adds what was being done to a system call's error.
pub(crate) trait Doing<T>: Sized {
    /// Adds a text that is made when it is needed.
    fn doing_with<S: Into<Cow<'static, str>>>(
        self,
        doing: impl FnOnce() -> S,
    ) -> Result<T, SystemError>;

    /// Adds a text.
    fn doing(self, doing: &'static str) -> Result<T, SystemError> {
        self.doing_with(|| doing)
    }

    /// Adds what was being done to the file at `path`: `open`, `write`.
    fn doing_to(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T, SystemError> {
        self.doing_with(|| format!("{doing} {}", path.as_ref().display()))
    }
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing_with<S: Into<Cow<'static, str>>>(
        self,
        doing: impl FnOnce() -> S,
    ) -> Result<T, SystemError> {
        self.map_err(|e| SystemError {
            doing: doing().into(),
            source: e.into(),
        })
    }
}
