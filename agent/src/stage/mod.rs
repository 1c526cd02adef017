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
//! server ([`names`]) and who passes a connection on ([`connection`]) stay and report nothing.
//!
//! Invariants: init is a child of PID 1 from its birth, so its exit status is exact; its pid is
//! told before it may run, so it cannot end unknown; the wire is close-on-exec, so its end with
//! nothing said is the success of execve.

mod apparmor;
mod birth;
mod cgroup;
mod configuration;
mod connection;
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
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use protocol::Setup;

use self::descriptors::adopt;
use self::wire::Wire;
use crate::error::{self, During, Error, Result};
use crate::sys;
use crate::task::Task;

/// The stage process: `arguments` are the numbers of the inherited descriptors, those of the task and
/// of the wire first.
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

/// The descriptors that a stage may have, and what it makes until it takes its own limits. PID 1 has more of them:
/// these are INR_OPEN_CUR and INR_OPEN_MAX of linux/fs.h.
const FILES: (u64, u64) = (1024, 4096);

fn run(arguments: &[String], wire: &mut Wire) -> Result<()> {
    sys::set_rlimit(libc::RLIMIT_NOFILE, FILES.0, FILES.1).during(|| "set RLIMIT_NOFILE")?;
    let task = Task::decode(&content(adopt(arguments.first())?)?)?;
    let mut others = arguments.iter().skip(2);
    let mut setup = || -> Result<Setup> {
        let bytes = content(adopt(others.next())?)?;
        Setup::decode(&bytes).map_err(|e| Error::Stream("agent", e))
    };
    match task {
        Task::Create(task) => {
            let setup = setup()?;
            descriptors::place(&task.extra, others, wire)?;
            create::set_up(&task, setup, wire)
        }
        Task::Exec(join) => {
            let setup = setup()?;
            descriptors::place(&join.exec.extra, others, wire)?;
            exec::set_up(&join, setup, wire)
        }
        Task::Update(update) => tasks::update(&update, &setup()?, wire),
        Task::Processes(cgroup) => tasks::processes(&cgroup, wire),
        Task::Unmount(container) => tasks::unmount(container, wire),
        Task::Names => names::serve([adopt(others.next())?, adopt(others.next())?]),
        Task::Connect(address) => {
            let (host, namespace) = (adopt(others.next())?, adopt(others.next())?);
            connection::relay(address, host, namespace)
        }
    }
}

/// All of a file, whose offset others share.
fn content(file: OwnedFd) -> Result<Vec<u8>> {
    let file = File::from(file);
    let read = || {
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok::<_, io::Error>(bytes)
    };
    read().during(|| "read the request")
}
