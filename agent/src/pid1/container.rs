//! The container as PID 1 sees it: its cgroup, and the table of its processes.
//!
//! Invariants: each request is answered exactly once; the end of a process is told only when it has
//! been created or executed, and that of the init comes last; an entry stays no longer than its
//! process, except while other processes hold its outputs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::{
    Create, Exec, Exit, FIRST, Failure, FailureKind, INIT, Network, PROCESSES_MAX, ProcessId,
    Reply, TerminalSize,
};

use super::network;
use super::notify::Notify;
use super::place::Place;
use super::process::{Process, Step, not_running};
use super::spawn::SetupFile;
use crate::clock::now;
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::sys::{self, Reaped};
use crate::task::{self, Join, Task};

/// Passes over a cgroup while processes keep appearing in it.
const KILL_PASSES: usize = 64;

/// Processes at a time beside the init; and, of those that have ended, how many may leave outputs
/// to others.
const MAX_EXECS: usize = 512;

/// What the host must be told.
#[derive(Debug)]
pub(crate) enum Event {
    /// The answer to a create, start or exec.
    Answer(u64, std::result::Result<Reply, Failure>),
    /// The end of a process.
    Exited(ProcessId, Exit),
}

/// The container.
pub(crate) struct Container {
    setup: SetupFile,
    notify: Option<Notify>,
    /// Removed with it.
    _place: Place,
    started: u64,
    cgroup: PathBuf,
    own_pids: bool,
    processes: BTreeMap<ProcessId, Entry>,
    /// The last that was executed.
    last: ProcessId,
}

/// A process and the request that waits for it.
struct Entry {
    process: Process,
    request: Option<u64>,
}

impl Container {
    /// Begins to create a container, for the request `id`.
    pub(crate) fn create(id: u64, create: Create) -> Result<Container> {
        let started = now();
        let cgroup = hierarchy::below(Path::new(hierarchy::ROOT), &create.cgroup)?;
        if cgroup == Path::new(hierarchy::ROOT) {
            return Err(Error::Config("linux.cgroupsPath: names no cgroup".into()));
        }
        let setup = SetupFile::new(&create.setup)?;
        let place = Place::create(FIRST)?;
        let notify = create.notify.then(|| Notify::create(FIRST)).transpose()?;
        let task = Task::Create(task::Create {
            container: FIRST,
            cgroup: cgroup.clone(),
            notify: create.notify,
            stdio: create.stdio,
            extra: create.extra.clone(),
        });
        let (stdio, extra) = (create.stdio, &create.extra);
        let process = Process::spawn(&task, &setup, stdio, extra, create.terminal)?;
        let init = Entry {
            process,
            request: Some(id),
        };
        Ok(Container {
            setup,
            notify,
            _place: place,
            started,
            cgroup,
            own_pids: create.own_pids,
            processes: BTreeMap::from([(INIT, init)]),
            last: INIT,
        })
    }

    /// Begins to execute one more process, for the request `id`.
    pub(crate) fn exec(&mut self, id: u64, exec: Exec) -> std::result::Result<(), Failure> {
        let init = self.process(INIT).ok_or_else(not_running)?;
        let pid = init
            .pid()
            .filter(|_| !init.has_ended() && (init.is_ready() || init.is_released()))
            .ok_or_else(not_running)?;
        let refuse = |text: &str| Err(Failure::message(FailureKind::Other, text));
        if exec.process <= self.last || exec.process >= PROCESSES_MAX {
            return refuse("the process id has been used before, or is out of range");
        }
        let execs = self.processes.values().filter(|e| !e.process.is_gone());
        // One of them is the init.
        if execs.count() > MAX_EXECS {
            return refuse("too many processes are executed at a time");
        }
        let (name, terminal) = (exec.process, exec.terminal);
        let (stdio, extra) = (exec.stdio, exec.extra.clone());
        let task = Task::Exec(Join {
            cgroup: self.cgroup.clone(),
            init: pid,
            exec,
        });
        let process = Process::spawn(&task, &self.setup, stdio, &extra, terminal);
        let process = process.map_err(|error| error.failure())?;
        let request = Some(id);
        self.last = name;
        self.processes.insert(name, Entry { process, request });
        Ok(())
    }

    /// Gives up a process that cannot be served.
    pub(crate) fn forget(&mut self, name: ProcessId) {
        self.processes.remove(&name);
    }

    /// Its socket for notifications, if it has one.
    pub(crate) fn notify(&self) -> Option<&Notify> {
        self.notify.as_ref()
    }

    /// See [`Container::notify`].
    pub(crate) fn notify_mut(&mut self) -> Option<&mut Notify> {
        self.notify.as_mut()
    }

    /// What it is made from.
    pub(crate) fn setup(&self) -> &SetupFile {
        &self.setup
    }

    /// The directory of its cgroup.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A process.
    pub(crate) fn process(&self, name: ProcessId) -> Option<&Process> {
        self.processes.get(&name).map(|entry| &entry.process)
    }

    /// A process, to be told what has happened.
    pub(crate) fn process_mut(&mut self, name: ProcessId) -> Option<&mut Process> {
        self.processes
            .get_mut(&name)
            .map(|entry| &mut entry.process)
    }

    /// All processes, to be told what has happened.
    pub(crate) fn processes(&mut self) -> impl Iterator<Item = (ProcessId, &mut Process)> {
        self.processes
            .iter_mut()
            .map(|(name, entry)| (*name, &mut entry.process))
    }

    /// Notes the end of a child, if it is one of the container's.
    pub(crate) fn reaped(&mut self, child: &Reaped) {
        let found = self
            .processes()
            .find(|(_, process)| process.pid() == Some(child.pid) && !process.has_ended());
        let Some((name, process)) = found else { return };
        process.reaped(child.exit());
        if name == INIT {
            if !self.own_pids {
                // Nothing else ends what init leaves behind. Gone already is as good.
                let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            }
            for (_, process) in self.processes().filter(|(name, _)| *name != INIT) {
                process.abandon();
            }
        }
    }

    /// Moves what can be moved and takes the steps that have become possible. Returns what the host
    /// must be told of them, and whether there is more to move at once.
    pub(crate) fn turn(&mut self) -> (Vec<Event>, bool) {
        let mut events = Vec::new();
        let mut more = false;
        let awake = |(name, entry): (&ProcessId, &Entry)| entry.process.is_awake().then_some(*name);
        // The init is the first of the table, and the last to be told of.
        let awake: Vec<ProcessId> = self.processes.iter().rev().filter_map(awake).collect();
        for name in awake {
            more |= self.turn_of(name, &mut events);
        }
        let lingering = self.processes.iter().filter(|(_, e)| e.process.lingers());
        let lingering: Vec<ProcessId> = lingering.map(|(name, _)| *name).collect();
        for name in lingering.iter().rev().skip(MAX_EXECS) {
            self.processes.remove(name);
        }
        (events, more)
    }

    fn turn_of(&mut self, name: ProcessId, events: &mut Vec<Event>) -> bool {
        loop {
            let others = self
                .processes
                .iter()
                .any(|(n, e)| *n != INIT && !e.process.is_gone());
            let Some(entry) = self.processes.get_mut(&name) else {
                return false;
            };
            if name == INIT && others && entry.process.has_ended() {
                return false;
            }
            let (step, more) = entry.process.turn();
            let Some(step) = step else {
                if name != INIT && entry.process.is_gone() && !entry.process.lingers() {
                    self.processes.remove(&name);
                }
                return more;
            };
            events.extend(self.news(name, step));
        }
    }

    /// What a step means to the host.
    fn news(&mut self, name: ProcessId, step: Step) -> Option<Event> {
        let entry = self.processes.get_mut(&name)?;
        let result = match step {
            Step::Ready if name == INIT => Ok(Reply::Created {
                pid: entry.process.pid().unwrap_or(0),
                started: self.started,
                prepared: now(),
            }),
            Step::Ready => match entry.process.release() {
                Ok(()) => return None,
                Err(error) => Err(error.failure()),
            },
            Step::Executed if name == INIT => {
                let executed = now();
                Ok(Reply::Started {
                    executed,
                    sent: now(),
                })
            }
            Step::Executed => Ok(Reply::Executed {
                pid: entry.process.pid().unwrap_or(0),
            }),
            Step::Failed(failure) => Err(failure),
            Step::Exited(exit) => return Some(Event::Exited(name, exit)),
        };
        let answer = Event::Answer(entry.request.take()?, result);
        if name != INIT && matches!(answer, Event::Answer(_, Err(_))) {
            self.processes.remove(&name);
        }
        Some(answer)
    }

    /// Gives the container its network and lets init execute the program, for the request `id`. The
    /// answer comes as an event.
    pub(crate) fn start(&mut self, id: u64, network: &Network) -> std::result::Result<(), Failure> {
        let init = self.processes.get_mut(&INIT).ok_or_else(not_running)?;
        if init.process.is_released() {
            let text = "the container has been started already";
            return Err(Failure::message(FailureKind::Other, text));
        }
        if !init.process.is_ready() || init.process.has_ended() {
            return Err(not_running());
        }
        let pid = init.process.pid().ok_or_else(not_running)?;
        if let Err(error) = network::configure(network, pid) {
            // With half a network it is of no use. It is there, and its end will be told.
            let _ = init.process.kill(libc::SIGKILL);
            return Err(error.failure());
        }
        init.process.release().map_err(|error| error.failure())?;
        init.request = Some(id);
        Ok(())
    }

    /// Sends a signal to a process, or to all in the container's cgroup.
    pub(crate) fn kill(
        &mut self,
        name: ProcessId,
        signal: i32,
        all: bool,
    ) -> std::result::Result<(), Failure> {
        let process = self.process_mut(name).ok_or_else(not_running)?;
        let result = if !all {
            process.kill(signal).ok_or_else(not_running)?
        } else if process.pid().is_some() && !process.has_ended() {
            self.kill_all(signal)
        } else {
            return Err(not_running());
        };
        result.map_err(|source| {
            let what = format!("send signal {signal}");
            Error::Os { what, source }.failure()
        })
    }

    /// Sets the window size of a process's terminal.
    pub(crate) fn resize(
        &self,
        name: ProcessId,
        size: TerminalSize,
    ) -> std::result::Result<(), Failure> {
        self.process(name).ok_or_else(not_running)?.resize(size)
    }

    fn kill_all(&self, signal: i32) -> std::io::Result<()> {
        if signal == libc::SIGKILL {
            return fs::write(self.cgroup.join("cgroup.kill"), "1");
        }
        // A process may fork while the list is read: again until nobody new is found.
        let mut done = std::collections::HashSet::new();
        for _ in 0..KILL_PASSES {
            let mut pids = Vec::new();
            hierarchy::processes(&self.cgroup, &mut pids)?;
            pids.retain(|pid| done.insert(*pid));
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match sys::kill(pid, signal) {
                    // Ended in between.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    result => result?,
                }
            }
        }
        Err(std::io::Error::other(
            "processes appear faster than they can be signalled",
        ))
    }
}
