//! What `/proc` says of a process (proc(5)), read once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat};

use super::Subject;
use crate::error::{Doing, SystemError};
use crate::machine::MEMORY_FILES;

/// linux/sched.h: a thread of the kernel that was cloned from a process, since Linux 6.4.
const PF_USER_WORKER: u64 = 0x4000;

/// linux/seccomp.h
const SECCOMP_MODE_FILTER: u32 = 2;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("process {0} has ended")]
    Ended(i32),
    /// No kernel writes such a file.
    #[error("{} is invalid", .0.display())]
    Invalid(PathBuf),
    #[error(transparent)]
    System(#[from] SystemError),
}

/// The files of the state directory that a machine process writes to ([`crate::state`]).
const OWN: [&str; 2] = ["journal", "log"];

/// Identifies a file: its device and its inode.
type FileId = (u64, u64);

/// The host as the caller sees it: what a machine must not share.
pub(crate) struct Host {
    pub(super) subject: Subject,
    /// The ids of the mounts that the caller and PID 1 see.
    pub(super) mounts: Vec<u64>,
    /// Their root directories.
    roots: Vec<FileId>,
    /// The files of the host that are the machine's own.
    own: Vec<FileId>,
    /// The limits of memory of the cgroups of its further containers.
    limits: Vec<FileId>,
}

impl Host {
    pub(super) fn read(subject: Subject) -> Result<Host, Error> {
        let below = |directory: &PathBuf, names: &[&str]| -> Vec<FileId> {
            let found = names.iter().filter_map(|name| {
                let found = fs::metadata(directory.join(name)).ok()?;
                Some((found.dev(), found.ino()))
            });
            found.collect()
        };
        let states = subject.states.iter();
        let own = states.flat_map(|state| below(state, &OWN));
        let cgroup = subject.cgroup.iter();
        let memory = cgroup.flat_map(|cgroup| below(cgroup, &MEMORY_FILES));
        let own = own.chain(memory).collect();
        let members = subject.members.iter();
        let limits = members.flat_map(|cgroup| below(cgroup, &MEMORY_FILES[..1]));
        let limits = limits.collect();
        let mut host = Host {
            subject,
            mounts: Vec::new(),
            roots: Vec::new(),
            own,
            limits,
        };
        host.add("self")?;
        // An engine in namespaces of its own may not be allowed to look at the host's first process.
        let _ = host.add("1");
        Ok(host)
    }

    /// Adds the mounts and the root directory that a process sees.
    fn add(&mut self, process: &str) -> Result<(), Error> {
        let path = PathBuf::from(format!("/proc/{process}/mountinfo"));
        let text = fs::read_to_string(&path).doing_to("read", &path)?;
        let mounts = mount_ids(&text).ok_or(Error::Invalid(path))?;
        self.mounts.extend(mounts);
        let root = format!("/proc/{process}/root/");
        let found = fs::metadata(&root).doing_to("read", root)?;
        self.roots.push((found.dev(), found.ino()));
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn made_of(
        subject: Subject,
        mounts: Vec<u64>,
        roots: Vec<FileId>,
        own: Vec<FileId>,
    ) -> Host {
        Host {
            subject,
            mounts,
            roots,
            own,
            limits: Vec::new(),
        }
    }

    /// Whether a file of the host is the machine's own.
    pub(super) fn is_own(&self, file: FileId) -> bool {
        self.own.contains(&file)
    }

    /// Whether a file of the host is the limit of a further container, in whose cgroup on this host there are stubs alone.
    pub(super) fn is_limit(&self, file: FileId) -> bool {
        self.limits.contains(&file)
    }

    /// Whether a directory is the root of the host's files.
    pub(super) fn is_root(&self, found: FileId) -> bool {
        self.roots.contains(&found)
    }
}

/// The first field of each line of mountinfo.
fn mount_ids(text: &str) -> Option<Vec<u64>> {
    let first = |line: &str| line.split(' ').next()?.parse().ok();
    text.lines().map(first).collect()
}

/// A process.
pub(super) struct Process {
    pub(super) pid: i32,
    /// The main thread first.
    pub(super) threads: Vec<Thread>,
    /// The names of the kernel's own threads in it, such as KVM makes: they never execute its code.
    pub(super) workers: Vec<String>,
    pub(super) descriptors: Vec<Descriptor>,
    pub(super) limits: Vec<Limit>,
}

/// A thread of it.
pub(super) struct Thread {
    pub(super) id: i32,
    /// As it calls itself; `main` for the main thread.
    pub(super) name: String,
    pub(super) status: Status,
}

/// An open descriptor.
pub(super) struct Descriptor {
    pub(super) number: u32,
    /// What the link in `/proc/PID/fd` says.
    pub(super) target: String,
    /// S_IFMT of stat(2); 0 for what is no file.
    pub(super) kind: u32,
    /// Of a device.
    pub(super) device: u64,
    pub(super) file: FileId,
    /// O_* of open(2).
    pub(super) flags: u64,
    /// The mount that it was opened on.
    pub(super) mount: u64,
    /// Where `..` leads to from a directory in the end.
    pub(super) top: Option<FileId>,
}

impl Process {
    pub(super) fn read(pid: i32) -> Result<Process, Error> {
        let (mut threads, mut workers) = (Vec::new(), Vec::new());
        for id in numbers(pid, "task")? {
            let Some((is_worker, status)) = thread(pid, id)? else {
                continue;
            };
            let name = if id == pid {
                "main".to_owned()
            } else {
                status.name.clone()
            };
            if is_worker {
                workers.push(name);
            } else {
                threads.push(Thread { id, name, status });
            }
        }
        threads.sort_by_key(|thread| (thread.id != pid, thread.id));
        let mut descriptors = Vec::new();
        for number in numbers(pid, "fd")? {
            descriptors.extend(Descriptor::read(pid, number)?);
        }
        let path = format!("/proc/{pid}/limits");
        let text = unless_gone(fs::read_to_string(&path)).doing_to("read", &path)?;
        let limits = Limit::parse(&text.ok_or(Error::Ended(pid))?);
        if threads.is_empty() || limits.is_empty() {
            return Err(Error::Ended(pid));
        }
        Ok(Process {
            pid,
            threads,
            workers,
            descriptors,
            limits,
        })
    }

    /// Where a link of the process's directory leads.
    pub(super) fn link(&self, name: &str) -> io::Result<PathBuf> {
        fs::read_link(format!("/proc/{}/{name}", self.pid))
    }

    /// What a file of the process's directory says.
    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid))
    }

    /// What a file of the process's directory is.
    pub(super) fn metadata(&self, name: &str) -> io::Result<fs::Metadata> {
        fs::metadata(format!("/proc/{}/{name}", self.pid))
    }

    /// The status of the main thread.
    pub(super) fn main(&self) -> Status {
        let main = self.threads.first();
        main.map(|main| main.status.clone()).unwrap_or_default()
    }

    /// The number of threads, in words.
    pub(super) fn how_many(&self) -> String {
        match self.threads.len() {
            1 => "one thread".to_owned(),
            number => format!("{number} threads"),
        }
    }

    /// The names of the threads of which something holds.
    pub(super) fn those(&self, holds: impl Fn(&Status) -> bool) -> Vec<&str> {
        let threads = self.threads.iter().filter(|thread| holds(&thread.status));
        threads.map(|thread| thread.name.as_str()).collect()
    }
}

/// Whether a thread is the kernel's own, and its status; `None` if it has ended.
fn thread(pid: i32, id: i32) -> Result<Option<(bool, Status)>, Error> {
    let path = |file| format!("/proc/{pid}/task/{id}/{file}");
    let read = |file| unless_gone(fs::read_to_string(path(file))).doing_to("read", path(file));
    let (Some(stat), Some(status)) = (read("stat")?, read("status")?) else {
        return Ok(None);
    };
    let flags = flags(&stat).ok_or_else(|| Error::Invalid(path("stat").into()))?;
    let status = Status::parse(&status).ok_or_else(|| Error::Invalid(path("status").into()))?;
    Ok(Some((flags & PF_USER_WORKER != 0, status)))
}

/// The flags of a thread: the seventh field after the name, which may hold anything (proc_pid_stat(5)).
fn flags(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// The numbers that a directory of a process consists of.
fn numbers<T: std::str::FromStr + Ord>(pid: i32, directory: &str) -> Result<Vec<T>, Error> {
    let path = format!("/proc/{pid}/{directory}");
    let read = |entries: fs::ReadDir| {
        let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name());
        entries.map(name).collect::<io::Result<Vec<_>>>()
    };
    let names = unless_gone(fs::read_dir(&path).and_then(read)).doing_to("read", &path)?;
    let names = names.ok_or(Error::Ended(pid))?;
    let mut numbers: Vec<T> = names
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    numbers.sort();
    Ok(numbers)
}

/// `None` for what has gone: a descriptor that was closed, a thread or a process that has ended.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Descriptor {
    /// `None` if it has been closed meanwhile.
    fn read(pid: i32, number: u32) -> Result<Option<Descriptor>, Error> {
        let link = format!("/proc/{pid}/fd/{number}");
        let information = format!("/proc/{pid}/fdinfo/{number}");
        let look = || {
            let text = fs::read_to_string(&information)?;
            let found = fs::metadata(&link)?;
            let top = if found.is_dir() {
                Some(top(Path::new(&link))?)
            } else {
                None
            };
            Ok((text, found, fs::read_link(&link)?, top))
        };
        let Some((text, found, target, top)) = unless_gone(look()).doing_to("look at", &link)?
        else {
            return Ok(None);
        };
        let (flags, mount) = fdinfo(&text).ok_or_else(|| Error::Invalid(information.into()))?;
        Ok(Some(Descriptor {
            number,
            target: target.to_string_lossy().into_owned(),
            kind: found.mode() & libc::S_IFMT,
            device: found.rdev(),
            file: (found.dev(), found.ino()),
            flags,
            mount,
            top,
        }))
    }
}

/// Where `..` leads to from a directory, however often: one that has nothing above it.
fn top(directory: &Path) -> io::Result<FileId> {
    const UP: &str = "../../../../../../../../../../../../../../../../";
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut above = open(directory, flags, Mode::empty())?;
    let mut before = None;
    loop {
        let found = fstatat(&above, "", AtFlags::AT_EMPTY_PATH)?;
        let found = (found.st_dev, found.st_ino);
        if before == Some(found) {
            return Ok(found);
        }
        before = Some(found);
        above = nix::fcntl::openat(&above, UP, flags, Mode::empty())?;
    }
}

/// Flags and mount of `/proc/PID/fdinfo/N` (proc_pid_fdinfo(5)).
fn fdinfo(text: &str) -> Option<(u64, u64)> {
    let value = |name| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let flags = u64::from_str_radix(value("flags")?.trim(), 8).ok()?;
    Some((flags, value("mnt_id")?.trim().parse().ok()?))
}

/// What `/proc/PID/status` says of a thread.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) name: String,
    /// Real, effective, saved, of the file system.
    pub(super) uids: [u32; 4],
    pub(super) gids: [u32; 4],
    pub(super) groups: Vec<u32>,
    pub(super) inheritable: u64,
    pub(super) permitted: u64,
    pub(super) effective: u64,
    pub(super) bounding: u64,
    pub(super) ambient: u64,
    pub(super) no_new_privs: bool,
    /// SECCOMP_MODE_*.
    pub(super) seccomp: u32,
}

impl Status {
    /// `None` when a line is missing or is not as the kernel writes it.
    fn parse(text: &str) -> Option<Status> {
        let value = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
        };
        let numbers = |name| {
            let words = value(name)?.split_ascii_whitespace();
            words
                .map(|word| word.parse().ok())
                .collect::<Option<Vec<u32>>>()
        };
        let bits = |name| u64::from_str_radix(value(name)?, 16).ok();
        Some(Status {
            name: value("Name")?.to_owned(),
            uids: numbers("Uid")?.try_into().ok()?,
            gids: numbers("Gid")?.try_into().ok()?,
            groups: numbers("Groups")?,
            inheritable: bits("CapInh")?,
            permitted: bits("CapPrm")?,
            effective: bits("CapEff")?,
            bounding: bits("CapBnd")?,
            ambient: bits("CapAmb")?,
            no_new_privs: value("NoNewPrivs")? == "1",
            seccomp: value("Seccomp")?.parse().ok()?,
        })
    }

    /// Whether the thread has a seccomp filter.
    pub(super) fn has_filter(&self) -> bool {
        self.seccomp == SECCOMP_MODE_FILTER
    }
}

/// A resource limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) name: String,
    pub(super) soft: String,
    pub(super) hard: String,
}

impl Limit {
    /// Reads `/proc/PID/limits`; a line that is none is left out.
    fn parse(text: &str) -> Vec<Limit> {
        /// The width of the first column (fs/proc/base.c).
        const NAME: usize = 26;
        let line = |line: &str| {
            let (name, rest) = line.split_at_checked(NAME)?;
            let mut words = rest.split_ascii_whitespace();
            Some(Limit {
                name: name.trim().to_owned(),
                soft: words.next()?.to_owned(),
                hard: words.next()?.to_owned(),
            })
        };
        text.lines().skip(1).filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tfs0\nUmask:\t0000\nState:\tS (sleeping)\nTgid:\t70\nPid:\t75\n\
        Uid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nFDSize:\t64\nGroups:\t8 9 \nNStgid:\t70\n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000880000db\nCapEff:\t00000000880000da\nCapBnd:\t00000000880000dB\n\
        CapAmb:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    #[test]
    fn status() {
        let status = Status {
            name: "fs0".into(),
            uids: [0, 1, 2, 3],
            gids: [4, 5, 6, 7],
            groups: vec![8, 9],
            inheritable: 0,
            permitted: 0x8800_00db,
            effective: 0x8800_00da,
            bounding: 0x8800_00db,
            ambient: 1,
            no_new_privs: true,
            seccomp: 2,
        };
        assert_eq!(Status::parse(STATUS).as_ref(), Some(&status));
        // `Seccomp` is a whole name, and an empty list is one.
        let more = STATUS.replace("Seccomp:\t2\n", "");
        assert_eq!(Status::parse(&more), None);
        let none = STATUS.replace("8 9 \n", "\n");
        assert!(Status::parse(&none).unwrap().groups.is_empty());
        let three = STATUS.replace("0\t1\t2\t3", "0\t1\t2");
        assert_eq!(Status::parse(&three), None);
        assert_eq!(Status::parse(""), None);
    }

    #[test]
    fn limits() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max core file size        0                    unlimited            bytes     \n\
                    Max nice priority         3                    4                    \nMax\n";
        let limit = |name: &str, soft: &str, hard: &str| Limit {
            name: name.into(),
            soft: soft.into(),
            hard: hard.into(),
        };
        let expected = [
            limit("Max core file size", "0", "unlimited"),
            limit("Max nice priority", "3", "4"),
        ];
        assert_eq!(Limit::parse(text), expected);
        assert_eq!(Limit::parse(""), []);
    }

    #[test]
    fn descriptors_and_mounts() {
        let text = "pos:\t0\nflags:\t012100000\nmnt_id:\t29\nino:\t5\n";
        assert_eq!(fdinfo(text), Some((0o12_100_000, 29)));
        assert_eq!(fdinfo("pos:\t0\nflags:\t9\nmnt_id:\t29\n"), None);
        assert_eq!(fdinfo("flags:\t0\n"), None);
        let text = "22 1 0:20 / / rw - x x rw\n317 22 0:5 / /proc rw - proc proc rw\n";
        assert_eq!(mount_ids(text), Some(vec![22, 317]));
        assert_eq!(mount_ids("x\n"), None);
    }

    #[test]
    fn threads_of_the_kernel() {
        let stat = "7 (a) S 3 ()) S 1 7 7 0 -1 4194624 0 0 0 0 0";
        assert_eq!(flags(stat), Some(4_194_624));
        assert_eq!(flags("7 (a) S 1"), None);
        assert_eq!(flags(""), None);
    }

    #[test]
    fn this_process() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::File::open(directory.path()).unwrap();
        let process = Process::read(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(process.threads[0].name, "main");
        let number = std::os::fd::AsRawFd::as_raw_fd(&open).unsigned_abs();
        let found = process
            .descriptors
            .iter()
            .find(|found| found.number == number)
            .unwrap();
        let root = fs::metadata("/").unwrap();
        assert_eq!(found.top, Some((root.dev(), root.ino())));
        assert_eq!(found.kind, libc::S_IFDIR);
        assert!(matches!(Process::read(i32::MAX), Err(Error::Ended(_))));
    }
}
