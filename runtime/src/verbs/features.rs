//! `features`.

/// What this runtime supports, as JSON.
pub(crate) fn features() -> String {
    "{}\n".to_owned()
}
