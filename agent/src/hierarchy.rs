//! The guest's cgroup hierarchy (cgroup v2, Documentation/admin-guide/cgroup-v2.rst): what PID 1
//! and the stages both do with it.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use crate::error::{During, Error, Result};

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup `path` below `cgroup`; `cgroup` itself when it is empty.
///
/// # Errors
/// The path leads out.
pub(crate) fn below(cgroup: &Path, path: &str) -> Result<PathBuf> {
    let mut directory = cgroup.to_owned();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => directory.push(name),
            _ => return Err(Error::Config(format!("the cgroup {path:?} leads out"))),
        }
    }
    Ok(directory)
}

/// Passes all controllers of a cgroup on to its children.
pub(crate) fn delegate(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.controllers");
    let controllers = fs::read_to_string(&file).during(|| format!("read {}", file.display()))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|c| format!("+{c}"))
        .collect();
    if enable.is_empty() {
        return Ok(());
    }
    write(cgroup, "cgroup.subtree_control", &enable.join(" "))
        .during(|| format!("pass on the controllers of {}", cgroup.display()))
}

/// Writes to a file of a cgroup. Unlike [`fs::write`] it never creates one.
pub(crate) fn write(cgroup: &Path, file: &str, value: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(cgroup.join(file));
    file.and_then(|mut file| file.write_all(value.as_bytes()))
}

/// Adds the processes of a cgroup and of those below it.
pub(crate) fn processes(cgroup: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    // 0 stands for a process that is not in this pid namespace; there is none outside of ours.
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid: &i32| *pid > 0),
    );
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            processes(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// Whether there are processes in a cgroup or below it. In one that is gone there are none.
pub(crate) fn is_populated(cgroup: &Path) -> bool {
    let text = fs::read_to_string(cgroup.join("cgroup.events"));
    text.is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// Removes a cgroup and those below it, as far as nobody is in them.
pub(crate) fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_the_hierarchy() {
        let root = Path::new(ROOT);
        for path in ["/a/b", "a/b", "./a//b/"] {
            assert_eq!(below(root, path).unwrap(), root.join("a/b"), "{path}");
        }
        assert_eq!(below(root, "").unwrap(), root);
        for path in ["/../x", "a/../b", ".."] {
            assert!(below(root, path).is_err(), "{path}");
        }
    }
}
