//! The container's cgroup while the container lives: freezing, limits, figures, processes, and the
//! watch for want of memory. What can block is only described here, for another process to do
//! ([`errand`](crate::errand)).
//!
//! Pause and resume are answered by what `cgroup.events` says, and the kernel says when that has
//! changed (cgroup-v2.rst: a modified event generated on the file, here EPOLLPRI).

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};
use protocol::{Failure, FailureKind, MAX_FRAME, Process, Reply};
use serde::{Deserialize, Serialize};

use crate::container;
use crate::error::{During, Error, Result};
use crate::stage;

/// The most of one file of a cgroup that is reported, in bytes. The longest, `memory.stat`, has 2 KiB.
const MAX_FILE: u64 = 64 << 10;

/// The most of `/proc/<pid>/stat`, `status` and `cmdline` that is reported, in bytes.
const MAX_PROC: [u64; 3] = [4 << 10, 8 << 10, 4 << 10];

/// The most that an answer's variable part takes in its frame, in bytes of JSON.
const MAX_ANSWER: usize = MAX_FRAME - (4 << 10);

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
    /// The `config.json` that it was created with.
    config: String,
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
    pub(crate) fn open(directory: &Path, config: String) -> Result<Cgroup> {
        let open = |name| {
            let path = directory.join(name);
            File::open(&path).during(|| format!("open {}", path.display()))
        };
        Ok(Cgroup {
            directory: directory.to_owned(),
            config,
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
        if field(&read(&self.events)?, "populated") == Some(0) {
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
    pub(crate) fn settle(&mut self) -> Result<Vec<Answer>> {
        // Reading is also what tells the kernel that the change has been seen.
        let text = read(&self.events)?;
        let frozen = field(&text, "frozen") == Some(1);
        let Some(&(_, wanted)) = self.waiting.last() else {
            return Ok(Vec::new());
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
        Ok(due.into_iter().map(answer).collect())
    }

    /// Whether the kernel has killed for want of memory since this was asked last. The kernel
    /// leaves at least 10 ms between two events of the file (kernel/cgroup/cgroup.c,
    /// CGROUP_FILE_NOTIFY_MIN_INTV).
    pub(crate) fn out_of_memory(&mut self) -> Result<bool> {
        let kills = field(&read(&self.memory_events)?, "oom_kill").unwrap_or(0);
        let grown = kills > self.kills;
        self.kills = kills;
        Ok(grown)
    }

    /// What is to be done for an update to the JSON of a `linux.resources` object. It may take as long as the kernel needs to make room.
    pub(crate) fn update(&self, json: String) -> Update {
        Update {
            directory: self.directory.clone(),
            config: self.config.clone(),
            json,
        }
    }

    /// What is to be done to list the processes. They may hold it up: their command lines are in their own memory.
    pub(crate) fn processes(&self) -> Processes {
        Processes {
            directory: self.directory.clone(),
        }
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

/// A change of limits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    directory: PathBuf,
    config: String,
    json: String,
}

impl Update {
    /// Changes the limits that are named, all or none.
    pub(crate) fn apply(&self) -> Result<()> {
        let resources: LinuxResources = serde_json::from_str(&self.json)
            .map_err(|error| Error::Config(format!("linux.resources: {error}")))?;
        let devices = resources.devices().as_ref();
        let devices = devices.filter(|rules| !rules.is_empty());
        if devices.is_some() && devices != self.devices()?.as_ref() {
            let text = "cannot be updated: linux.resources.devices (differs from the container's)";
            return Err(Error::Config(text.into()));
        }
        stage::cgroup_update(resources, &self.directory)
    }

    /// The device rules that it was created with.
    fn devices(&self) -> Result<Option<Vec<LinuxDeviceCgroup>>> {
        let spec: Spec = serde_json::from_str(&self.config).map_err(Error::Parse)?;
        let linux = spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        Ok(resources.and_then(|resources| resources.devices().clone()))
    }
}

/// The list of processes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Processes {
    directory: PathBuf,
}

impl Processes {
    /// The processes by pid, as many as an answer holds.
    pub(crate) fn read(&self) -> Result<Vec<Process>> {
        let mut pids = Vec::new();
        container::processes(&self.directory, &mut pids)
            .during(|| format!("list the processes of {}", self.directory.display()))?;
        pids.sort_unstable();
        pids.dedup();
        let read = |pid| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            // One that is gone has no files any more.
            Some(Process {
                pid,
                stat: bounded(&proc.join("stat"), MAX_PROC[0])?,
                status: bounded(&proc.join("status"), MAX_PROC[1])?,
                command_line: bounded(&proc.join("cmdline"), MAX_PROC[2])?,
            })
        };
        let processes = pids.into_iter().filter_map(read);
        Ok(fitting(processes, MAX_ANSWER, |process| {
            let texts = [&process.stat, &process.status, &process.command_line];
            // The names of the fields and the pid.
            64 + texts.iter().map(|text| json_length(text)).sum::<usize>()
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

/// A short file of the kernel, from its beginning.
fn read(file: &File) -> Result<String> {
    let mut text = [0; 4096];
    let count = file
        .read_at(&mut text, 0)
        .during(|| "read the events of the cgroup")?;
    Ok(String::from_utf8_lossy(&text[..count]).into_owned())
}

/// The first `most` bytes of a file; None if it cannot be read.
fn bounded(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The elements from the front that take at most `room` together, with 8 bytes between two.
fn fitting<T>(
    elements: impl Iterator<Item = T>,
    mut room: usize,
    length: impl Fn(&T) -> usize,
) -> Vec<T> {
    elements
        .map_while(|element| {
            room = room.checked_sub(length(&element) + 8)?;
            Some(element)
        })
        .collect()
}

/// The bytes that a string takes in JSON (RFC 8259, section 7), at most.
fn json_length(text: &str) -> usize {
    let of = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(of).sum::<usize>()
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
        let cgroup = Cgroup::open(dir.path(), "{}".to_owned()).unwrap();
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
        assert_eq!(cgroup.settle().unwrap(), []);
        events(1);
        assert_eq!(cgroup.settle().unwrap(), [(5, Ok(Reply::Done))]);
        assert_eq!(cgroup.settle().unwrap(), []);
        cgroup.freeze(6, false).unwrap();
        assert_eq!(cgroup.settle().unwrap(), []);
        cgroup.freeze(7, true).unwrap();
        let answers = cgroup.settle().unwrap();
        assert!(matches!(answers[..], [(6, Err(_)), (7, Ok(Reply::Done))]));
    }

    #[test]
    fn a_kill_for_want_of_memory_is_told_once() {
        let (dir, mut cgroup) = cgroup();
        assert!(!cgroup.out_of_memory().unwrap());
        fs::write(dir.path().join("memory.events"), "oom 1\noom_kill 2\n").unwrap();
        assert!(cgroup.out_of_memory().unwrap());
        assert!(!cgroup.out_of_memory().unwrap());
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

    #[test]
    fn processes_are_found_below_and_shown() {
        let (dir, cgroup) = cgroup();
        let own = std::process::id();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(
            dir.path().join("sub/cgroup.procs"),
            format!("{own}\n4194305\n"),
        )
        .unwrap();
        let processes = cgroup.processes().read().unwrap();
        assert_eq!(
            processes.len(),
            1,
            "beyond the kernel's greatest pid is nobody"
        );
        let process = &processes[0];
        assert!(process.stat.starts_with(&format!("{own} (")));
        assert!(process.status.starts_with("Name:"));
        assert!(!process.command_line.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_cut_from_the_end() {
        let text = "\0\n\"é".to_owned();
        assert_eq!(
            json_length(&text),
            serde_json::to_string(&text).unwrap().len()
        );
        let three = ["aa", "bb", "cc"];
        assert_eq!(fitting(three.into_iter(), 22, |t| t.len()), ["aa", "bb"]);
        let process = Process {
            pid: i32::MAX,
            stat: "\u{1}".repeat(4 << 10),
            status: String::new(),
            command_line: "\0".repeat(4 << 10),
        };
        let many = fitting(std::iter::repeat_n(process, 100_000), MAX_ANSWER, |p| {
            64 + json_length(&p.stat) + json_length(&p.status) + json_length(&p.command_line)
        });
        let result = Ok(Reply::Processes {
            now: u64::MAX,
            processes: many,
        });
        let message = protocol::Message::Response {
            id: u64::MAX,
            result,
        };
        assert!(protocol::encode(&message).is_ok());
    }

    #[test]
    fn what_an_update_cannot_change_is_refused() {
        let (_dir, mut cgroup) = cgroup();
        cgroup.config = r#"{"ociVersion":"1.0.2"}"#.to_owned();
        let update = |cgroup: &Cgroup, json: &str| cgroup.update(json.to_owned()).apply();
        let text = |json| update(&cgroup, json).unwrap_err().to_string();
        let devices = r#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
        assert!(text(devices).contains("linux.resources.devices"));
        cgroup.config = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{devices}}}}}"#);
        assert!(update(&cgroup, devices).is_ok(), "the same rules");
        let text = |json| update(&cgroup, json).unwrap_err().to_string();
        assert!(text("[").contains("linux.resources"));
        assert!(update(&cgroup, r#"{"devices":[]}"#).is_ok());
    }
}
