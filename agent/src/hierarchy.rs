//! The guest's cgroup hierarchy (cgroup v2, Documentation/admin-guide/cgroup-v2.rst): what PID 1
//! and the stages both do with it.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;

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

/// The directory of the container's cgroup. `slice:prefix:name` is systemd's notation.
pub(crate) fn directory(spec: &Spec, id: &str) -> Result<PathBuf> {
    let configured = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let path = configured.unwrap_or_else(|| PathBuf::from(id));
    let text = path.to_str().unwrap_or_default();
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !text.contains('/') => {
            Path::new(slice).join(format!("{prefix}-{name}.scope"))
        }
        _ => path,
    };
    let mut directory = PathBuf::from(ROOT);
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => directory.push(name),
            _ => {
                return Err(Error::Config(format!(
                    "linux.cgroupsPath: {} leads out",
                    path.display()
                )));
            }
        }
    }
    if directory == Path::new(ROOT) {
        return Err(Error::Config("linux.cgroupsPath: names no cgroup".into()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_stays_in_the_hierarchy() {
        let at = |path: &str| {
            let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"cgroupsPath":"{path}"}}}}"#);
            directory(&serde_json::from_str(&json).unwrap(), "id")
        };
        assert_eq!(at("/a/b").unwrap(), Path::new("/sys/fs/cgroup/a/b"));
        assert_eq!(at("a").unwrap(), Path::new("/sys/fs/cgroup/a"));
        let scope = Path::new("/sys/fs/cgroup/machine.slice/libpod-1.scope");
        assert_eq!(at("machine.slice:libpod:1").unwrap(), scope);
        assert!(at("/../x").is_err());
        assert!(at("/").is_err());
        let bare: Spec = serde_json::from_str(r#"{"ociVersion":"1.0.2"}"#).unwrap();
        assert_eq!(
            directory(&bare, "id").unwrap(),
            Path::new("/sys/fs/cgroup/id")
        );
    }
}
