//! The directory that a container has in the guest ([`paths`]).

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{During, Result};
use crate::paths;
use nix::mount::{MntFlags, umount2};

/// The directory. When it is dropped nothing is left of it.
pub(crate) struct Place(PathBuf);

impl Place {
    /// Makes it.
    pub(crate) fn create(directory: PathBuf) -> Result<Place> {
        // The root of a user namespace mounts in it, and is nobody special here.
        let make = |directory: &Path| {
            let made = DirBuilder::new().mode(0o755).create(directory);
            made.during(|| format!("create {}", directory.display()))
        };
        make(&directory)?;
        let place = Place(directory);
        make(&paths::root(&place.0))?;
        Ok(place)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: what cannot be removed is somebody's who hurts the guest on purpose. Each
        // directory is emptied of files and never gone down into, since something may be mounted.
        let root = paths::root(&self.0);
        // There is a mount of a container without a mount namespace of its own.
        let _ = umount2(&root, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(root);
        for directory in [paths::devices(&self.0), paths::notify(&self.0)] {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_dir(&self.0);
    }
}
