//! Stage processes: fresh re-executions of the agent that do what PID 1 must not do itself.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::error::{During, Result};
use crate::task::Task;

/// What a container is made from, for each stage that has to do with it: the bytes of a
/// [`Setup`](protocol::Setup) as the host has sent them, in a file that nobody can change.
pub(crate) struct SetupFile(OwnedFd);

impl SetupFile {
    /// Keeps the bytes.
    pub(crate) fn new(bytes: &[u8]) -> Result<SetupFile> {
        let what = || "keep the container's configuration";
        let file = file(bytes).during(what)?;
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).during(what)?;
        Ok(SetupFile(file))
    }
}

/// What a stage process has of PID 1's.
pub(crate) struct Inheritance<'a> {
    /// Standard input, output and error.
    pub(crate) stdio: [Stdio; 3],
    /// For the tasks that have to do with a container's set-up.
    pub(crate) setup: Option<&'a SetupFile>,
    /// What else the task needs, in the order in which the stage expects it.
    pub(crate) others: &'a [OwnedFd],
}

impl<'a> Inheritance<'a> {
    /// What a stage needs that nobody talks to.
    pub(crate) fn silent(setup: Option<&'a SetupFile>) -> Inheritance<'a> {
        Inheritance {
            stdio: [Stdio::null(), Stdio::null(), Stdio::null()],
            setup,
            others: &[],
        }
    }
}

/// Starts a stage process for `task`; the wire to it, which does not block.
pub(crate) fn spawn_stage(task: &Task, inheritance: Inheritance<'_>) -> Result<OwnedFd> {
    let (wire, far) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .during(|| "create a socket pair")?;
    fcntl(&wire, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
    // A file: a pipe could fill up and block PID 1.
    let task = file(&task.encode()?).during(|| "pass the request on")?;
    // Of the file that stays, the stage gets a descriptor of its own.
    let setup = inheritance.setup.map(|setup| setup.0.try_clone());
    let setup = setup.transpose().during(|| "copy a descriptor")?;
    let inherited = || {
        [&task, &far]
            .into_iter()
            .chain(&setup)
            .chain(inheritance.others)
    };
    for inherited in inherited() {
        fcntl(inherited, FcntlArg::F_SETFD(FdFlag::empty())).during(|| "pass a descriptor")?;
    }
    let [stdin, stdout, stderr] = inheritance.stdio;
    // Waited for by the agent's loop, as every child.
    Command::new("/proc/self/exe")
        .env_clear()
        .arg("stage")
        .args(inherited().map(|fd| fd.as_raw_fd().to_string()))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .during(|| "start the stage process")?;
    Ok(wire)
}

/// A file without a name that holds these bytes.
fn file(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"stage", flags)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn nobody_changes_what_a_container_is_made_from() {
        let setup = SetupFile::new(b"as it came").unwrap();
        let mut file = File::from(setup.0);
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.write_all(b"more").is_err());
        assert!(file.set_len(0).is_err());
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"as it came");
        assert_eq!(file.metadata().unwrap().len(), 10);
    }
}
