//! The container's cgroup while the container lives: freezing, limits, figures, processes, and the
//! watch for kills because memory ran out. What can block is not done here, but by others ([`errand`](super::errand)).
//!
//! Pause and resume are answered by what `cgroup.events` says, and the kernel says when that has
//! changed (cgroup-v2.rst: a modified event generated on the file, here EPOLLPRI).

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use protocol::{Failure, FailureKind, Reply};

use crate::answer::{MAX_ANSWER, bounded, fitting, json_length};
use crate::error::{During, Error, Result};

/// Maximum length of one file of a cgroup that is reported, in bytes. The longest, `memory.stat`, has 2 KiB.
const MAX_FILE: u64 = 64 << 10;

/// The files that are reported, but for those of [`is_statistic`] with a device or size in the name.
const STATISTICS: [&str; 21] = [
    "cgroup.stat",
    "cpu.max",
    "cpu.pressure",
    "cpu.stat",
    "cpu.weight",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.max",
    "memory.peak",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "memory.swap.peak",
    "pids.current",
    "pids.max",
    "rdma.current",
    "rdma.max",
];

/// The answer to a request that had to wait.
pub(crate) type Answer = (u64, std::result::Result<Reply, Failure>);

/// The cgroup.
pub(crate) struct Cgroup {
    directory: PathBuf,
    /// `cgroup.events` and `memory.events`.
    events: File,
    memory_events: File,
    /// Kills that the host has been told of.
    kills: u64,
    /// The requests that wait for the cgroup to be frozen (true) or thawed.
    waiting: Vec<(u64, bool)>,
}

impl Cgroup {
    /// Of a container that has been created in `directory`.
    pub(crate) fn open(directory: &Path) -> Result<Cgroup> {
        let open = |name| {
            let path = directory.join(name);
            File::open(&path).during(|| format!("open {}", path.display()))
        };
        Ok(Cgroup {
            directory: directory.to_owned(),
            events: open("cgroup.events")?,
            memory_events: open("memory.events")?,
            kills: 0,
            waiting: Vec::new(),
        })
    }

    /// What to wait for EPOLLPRI on: the file about freezing, and the one about memory.
    pub(crate) fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.events.as_fd(), self.memory_events.as_fd()]
    }

    /// Begins to freeze or thaw, for the request `id`. The answer comes from [`Cgroup::settle`].
    ///
    /// # Errors
    /// [`Error::NotRunning`] when nobody is left in it.
    pub(crate) fn freeze(&mut self, id: u64, frozen: bool) -> Result<()> {
        if field(&read(&self.events), "populated") == Some(0) {
            return Err(Error::NotRunning);
        }
        let value = if frozen { "1" } else { "0" };
        let file = self.directory.join("cgroup.freeze");
        fs::write(file, value).during(|| format!("write {value} to cgroup.freeze"))?;
        self.waiting.push((id, frozen));
        Ok(())
    }

    /// The answers that are due: of the requests that have come true, and of those that a later one
    /// has overtaken.
    pub(crate) fn settle(&mut self) -> Vec<Answer> {
        // Reading is also what tells the kernel that the change has been seen.
        let text = read(&self.events);
        let frozen = field(&text, "frozen") == Some(1);
        let Some(&(_, wanted)) = self.waiting.last() else {
            return Vec::new();
        };
        let due = |&(_, other): &(u64, bool)| other != wanted || frozen == wanted;
        let (due, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(due);
        self.waiting = waiting;
        let answer = |(id, other)| {
            let overtaken =
                || Failure::message(FailureKind::Other, "overtaken by the opposite request");
            let result = if other == wanted {
                Ok(Reply::Done)
            } else {
                Err(overtaken())
            };
            (id, result)
        };
        due.into_iter().map(answer).collect()
    }

    /// The requests that have not been answered, for nobody is left to be frozen or thawed.
    pub(crate) fn unanswered(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.waiting.drain(..).map(|(id, _)| id)
    }

    /// Whether the kernel has killed because memory ran out since this was asked last. The kernel
    /// leaves at least 10 ms between two events of the file (kernel/cgroup/cgroup.c,
    /// CGROUP_FILE_NOTIFY_MIN_INTV).
    pub(crate) fn out_of_memory(&mut self) -> bool {
        let kills = field(&read(&self.memory_events), "oom_kill").unwrap_or(0);
        let grown = kills > self.kills;
        self.kills = self.kills.max(kills);
        grown
    }

    /// The figures: names and contents of the files that there are.
    pub(crate) fn statistics(&self) -> Result<Vec<(String, String)>> {
        let what = || format!("list {}", self.directory.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).during(what)? {
            let name = entry.during(what)?.file_name();
            names.extend(name.into_string().ok().filter(|name| is_statistic(name)));
        }
        names.sort();
        let read = |name: String| {
            let text = bounded(&self.directory.join(&name), MAX_FILE)?;
            Some((name, text))
        };
        let files = names.into_iter().filter_map(read);
        Ok(fitting(files, MAX_ANSWER, |(name, text)| {
            json_length(name) + json_length(text)
        }))
    }
}

fn is_statistic(name: &str) -> bool {
    let huge = name.starts_with("hugetlb.")
        && [".current", ".max", ".events"]
            .iter()
            .any(|end| name.ends_with(end));
    huge || STATISTICS.contains(&name)
}

/// The number behind `name` in a file of lines of a name and a number.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|number| number.parse().ok())
}

/// A short file of the kernel, from its beginning. That of a cgroup that is gone says nothing.
fn read(file: &File) -> String {
    let mut text = [0; 4096];
    let count = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files that a cgroup has; their events do not come by themselves.
    fn cgroup() -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("memory.events", "oom 1\noom_kill 0\noom_group_kill 0\n"),
            ("cgroup.procs", "0\n"),
            ("memory.max", "max\n"),
            ("memory.max.usage", "1"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup::open(dir.path()).unwrap();
        (dir, cgroup)
    }

    #[test]
    fn a_freeze_is_answered_when_it_has_come_true() {
        let (dir, mut cgroup) = cgroup();
        let events = |frozen: u8| {
            let text = format!("populated 1\nfrozen {frozen}\n");
            fs::write(dir.path().join("cgroup.events"), text).unwrap();
        };
        cgroup.freeze(5, true).unwrap();
        assert_eq!(fs::read(dir.path().join("cgroup.freeze")).unwrap(), b"1");
        assert_eq!(cgroup.settle(), []);
        events(1);
        assert_eq!(cgroup.settle(), [(5, Ok(Reply::Done))]);
        assert_eq!(cgroup.settle(), []);
        cgroup.freeze(6, false).unwrap();
        assert_eq!(cgroup.settle(), []);
        cgroup.freeze(7, true).unwrap();
        let answers = cgroup.settle();
        assert!(matches!(answers[..], [(6, Err(_)), (7, Ok(Reply::Done))]));
    }

    #[test]
    fn a_kill_because_memory_ran_out_is_told_once() {
        let (dir, mut cgroup) = cgroup();
        assert!(!cgroup.out_of_memory());
        fs::write(dir.path().join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
        assert!(cgroup.out_of_memory());
        assert!(!cgroup.out_of_memory());
    }

    #[test]
    fn statistics_are_the_files_of_the_list() {
        let (_dir, cgroup) = cgroup();
        let names: Vec<_> = cgroup
            .statistics()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "hugetlb.2MB.current",
            "hugetlb.2MB.rsvd.current",
            "memory.events",
            "memory.max",
        ];
        assert_eq!(names, expected);
    }
}
