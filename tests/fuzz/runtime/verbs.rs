//! What the guest says of itself, as `events` and `ps` print it.

use super::events::statistics::Statistics;

pub use super::ps::fuzz::ps;

/// The JSON of statistics.
///
/// # Errors
/// A file is not what the kernel writes.
pub fn statistics(
    guest: &[(String, String)],
    host: Option<&[(String, String)]>,
) -> Result<String, String> {
    let statistics = Statistics::new(guest, host).map_err(|e| e.to_string())?;
    serde_json::to_string(&statistics).map_err(|e| e.to_string())
}
