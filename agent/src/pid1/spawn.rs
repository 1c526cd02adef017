//! Stage processes: fresh re-executions of the agent that do what PID 1 must not do itself.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::error::{During, Error, Result};
use crate::task::Task;

/// Starts a stage process for `task`, with these standard streams and pipes; the wire to it, which
/// does not block.
pub(crate) fn spawn_stage(
    task: &Task,
    [stdin, stdout, stderr]: [Stdio; 3],
    pipes: &[OwnedFd],
) -> Result<OwnedFd> {
    let (wire, far) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .during(|| "create a socket pair")?;
    fcntl(&wire, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
    let task = task_file(task)?;
    for inherited in [&far, &task].into_iter().chain(pipes) {
        fcntl(inherited, FcntlArg::F_SETFD(FdFlag::empty())).during(|| "pass a descriptor")?;
    }
    // Waited for by the agent's loop, as every child.
    Command::new("/proc/self/exe")
        .env_clear()
        .arg("stage")
        .arg(task.as_raw_fd().to_string())
        .arg(far.as_raw_fd().to_string())
        .args(pipes.iter().map(|pipe| pipe.as_raw_fd().to_string()))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .during(|| "start the stage process")?;
    Ok(wire)
}

/// The task in a file of its own: a pipe could fill up and block the agent.
fn task_file(task: &Task) -> Result<OwnedFd> {
    let what = || "pass the request on";
    let text = serde_json::to_vec(task).map_err(Error::Parse)?;
    let mut file = File::from(memfd_create(c"request", MFdFlags::MFD_CLOEXEC).during(what)?);
    file.write_all(&text)
        .and_then(|()| file.rewind())
        .during(what)?;
    Ok(file.into())
}
