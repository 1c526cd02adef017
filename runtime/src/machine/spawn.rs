//! The start of a machine, seen from the verb.

use std::{fs, io};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::error::Error;
use super::launch::{Devices, Launch};
use super::sync::{FromMachine, SyncSocket, ToMachine};
use super::{process, share, view};
use crate::error::{Doing, one_line};
use crate::sys::{self, Cloned};

/// A machine whose container is created, and that ends with this value unless it is committed.
pub(crate) struct Spawned {
    pid: Pid,
    sync: Option<SyncSocket>,
}

/// Called with the machine process's pid when it is in the container's network namespace and in a jail of files, and
/// before the guest's first instruction. The machine waits for its return; after an error there is none.
pub(crate) type NamespacesReady<'a> =
    dyn FnMut(i32) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Starts a machine and waits until the guest has prepared the container.
///
/// # Errors
/// When any step fails, with nothing left of the machine.
pub(crate) fn spawn(
    launch: Launch<'_>,
    namespaces_ready: &mut NamespacesReady<'_>,
) -> Result<Spawned, Error> {
    let (ours, theirs) = SyncSocket::pair().doing("create a socket pair")?;
    let devices = Devices::open()?;
    match sys::clone_process(launch.cgroup).doing("clone the machine process")? {
        Cloned::Child => {
            drop(ours);
            process::main(launch, devices, theirs)
        }
        Cloned::Parent(pid) => {
            drop((theirs, devices));
            let spawned = Spawned {
                pid: Pid::from_raw(pid),
                sync: Some(ours),
            };
            spawned.await_created(namespaces_ready)?;
            for share in launch.shares.iter().filter(|share| share.sealed) {
                share::seal(pid, &share.name).doing("make the root filesystem read-only")?;
            }
            if let Some(targets) = &launch.view
                && let Err(e) = view::show(pid, &launch.shares, targets)
            {
                // A container whose files cannot be copied by those who look there is a whole one.
                let told = format!(
                    "the mount namespace of the container shows no files: {}",
                    one_line(&e)
                );
                launch.report.warn(&told);
            }
            Ok(spawned)
        }
    }
}

impl Spawned {
    /// The pid of the machine process.
    #[must_use]
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// From here on the machine lives until its container ends.
    ///
    /// # Errors
    /// When the machine has ended meanwhile.
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        if let Some(sync) = &self.sync {
            sync.send(&ToMachine::Commit).doing("commit the machine")?;
        }
        self.sync = None;
        Ok(())
    }

    fn await_created(&self, namespaces_ready: &mut NamespacesReady<'_>) -> Result<(), Error> {
        let Some(sync) = &self.sync else {
            return Ok(());
        };
        let proceed = || {
            sync.send(&ToMachine::Proceed)
                .doing("answer the machine process")
        };
        loop {
            match sync
                .receive::<FromMachine>()
                .doing("hear from the machine process")?
            {
                Some(FromMachine::Labelled) => {
                    note_label(self.pid()).doing("look at the machine process")?;
                    proceed()?;
                }
                Some(FromMachine::Entered) => {
                    namespaces_ready(self.pid()).map_err(Error::NamespacesReady)?;
                    proceed()?;
                }
                Some(FromMachine::Created) => return Ok(()),
                Some(FromMachine::Failed(text)) => return Err(Error::Refused(text)),
                None => return Err(Error::Died(self.end())),
            }
        }
    }

    /// Kills and reaps the machine; how it ended.
    fn end(&self) -> String {
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => return signal.to_string(),
                Ok(other) => return format!("{other:?}"),
                Err(errno) => return errno.to_string(),
            }
        }
    }
}

/// Has the kernel note the label that a process has taken in what the machine process keeps of `/proc`
/// ([`jail`](super::jail)): it does so when a file there is looked up, and that process has roots of mounts alone.
fn note_label(pid: i32) -> io::Result<()> {
    let look = |name| fs::metadata(format!("/proc/{pid}/{name}")).map(drop);
    ["fd", "mountinfo"].into_iter().try_for_each(look)
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.sync.is_some() {
            self.end();
        }
    }
}
