//! What `ps` can fail with.

/// Widest column that can be asked for.
pub(super) const WIDTH_MAX: usize = 4096;

/// What is wrong with the options or with what the guest says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PsError {
    #[error("ps option {0:?} is not supported")]
    Option(String),
    #[error("ps: conflicting format options")]
    Conflict,
    #[error("ps: format specification must follow {0}")]
    NoFormat(&'static str),
    #[error("ps: improper format list {0:?}")]
    List(String),
    #[error("ps: column width {0:?} is not between 1 and {WIDTH_MAX}")]
    Width(String),
    #[error("ps: unknown user-defined format specifier {0:?}")]
    Column(String),
    /// The kernel of a sane guest writes these files.
    #[error("the guest gives an invalid /proc/{pid}/{file}")]
    Guest { pid: i32, file: &'static str },
}
