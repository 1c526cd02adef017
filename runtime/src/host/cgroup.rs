//! The container's cgroup on this host: it holds the machine process, so it bounds the machine as a whole. The same
//! limits hold among the container's processes inside the guest.
//!
//! Only the cgroup v2 hierarchy is used. Where the host has it in addition to v1 hierarchies (systemd's hybrid layout),
//! it has no controllers: the container gets its cgroup there, and limits of the host cannot be set. Where there is
//! none, the container gets no cgroup.
//!
//! A cgroup is made directly, or by systemd as that of a scope ([`systemd`]).

mod dbus;
mod limit;
mod property;
pub(crate) mod systemd;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use systemd::{Placeholder, Scope};

use crate::error::{Doing, SystemError};

pub(crate) use limit::Limit;

/// Where the hierarchy is mounted: alone, or in addition to v1 (systemd's "unified" and "hybrid" layouts).
const MOUNTS: [(&str, Layout); 2] = [
    ("/sys/fs/cgroup", Layout::Unified),
    ("/sys/fs/cgroup/unified", Layout::Hybrid),
];

/// Controllers that are enabled for a container when the host has them: for limits, and for the statistics that callers
/// read.
const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "io", "cpuset"];

/// How long processes may take to end after SIGKILL. They are not waited for by polling: this bounds the wait for an
/// event.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What goes wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container's cgroup is not empty: {0} process(es) found")]
    NotEmpty(usize),
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    #[error("linux.cgroupsPath {} is not supported: it contains ..", .0.display())]
    Path(PathBuf),
    #[error("{property} cannot be applied: {} is missing", file.display())]
    NoController { property: String, file: PathBuf },
    #[error("{0} cannot be applied: --cgroup-manager=disabled")]
    Disabled(String),
    #[error("{0} cannot be applied: {1}")]
    Nowhere(String, &'static str),
    #[error("set {property} in {}", file.display())]
    Limit {
        property: String,
        file: PathBuf,
        source: io::Error,
    },
    #[error("the processes in cgroup {} did not exit", .0.display())]
    Unkillable(PathBuf),
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    #[error(transparent)]
    System(#[from] SystemError),
}

/// How the host uses cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// cgroup v2 alone.
    Unified,
    /// cgroup v2 without controllers in addition to cgroup v1.
    Hybrid,
}

/// The mounted cgroup v2 hierarchy, if there is one.
pub(crate) fn hierarchy() -> Option<(PathBuf, Layout)> {
    let is_v2 = |path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let (path, layout) = MOUNTS.into_iter().find(|(path, _)| is_v2(*path))?;
    Some((path.into(), layout))
}

/// A file of a cgroup, and what to write to it for a limit to be as before.
pub(crate) type Former = (Cow<'static, str>, String);

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// The systemd unit that it belongs to.
    scope: Option<String>,
}

/// The directory of a container's cgroup.
///
/// As with runc an absolute `cgroups_path` is one below the hierarchy's root, and a relative one, or else the id, is
/// one next to the cgroup of the caller: cgroups with processes of their own cannot have controllers for children.
pub(crate) fn locate(
    root: &Path,
    own: &str,
    cgroups_path: Option<&Path>,
    id: &str,
) -> Result<PathBuf, Error> {
    let path = cgroups_path
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new(id));
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(Error::Path(path.to_owned()));
    }
    match path.strip_prefix("/") {
        Ok(below) => Ok(root.join(below)),
        Err(_) => {
            let own = Path::new(own).parent().unwrap_or_else(|| Path::new("/"));
            Ok(root.join(own.strip_prefix("/").unwrap_or(own)).join(path))
        }
    }
}

/// The path of the caller's cgroup in the v2 hierarchy, for instance `/user.slice`.
pub(crate) fn own() -> Result<String, Error> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).doing_to("read", path)?;
    Ok(own_in(&text).to_owned())
}

/// The directory of a process's cgroup; `None` when it has none or has ended.
pub(crate) fn of(pid: i32) -> Option<PathBuf> {
    let (root, _) = hierarchy()?;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    Some(root.join(own_in(&text).trim_start_matches('/')))
}

/// The v2 line of `/proc/<pid>/cgroup` (cgroups(7)).
fn own_in(text: &str) -> &str {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/")
}

/// The file with the limit of memory.
const MEMORY_MAX: &str = "memory.max";

/// Bytes that processes may need at once while their limit is lowered.
const MEMORY_SLACK: u64 = 16 << 20;

/// A number of bytes as files of a cgroup have it; "max" is the greatest.
fn bytes(text: &str) -> u64 {
    text.trim().parse().unwrap_or(u64::MAX)
}

impl Cgroup {
    /// Makes the cgroup at `path` below `root`, with the host's controllers and `limits`. Those of speed are tried and
    /// lifted again: `start` sets them. On an error nothing that was made is left.
    pub(crate) fn create(root: &Path, path: PathBuf, limits: &[Limit]) -> Result<Cgroup, Error> {
        let below = path
            .strip_prefix(root)
            .unwrap_or_else(|_| Path::new(""))
            .to_owned();
        let cgroup = Cgroup::existing(path);
        cgroup.check_unused(root)?;
        let mut made = Vec::new();
        let result = make(root, &below, &mut made).and_then(|()| {
            cgroup.prepare(limits)?;
            Ok(cgroup)
        });
        if result.is_err() {
            for path in made.iter().rev() {
                let _ = fs::remove_dir(path);
            }
        }
        result
    }

    /// Has systemd make the cgroup of `scope` below `root`, with `limits` as [`Cgroup::create`] sets them. It exists
    /// while there is a process in it: until the container has one, the placeholder. On an error nothing that was made
    /// is left.
    pub(crate) fn of_scope(
        root: &Path,
        scope: &Scope,
        limits: &[Limit],
    ) -> Result<(Cgroup, Placeholder), Error> {
        let unit = Some(scope.name().to_owned());
        let cgroup = Cgroup::existing(scope.directory(root)).of_unit(unit);
        cgroup.check_unused(root)?;
        let placeholder = scope.start(limits)?;
        // As runc: exactly what is asked for, where systemd rounds; and an error where a controller is missing, where
        // systemd is silent.
        match cgroup.prepare(limits) {
            Ok(()) => Ok((cgroup, placeholder)),
            Err(e) => {
                drop(placeholder);
                let _ = cgroup.remove();
                Err(e)
            }
        }
    }

    /// The cgroup of a container that has been created.
    pub(crate) fn existing(path: PathBuf) -> Cgroup {
        Cgroup { path, scope: None }
    }

    /// The same one, belonging to a systemd unit if there is a name of one.
    pub(crate) fn of_unit(self, scope: Option<String>) -> Cgroup {
        Cgroup { scope, ..self }
    }

    /// Refuses a cgroup that processes are in, and one that is frozen by itself or by one above: no machine would ever
    /// answer from there.
    fn check_unused(&self, root: &Path) -> Result<(), Error> {
        match self.processes()?.len() {
            0 => {}
            count => return Err(Error::NotEmpty(count)),
        }
        // One that is not there yet is as the next one above.
        let above = self.path.ancestors().take_while(|path| *path != root);
        let existing = above.map(|path| path.join("cgroup.events"));
        let text = existing.map(fs::read_to_string).find_map(Result::ok);
        // `frozen` is what has come true; a cgroup that still freezes is as good as frozen.
        let asked = fs::read_to_string(self.path.join("cgroup.freeze"));
        let frozen = asked.is_ok_and(|text| text.trim_end() == "1")
            || text.is_some_and(|text| text.lines().any(|line| line == "frozen 1"));
        if frozen { Err(Error::Frozen) } else { Ok(()) }
    }

    /// Opens the directory, for clone3.
    pub(crate) fn open(&self) -> Result<File, Error> {
        Ok(File::open(&self.path).doing_to("open", &self.path)?)
    }

    /// Writes those of `limits` that are not what the files say; gives the files written and what to write for all to
    /// be as before. On an error all is as before.
    pub(crate) fn update(&self, limits: &[Limit]) -> Result<Vec<Former>, Error> {
        let mut former = Vec::new();
        if let Some(scope) = &self.scope {
            // The files are written all the same: they take exactly what is asked for.
            let former = limits.iter().filter_map(|limit| {
                let text = fs::read_to_string(self.path.join(&*limit.file)).ok()?;
                Some((limit.file.clone(), limit.former(&text)))
            });
            let former: Vec<Former> = former.collect();
            let changed = systemd::set(scope, limits).map_err(Error::from);
            let changed = changed.and_then(|()| self.set_all(limits));
            if changed.is_err() {
                let _ = self.restore(&former);
            }
            return changed.map(|()| former);
        }
        for limit in limits {
            let path = self.path.join(&*limit.file);
            let result = match fs::read_to_string(&path) {
                Ok(text) if text.trim_end() == limit.value => continue,
                Ok(text) => self
                    .set(limit)
                    .map(|()| former.push((limit.file.clone(), limit.former(&text)))),
                // Writing to it says which property needs it, if one does.
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.set(limit),
                Err(e) => Err(e).doing_to("read", path).map_err(Error::from),
            };
            if let Err(e) = result {
                // Why the limits cannot be changed matters more than that they cannot be changed back.
                let _ = self.restore(&former);
                return Err(e);
            }
        }
        Ok(former)
    }

    /// Takes the limit of memory out of `limits` if it is lower than the one in force.
    pub(crate) fn take_lower(&self, limits: &mut Vec<Limit>) -> Option<Limit> {
        let index = limits.iter().position(|limit| limit.file == MEMORY_MAX)?;
        let now = fs::read_to_string(self.path.join(MEMORY_MAX)).ok()?;
        let lower = bytes(&limits[index].value) < bytes(&now);
        lower.then(|| limits.remove(index))
    }

    /// The limit of memory, or a higher one that leaves the processes alive: the kernel kills for one that is below
    /// what they use and that it cannot take back (cgroup-v2.rst, memory.max).
    pub(crate) fn bearable(&self, limit: Limit) -> Limit {
        let read = |file| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let statistics = read("memory.stat");
        let of = |name| {
            let value = statistics.lines().find_map(|line| line.strip_prefix(name));
            value.map_or(0, bytes)
        };
        let cache = of("inactive_file ").saturating_add(of("active_file "));
        let held = bytes(&read("memory.current")).saturating_sub(cache);
        let least = held.saturating_add(MEMORY_SLACK);
        let value = bytes(&limit.value).max(least).to_string();
        Limit { value, ..limit }
    }

    /// Writes what [`Cgroup::update`] has given.
    pub(crate) fn restore(&self, former: &[Former]) -> Result<(), Error> {
        if let Some(scope) = &self.scope {
            let limits = former.iter();
            let limits = limits.map(|(file, text)| Limit::unasked(file.clone(), text.trim_end()));
            systemd::set(scope, &limits.collect::<Vec<_>>())?;
        }
        for (name, text) in former.iter().rev() {
            let path = self.path.join(&**name);
            write(&path, text).doing_to("write", path)?;
        }
        Ok(())
    }

    /// Sets the limits of a cgroup for a machine that is still to boot.
    fn prepare(&self, limits: &[Limit]) -> Result<(), Error> {
        self.set_all(limits)?;
        let of_speed = limits.iter().filter(|limit| limit.is_of_speed());
        of_speed
            .map(Limit::lifted)
            .try_for_each(|lifted| self.set(&lifted))
    }

    /// Writes all of `limits`, in order.
    pub(crate) fn set_all(&self, limits: &[Limit]) -> Result<(), Error> {
        limits.iter().try_for_each(|limit| self.set(limit))
    }

    /// Takes the limit of processor time away, if there is one: what it holds is to end, and that takes a machine longer
    /// than a process.
    pub(crate) fn let_end(&self) {
        let path = self.path.join("cpu.max");
        // It ends all the same, only later.
        if fs::read_to_string(&path).is_ok_and(|text| !text.starts_with("max")) {
            let _ = write(&path, "max");
        }
    }

    fn set(&self, limit: &Limit) -> Result<(), Error> {
        let path = self.path.join(&*limit.file);
        match (write(&path, &limit.value), &limit.property) {
            (Ok(()), _) => Ok(()),
            // Protects the host and nobody asked for it.
            (Err(e), None) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            // The caller has been told at create.
            (Err(e), Some(_))
                if e.kind() == io::ErrorKind::NotFound
                    && limit.is_the_guests_too()
                    && matches!(hierarchy(), Some((_, Layout::Hybrid))) =>
            {
                Ok(())
            }
            (Err(e), Some(property)) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoController {
                    property: property.to_string(),
                    file: path,
                })
            }
            (Err(source), property) => Err(Error::Limit {
                property: property.as_deref().unwrap_or("a limit").to_owned(),
                file: path,
                source,
            }),
        }
    }

    /// Whether a process lives in the cgroup or below it. None does in one that is gone.
    fn is_populated(&self) -> Result<bool, Error> {
        let path = self.path.join("cgroup.events");
        match fs::read_to_string(&path) {
            Err(e) if is_removed(&e) => Ok(false),
            text => {
                let text = text.doing_to("read", path)?;
                Ok(text.lines().any(|line| line == "populated 1"))
            }
        }
    }

    /// The processes in the cgroup and below it, in order; a cgroup that is not there has none.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        match processes(&self.path, &mut pids) {
            Err(e) if !is_removed(&e) => {
                return Ok(Err(e).doing_to("list the processes of", &self.path)?);
            }
            _ => {}
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Ends every process in the cgroup and waits until they have ended; a cgroup that is not there has none.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        let path = self.path.join("cgroup.kill");
        match write(&path, "1") {
            Err(e) if is_removed(&e) => return Ok(()),
            result => result.doing_to("write", path)?,
        }
        self.await_empty()
    }

    fn await_empty(&self) -> Result<(), Error> {
        let path = self.path.join("cgroup.events");
        let events = match File::open(&path) {
            Err(e) if is_removed(&e) => return Ok(()),
            events => events.doing_to("open", &path)?,
        };
        let timeout = PollTimeout::try_from(KILL_TIMEOUT).unwrap_or(PollTimeout::MAX);
        // Opened before it is read: a change after the reading is an event (cgroups(7), POLLPRI).
        while self.is_populated()? {
            let mut polled = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut polled, timeout) {
                Ok(0) => return Err(Error::Unkillable(self.path.clone())),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Ok(Err(e).doing_to("poll", &path)?),
            }
        }
        Ok(())
    }

    /// Ends what runs in the cgroup, then removes it and what is below it; what is already gone is fine.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        if let Some(scope) = &self.scope {
            self.kill()?;
            systemd::stop(scope);
        }
        match fs::remove_dir(&self.path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Something lives in it or below it.
            Err(_) => {}
        }
        self.kill()?;
        match remove_tree(&self.path) {
            Err(e) if is_removed(&e) => Ok(()),
            result => Ok(result.doing_to("remove", &self.path)?),
        }
    }
}

/// Makes the directories `below` `root` one by one, each with the controllers of the one above; `made` gets those that
/// were not there.
fn make(root: &Path, below: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut path = root.to_owned();
    for component in below.components() {
        delegate(&path)?;
        path.push(component);
        match fs::create_dir(&path) {
            Ok(()) => made.push(path.clone()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Ok(Err(e).doing_to("create", &path)?),
        }
    }
    Ok(())
}

/// Enables the controllers for the children of a cgroup. One that cannot be enabled shows when a limit needs it.
fn delegate(path: &Path) -> Result<(), Error> {
    let read = |name| {
        let path = path.join(name);
        fs::read_to_string(&path).doing_to("read", path)
    };
    let available = read("cgroup.controllers")?;
    let enabled = read("cgroup.subtree_control")?;
    let has = |list: &str, name| list.split_ascii_whitespace().any(|c| c == name);
    for name in CONTROLLERS {
        if has(&available, name) && !has(&enabled, name) {
            let _ = write(&path.join("cgroup.subtree_control"), &format!("+{name}"));
        }
    }
    Ok(())
}

/// Whether an error says that a cgroup has been removed, before its file was opened or since (kernfs: ENODEV).
fn is_removed(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// Writes to a file that must exist: in this file system the attempt to create one is another error than that it is
/// missing.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

fn processes(path: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    // 0 stands for a process of another pid namespace.
    let listed = text.lines().filter_map(|line| line.parse::<i32>().ok());
    pids.extend(listed.filter(|pid| *pid > 0));
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match processes(&entry.path(), pids) {
                Err(e) if !is_removed(&e) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
