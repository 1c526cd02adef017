//! What `create` has made so far, and how it is undone.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::host::cgroup::Cgroup;
use crate::state::{self, ContainerId, Groups, Lock, StateDir};

/// What has been made so far. Undone in reverse when it is dropped before it is kept; the machine, younger than all of
/// it, has ended then.
pub(super) struct Attempt {
    dir: Option<StateDir>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) resctrl: Option<Groups>,
    pub(super) pid_file: Option<PathBuf>,
    /// Held until all is undone: the id is free when the lock is.
    lock: Option<Lock>,
}

impl Attempt {
    /// Takes the id, and the container's lock.
    pub(super) fn begin(root: &Path, id: &ContainerId) -> Result<Attempt, Error> {
        let mut attempt = Attempt {
            dir: Some(StateDir::create(root, id)?),
            cgroup: None,
            resctrl: None,
            pid_file: None,
            lock: None,
        };
        // The machine process closes its copy of the lock at once.
        attempt.lock = Some(attempt.dir()?.lock()?);
        Ok(attempt)
    }

    /// The container's state directory.
    pub(super) fn dir(&self) -> Result<&StateDir, Error> {
        Ok(self.dir.as_ref().ok_or(state::Error::NotFound)?)
    }

    /// There is a container now: nothing is undone any more.
    pub(super) fn keep(mut self) -> Result<(StateDir, Lock), Error> {
        self.pid_file = None;
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
        let groups = self.resctrl.take();
        let groups = groups.as_ref().map_or(Ok(()), Groups::remove);
        let cgroup = self.cgroup.take();
        let cgroup = cgroup.as_ref().map_or(Ok(()), Cgroup::remove);
        if let (Some(dir), Ok(()), Ok(())) = (self.dir.take(), cgroup, groups) {
            let _ = dir.remove();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.undo();
    }
}
