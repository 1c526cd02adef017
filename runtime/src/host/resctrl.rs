//! `linux.intelRdt`: the machine's share of the host's caches and memory bandwidth, and their monitoring (Linux,
//! Documentation/arch/x86/resctrl.rst). The rules are those of the specification (config-linux.md, IntelRdt).

use std::borrow::Cow;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use oci_spec::runtime::LinuxIntelRdt;

use crate::error::{Doing, SystemError};
use crate::state::Groups;

/// Where it is mounted.
pub(crate) const ROOT: &str = "/sys/fs/resctrl";

/// Its file system's number (linux/magic.h).
const RDTGROUP_SUPER_MAGIC: i64 = 0x0765_5821;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("linux.intelRdt: {doing}")]
    System {
        doing: Cow<'static, str>,
        source: io::Error,
    },
    #[error("linux.intelRdt.closID: {} does not exist, and no schema says what to write into it", .0.display())]
    Missing(PathBuf),
    #[error("linux.intelRdt: {} does not say {wanted:?}", path.display())]
    Differs { wanted: String, path: PathBuf },
}

impl From<SystemError> for Error {
    fn from(SystemError { doing, source }: SystemError) -> Error {
        Error::System { doing, source }
    }
}

/// Whether resctrl is there.
pub(crate) fn is_mounted() -> bool {
    statfs(ROOT).is_ok_and(|fs| fs.filesystem_type().0 == RDTGROUP_SUPER_MAGIC)
}

impl Groups {
    /// The groups of the container `id` below `root`.
    pub(crate) fn of(root: &Path, id: &str, rdt: &LinuxIntelRdt) -> Groups {
        let (class, own) = match rdt.clos_id().as_deref() {
            None | Some("") => (root.join(id), true),
            Some("/") => (root.to_owned(), false),
            Some(name) => (root.join(name), false),
        };
        let monitored = *rdt.enable_monitoring() == Some(true);
        let monitor = monitored.then(|| class.join("mon_groups").join(id));
        Groups {
            class,
            monitor,
            own,
        }
    }

    /// Makes those that are to be made. On an error nothing that was made is left.
    pub(crate) fn make(&self, rdt: &LinuxIntelRdt) -> Result<(), Error> {
        let schemata = schemata(rdt);
        let path = self.class.join("schemata");
        if !self.own && schemata.is_empty() && !self.class.is_dir() {
            return Err(Error::Missing(self.class.clone()));
        }
        let made = match fs::create_dir(&self.class) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !self.own => false,
            Err(e) => return Ok(Err(e).doing_to("create", &self.class)?),
        };
        let filled = if made {
            let write = |line: &&str| write(&path, &format!("{line}\n"));
            schemata.iter().try_for_each(write)
        } else {
            agrees(&path, &schemata)
        };
        let monitored = filled.and_then(|()| match &self.monitor {
            Some(monitor) => Ok(fs::create_dir(monitor).doing_to("create", monitor)?),
            None => Ok(()),
        });
        if monitored.is_err() && made {
            let _ = fs::remove_dir(&self.class);
        }
        monitored
    }

    /// Puts a process with all of its threads into them, and so all that they create.
    pub(crate) fn add(&self, pid: i32) -> Result<(), Error> {
        // The first of them creates the others: of those that it creates from now on none is missed, and the others are
        // listed.
        self.add_task(&pid.to_string())?;
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        for task in fs::read_dir(&tasks).doing_to("list", &tasks)? {
            let task = task.doing_to("list", &tasks)?;
            self.add_task(&task.file_name().to_string_lossy())?;
        }
        Ok(())
    }

    fn add_task(&self, task: &str) -> Result<(), Error> {
        let groups = [Some(&self.class), self.monitor.as_ref()];
        let mut tasks = groups
            .into_iter()
            .flatten()
            .map(|group| group.join("tasks"));
        tasks.try_for_each(|path| write(&path, task))
    }

    /// Removes what is the container's own; what is already gone is fine.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let own = self.own.then_some(&self.class);
        for path in self.monitor.iter().chain(own) {
            match fs::remove_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result.doing_to("remove", path)?,
            }
        }
        Ok(())
    }
}

/// What is to be written, in the order of the specification.
fn schemata(rdt: &LinuxIntelRdt) -> Vec<&str> {
    let schemas = [rdt.l3_cache_schema(), rdt.mem_bw_schema()];
    let first = schemas.into_iter().flatten();
    let all = first.chain(rdt.schemata().iter().flatten());
    all.map(String::as_str)
        .filter(|line| !line.is_empty())
        .collect()
}

/// A line such as `L3:0=ffff;1=ff` as its resource and the pairs of domain and value.
fn parts(line: &str) -> Option<(&str, Vec<(&str, String)>)> {
    let (resource, domains) = line.trim().split_once(':')?;
    fn pair(domain: &str) -> Option<(&str, String)> {
        let (id, value) = domain.split_once('=')?;
        let value = value.trim().trim_start_matches('0').to_lowercase();
        Some((id.trim(), value))
    }
    let pairs = domains.split(';').map(pair).collect::<Option<_>>()?;
    Some((resource.trim(), pairs))
}

/// Whether a class that is there already says what is wanted.
fn agrees(path: &Path, wanted: &[&str]) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(path).doing_to("read", path)?;
    let there: Vec<_> = text.lines().filter_map(parts).collect();
    let holds = |line: &str| {
        let (resource, pairs) = parts(line)?;
        let (_, has) = there.iter().find(|(other, _)| *other == resource)?;
        pairs.iter().all(|pair| has.contains(pair)).then_some(())
    };
    match wanted.iter().find(|line| holds(line).is_none()) {
        None => Ok(()),
        Some(line) => Err(Error::Differs {
            wanted: (*line).to_owned(),
            path: path.to_owned(),
        }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let file = OpenOptions::new().append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    Ok(written.doing_to("write", path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(json: &str) -> LinuxIntelRdt {
        serde_json::from_str(json).unwrap()
    }

    /// A class that is there, with plain files.
    fn class(root: &Path, name: &str) {
        fs::create_dir_all(root.join(name).join("mon_groups")).unwrap();
        fs::write(
            root.join(name).join("schemata"),
            "    L3:0=ff;1=0F0\n    MB:0=100\n",
        )
        .unwrap();
        fs::write(root.join(name).join("tasks"), "").unwrap();
    }

    #[test]
    fn a_class_that_is_there_is_joined_if_it_agrees() {
        let dir = tempfile::tempdir().unwrap();
        class(dir.path(), "gold");
        for (json, agrees) in [
            (r#"{"closID":"gold"}"#, true),
            (r#"{"closID":"gold","l3CacheSchema":"L3:0=0ff"}"#, true),
            (
                r#"{"closID":"gold","l3CacheSchema":"L3:1=f0;0=ff","memBwSchema":"MB:0=100"}"#,
                true,
            ),
            (r#"{"closID":"gold","schemata":["L3:0=f"]}"#, false),
            (r#"{"closID":"gold","schemata":["L2:0=ff"]}"#, false),
            (r#"{"closID":"gold","memBwSchema":"MB:0"}"#, false),
            (r#"{"closID":"silver"}"#, false),
        ] {
            let rdt = rdt(json);
            let groups = Groups::of(dir.path(), "c", &rdt);
            assert_eq!(groups.make(&rdt).is_ok(), agrees, "{json}");
        }
        assert!(!dir.path().join("silver").exists());
        let rdt = rdt(r#"{"closID":"gold"}"#);
        let groups = Groups::of(dir.path(), "c", &rdt);
        groups
            .add(i32::try_from(std::process::id()).unwrap())
            .unwrap();
        let tasks = fs::read_to_string(dir.path().join("gold/tasks")).unwrap();
        assert!(tasks.starts_with(&std::process::id().to_string()));
        groups.remove().unwrap();
        assert!(
            dir.path().join("gold").exists(),
            "it is not the container's"
        );
    }

    #[test]
    fn what_is_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = rdt("{}");
        let groups = Groups::of(dir.path(), "c", &own);
        groups.make(&own).unwrap();
        assert!(dir.path().join("c").is_dir());
        assert!(
            groups.make(&own).is_err(),
            "the id's directory is somebody's already"
        );
        groups.remove().unwrap();
        groups.remove().unwrap();
        assert!(!dir.path().join("c").exists());
        // A plain directory has no file to write to.
        let filled = rdt(r#"{"l3CacheSchema":"L3:0=f"}"#);
        assert!(Groups::of(dir.path(), "c", &filled).make(&filled).is_err());
        assert!(!dir.path().join("c").exists());

        class(dir.path(), "gold");
        let monitored = rdt(r#"{"closID":"gold","enableMonitoring":true}"#);
        let groups = Groups::of(dir.path(), "c", &monitored);
        groups.make(&monitored).unwrap();
        assert!(dir.path().join("gold/mon_groups/c").is_dir());
        groups.remove().unwrap();
        assert!(!dir.path().join("gold/mon_groups/c").exists());
        assert_eq!(
            Groups::of(dir.path(), "c", &rdt(r#"{"closID":"/"}"#)).class,
            dir.path()
        );
    }
}
