//! The process that sets a container up: a fresh, single-threaded re-execution of the agent.
//!
//! ```text
//! agent (PID 1) ──spawn──> stage ──clone3(CLONE_PARENT)──> init ──execve──> the program
//!   │                        │ cgroup, device filter,        │ mounts, devices, privileges
//!   │                        │ mount sources, id maps        │
//!   │<── Child(pid) ─────────┤                               │
//!   │                        └── go ────────────────────────>│
//!   │                          (exits)                       │
//!   │<── Prepared [terminal] ────────────────────────────────┤
//!   ├─── one byte: start ───────────────────────────────────>│
//!   │<── end of stream: executed; or Failed ─────────────────┤
//! ```
//! A process that is executed in the container comes to be in the same way, except that the stage
//! and the process join what is there ([`exec`]), and that the agent sends the byte at once. A task
//! that makes no process is done by the stage itself, which reports the answer and ends; the name
//! server ([`names`]) stays and reports nothing.
//!
//! Invariants: init is a child of PID 1 from its birth, so its exit status is exact; its pid is
//! told before it may run, so it cannot end unknown; the wire is close-on-exec, so its end with
//! nothing said is the success of execve.

mod birth;
mod cgroup;
mod configuration;
mod copy_up;
mod create;
mod descriptors;
mod device_filter;
mod devices;
mod exec;
mod hooks;
mod ids;
mod init;
mod mounts;
mod names;
mod options;
mod process;
mod seccomp;
mod sysctl;
mod tasks;
mod tree;
mod wire;

use std::fs::File;
use std::io::{Read, Seek};

use self::descriptors::adopt;
use self::wire::Wire;
use crate::error::{self, During, Error, Result};
use crate::sys;
use crate::task::Task;

/// The stage process: `arguments` are the numbers of the request's memfd, of the wire, and of the
/// pipes among the descriptors beside the standard streams.
pub(crate) fn main(arguments: &[String]) -> ! {
    let mut wire = match adopt(arguments.get(1)) {
        Ok(wire) => Wire(wire),
        Err(error) => {
            error::log(&error.failure().to_string());
            sys::exit(1);
        }
    };
    if let Err(error) = run(arguments, &mut wire) {
        wire.fail(&error);
        sys::exit(1);
    }
    sys::exit(0)
}

/// The descriptors that a process may have unless it is configured, which PID 1 has more of:
/// INR_OPEN_CUR and INR_OPEN_MAX of linux/fs.h.
const FILES: (u64, u64) = (1024, 4096);

fn run(arguments: &[String], wire: &mut Wire) -> Result<()> {
    sys::set_rlimit(libc::RLIMIT_NOFILE, FILES.0, FILES.1).during(|| "set RLIMIT_NOFILE")?;
    let mut text = Vec::new();
    let mut file = File::from(adopt(arguments.first())?);
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .during(|| "read the request")?;
    drop(file);
    let task = serde_json::from_slice(&text).map_err(Error::Parse)?;
    let extra = match &task {
        Task::Create(create) => &create.extra[..],
        Task::Exec(join) => &join.exec.extra,
        Task::Update(_) | Task::Processes(_) | Task::Names => &[],
    };
    descriptors::place(extra, arguments.get(2..).unwrap_or_default(), wire)?;
    match task {
        Task::Create(create) => create::set_up(*create, wire),
        Task::Exec(join) => exec::set_up(*join, wire),
        Task::Update(update) => tasks::update(&update, wire),
        Task::Processes(processes) => tasks::processes(&processes, wire),
        Task::Names => names::serve([adopt(arguments.get(2))?, adopt(arguments.get(3))?]),
    }
}
