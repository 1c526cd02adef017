//! The table of a container's processes.

use std::time::Duration;

use super::columns::View;
use super::layout::Layout;
use super::process::Process;

/// The table that `ps` prints with these options.
///
/// # Errors
/// The options, or a file of a process, are not what they should be.
pub fn ps(options: &[String], said: &[protocol::Process], now: u64) -> Result<String, String> {
    let layout = Layout::parse(options).map_err(|e| e.to_string())?;
    let processes = said
        .iter()
        .map(Process::parse)
        .collect::<Result<Vec<_>, _>>();
    let view = View {
        now: Duration::from_nanos(now),
        time: Duration::from_secs(1 << 31),
        memory: 1 << 34,
        users: "root:x:0:0::/:\nuser:x:1000:1000::/:\n".into(),
        groups: "root:x:0:\n".into(),
    };
    Ok(layout.table(&processes.map_err(|e| e.to_string())?, &view))
}
