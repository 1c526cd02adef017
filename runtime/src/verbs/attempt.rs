//! What `create` has made so far, and how it is undone.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::pod;
use crate::host::cgroup::Cgroup;
use crate::report::Report;
use crate::state::{self, ContainerId, Groups, Lock, Pins, StateDir, index};

/// What has been made so far. Undone in reverse when it is dropped before it is kept; the machine, younger than all of
/// it, has ended then.
pub(super) struct Attempt<'a> {
    dir: Option<StateDir>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) resctrl: Option<Groups>,
    pub(super) pid_file: Option<PathBuf>,
    /// The process by which the container is found.
    pub(super) noted: Option<i32>,
    /// The pod that it belongs to from now on.
    pub(super) joined: Option<Pins>,
    /// Held until all is undone: the id is free when the lock is.
    lock: Option<Lock>,
    report: &'a Report,
}

impl<'a> Attempt<'a> {
    /// Takes the id, and the container's lock.
    pub(super) fn begin(
        root: &Path,
        id: &ContainerId,
        report: &'a Report,
    ) -> Result<Attempt<'a>, Error> {
        let dir = StateDir::create(root, id)?;
        // The machine process closes its copy of the lock at once.
        match dir.lock() {
            Ok(lock) => Ok(Attempt::of(dir, lock, report)),
            // What has the name by now is another's.
            Err(e @ state::Error::NotFound) => Err(e.into()),
            Err(e) => {
                let _ = dir.remove();
                Err(e.into())
            }
        }
    }

    /// The same with a directory that there is, and its lock.
    pub(super) fn of(dir: StateDir, lock: Lock, report: &'a Report) -> Attempt<'a> {
        Attempt {
            dir: Some(dir),
            cgroup: None,
            resctrl: None,
            pid_file: None,
            noted: None,
            joined: None,
            lock: Some(lock),
            report,
        }
    }

    /// The container's state directory.
    pub(super) fn dir(&self) -> Result<&StateDir, Error> {
        Ok(self.dir.as_ref().ok_or(state::Error::NotFound)?)
    }

    /// There is a container now: nothing is undone any more.
    pub(super) fn keep(mut self) -> Result<(StateDir, Lock), Error> {
        self.pid_file = None;
        self.noted = None;
        self.joined = None;
        self.resctrl = None;
        self.cgroup = None;
        let kept = self.dir.take().zip(self.lock.take());
        Ok(kept.ok_or(state::Error::NotFound)?)
    }

    /// Undoes what has been made, in reverse.
    pub(super) fn undo(&mut self) {
        // The error that led here is the one to report. What cannot be removed now is left to `delete --force`.
        if let Some(path) = self.pid_file.take() {
            let _ = fs::remove_file(path);
        }
        if let (Some(pid), Some(dir)) = (self.noted.take(), &self.dir) {
            index::forget(dir.root(), pid, dir.id());
        }
        let left = match (self.joined.take(), &self.dir) {
            (Some(pins), Some(dir)) => pod::leave(dir.root(), &pins, dir.id(), self.report),
            _ => Ok(()),
        };
        let groups = self.resctrl.take();
        let groups = groups.as_ref().map_or(Ok(()), Groups::remove);
        let cgroup = self.cgroup.take();
        let cgroup = cgroup.as_ref().map_or(Ok(()), Cgroup::remove);
        if let (Some(dir), Ok(()), Ok(()), Ok(())) = (self.dir.take(), left, cgroup, groups) {
            let _ = dir.remove();
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.undo();
    }
}
