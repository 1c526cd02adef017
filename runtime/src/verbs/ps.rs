//! `ps`: the container's processes: those of its cgroup on this host by number, or those of the guest as ps(1) shows
//! processes.

mod columns;
pub(super) mod error;
#[cfg(fuzzing)]
#[path = "../../../tests/fuzz/runtime/ps.rs"]
pub mod fuzz;
mod layout;
mod process;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::ask::{done, open};
use super::error::Error;
use crate::cli::{self, ListFormat};
use crate::control::{Address, Control, ControlReply, control};
use crate::error::Doing;
use crate::host::cgroup::Cgroup;
use crate::state::{Record, Status, Verb};
use columns::View;
use layout::Layout;
use process::Process;

/// The processes of a container, as text.
pub(crate) fn ps(root: &Path, args: &cli::Ps) -> Result<String, Error> {
    let layout = Layout::parse(&args.options)?;
    let dir = open(root, &args.id)?;
    let record = dir.record()?;
    let status = dir.status(record.as_ref())?;
    status.allows(Verb::Ps, dir.id())?;
    let record = record.filter(|_| status != Status::Stopped);
    match args.format {
        ListFormat::Json => {
            let pids = record.as_ref().map_or(Ok(Vec::new()), pids)?;
            Ok(serde_json::to_string(&pids).unwrap_or_default() + "\n")
        }
        ListFormat::Table => match record {
            Some(record) => table(&dir.address(Some(&record)), &layout),
            None => Ok(layout.table(&[], &View::default())),
        },
    }
}

/// The processes of this host that are the container: those of its cgroup, or the machine process where it has none.
fn pids(record: &Record) -> Result<Vec<i32>, Error> {
    Ok(match &record.cgroup {
        Some(path) => Cgroup::existing(path.clone()).processes()?,
        None => record.process.iter().map(|process| process.pid).collect(),
    })
}

fn table(address: &Address, layout: &Layout) -> Result<String, Error> {
    let (now, processes) = match control(address, &Control::Processes)? {
        ControlReply::Processes { now, processes } => (Duration::from_nanos(now), processes),
        reply => return done(reply).map(|()| String::new()),
    };
    let processes = processes.iter().map(Process::parse);
    let processes = processes.collect::<Result<Vec<_>, _>>()?;
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let view = View {
        now,
        time: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
        memory: nix::sys::sysinfo::sysinfo()
            .doing("read the host's memory size")?
            .ram_total(),
        users: read("/etc/passwd"),
        groups: read("/etc/group"),
    };
    Ok(layout.table(&processes, &view))
}
