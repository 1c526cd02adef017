//! Sources of bind mounts that earlier mounts of the same configuration provide: the mounts are made in their order below
//! the root directory, which is a directory of the host.
//!
//! The host does not have what is mounted there, the guest does: such a source is a path in the container.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::Facts;

/// What earlier mounts have put below the root directory.
pub(super) struct Provided<'a> {
    facts: &'a Facts<'a>,
    /// The root directory.
    root: &'a Path,
    /// The same without symbolic links, once it has been asked for.
    real_root: OnceCell<PathBuf>,
    /// Whether it becomes read-only.
    read_only: bool,
    /// Where something is mounted.
    destinations: Vec<&'a Path>,
}

/// Why a source cannot be taken from the container.
const BELOW_READ_ONLY: &str = "of the read-only root filesystem, with an earlier mount below it";

impl<'a> Provided<'a> {
    pub(super) fn new(root: &'a Path, read_only: bool, facts: &'a Facts<'a>) -> Provided<'a> {
        Provided {
            facts,
            root,
            real_root: OnceCell::new(),
            read_only,
            destinations: Vec::new(),
        }
    }

    /// Something is mounted at a destination.
    pub(super) fn add(&mut self, destination: &'a Path) {
        self.destinations.push(destination);
    }

    /// The path in the container of a source that is not the host's, or not all of it; `recursive`: with what is mounted
    /// below it. An error is why it cannot be had.
    pub(super) fn find(&self, source: &Path, recursive: bool) -> Result<Option<PathBuf>, &str> {
        if self.destinations.is_empty() {
            return Ok(None);
        }
        let below = |path: &Path, root: &Path| {
            let path = path.strip_prefix(root).ok()?;
            Some(Path::new("/").join(path))
        };
        let root = self
            .real_root
            .get_or_init(|| (self.facts.real)(None, self.root));
        // What is mounted hides what the host has there, symbolic links included: the name itself comes first.
        let named = below(source, self.root).or_else(|| below(source, root));
        let real = below(&(self.facts.real)(None, source), root);
        if named.is_none() && real.is_none() {
            return Ok(None);
        }
        let places = self.destinations.iter();
        let places = places.map(|place| (self.facts.real)(Some(root), place));
        let places: Vec<_> = places.collect();
        for path in named.into_iter().chain(real) {
            if places.iter().any(|place| path.starts_with(place)) {
                return Ok(Some(path));
            }
            if recursive && places.iter().any(|place| place.starts_with(&path)) {
                // A part of the root would become read-only with it.
                return match self.read_only {
                    true => Err(BELOW_READ_ONLY),
                    false => Ok(Some(path)),
                };
            }
        }
        Ok(None)
    }
}
