//! A container as PID 1 sees it: its cgroup, and the table of its processes.
//!
//! Invariants: each request is answered exactly once; the end of a process is told only when it has
//! been created or executed, and that of the init comes last; an entry stays no longer than its
//! process, except while other processes hold its outputs; that memory ran out is told before the
//! end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::{
    Create, Exec, Exit, Failure, FailureKind, INIT, Network, PROCESSES_MAX, ProcessId, Reply,
    TerminalSize,
};

use super::cgroup::Cgroup;
use super::network;
use super::notify::Notify;
use super::place::Place;
use super::process::{Process, Step, not_running};
use super::spawn::SetupFile;
use crate::clock::now;
use crate::error::{Error, Result};
use crate::hierarchy;
use crate::sys::{self, Reaped};
use crate::task::{self, Join, Task, Update};

/// Passes over a cgroup while processes keep appearing in it.
const KILL_PASSES: usize = 64;

/// Maximum number of processes at a time in addition to the init; and, of those that have ended,
/// how many may leave outputs to others.
const MAX_EXECS: usize = 512;

/// What the host must be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The answer to a request.
    Answer(u64, std::result::Result<Reply, Failure>),
    /// The end of a process.
    Exited(ProcessId, Exit),
    /// The kernel has killed because memory ran out.
    OutOfMemory,
    /// The container has said that it is ready.
    Ready,
}

/// A container.
pub(crate) struct Container {
    setup: SetupFile,
    /// The directory of its cgroup.
    directory: PathBuf,
    own_pids: bool,
    started: u64,
    processes: BTreeMap<ProcessId, Entry>,
    /// The last that was executed.
    last: ProcessId,
    /// From the moment when it has been created.
    cgroup: Option<Cgroup>,
    notify: Option<Notify>,
    /// The host must be told, once it has taken what it was told before.
    out_of_memory: bool,
    /// The request that waits until nothing of it is left.
    removal: Option<u64>,
    /// What the host must be told in the next turn.
    news: Vec<Event>,
    place: Place,
}

/// A process and the request that waits for it.
struct Entry {
    process: Process,
    request: Option<u64>,
}

impl Container {
    /// Begins to create a container, for `request`: with a cgroup of its own, and a directory of its
    /// own in the guest.
    pub(crate) fn create(
        request: u64,
        directory: PathBuf,
        cgroup: PathBuf,
        create: &Create,
        joins: Vec<(i32, i32)>,
    ) -> Result<Container> {
        let started = now();
        let setup = SetupFile::new(&create.setup)?;
        let place = Place::create(directory)?;
        let notify = create.notify.then(|| Notify::create(place.path()));
        let notify = notify.transpose()?;
        let task = Task::Create(task::Create {
            directory: place.path().to_owned(),
            cgroup: cgroup.clone(),
            joins,
            notify: create.notify,
            stdio: create.stdio,
            extra: create.extra.clone(),
            policy: create.policy.clone(),
        });
        let (stdio, extra) = (create.stdio, &create.extra);
        let mut process = Process::spawn(&task, &setup, stdio, extra, create.terminal)?;
        process.set_plain_newlines(create.plain_newlines);
        Ok(Container {
            started,
            own_pids: create.own_pids,
            notify,
            ..Container::new(request, setup, place, cgroup, process)
        })
    }

    /// A container whose init is being set up, for `request`.
    pub(super) fn new(
        request: u64,
        setup: SetupFile,
        place: Place,
        cgroup: PathBuf,
        init: Process,
    ) -> Container {
        let init = Entry {
            process: init,
            request: Some(request),
        };
        Container {
            setup,
            directory: cgroup,
            own_pids: true,
            started: now(),
            processes: BTreeMap::from([(INIT, init)]),
            last: INIT,
            cgroup: None,
            notify: None,
            out_of_memory: false,
            removal: None,
            news: Vec::new(),
            place,
        }
    }

    /// Begins to execute one more process, for `request`.
    pub(crate) fn exec(&mut self, request: u64, exec: Exec) -> std::result::Result<(), Failure> {
        let init = self.admit(exec.process)?;
        let (name, terminal, plain) = (exec.process, exec.terminal, exec.plain_newlines);
        let (stdio, extra) = (exec.stdio, exec.extra.clone());
        let task = Task::Exec(Join {
            cgroup: self.directory.clone(),
            init,
            exec,
        });
        let process = Process::spawn(&task, &self.setup, stdio, &extra, terminal);
        let mut process = process.map_err(|error| error.failure())?;
        process.set_plain_newlines(plain);
        self.add(name, process, request);
        Ok(())
    }

    /// Checks whether there may be one more process with this name; the pid of the init.
    pub(super) fn admit(&self, name: ProcessId) -> std::result::Result<i32, Failure> {
        let pid = self.init().ok_or_else(not_running)?;
        let refuse = |text: &str| Err(Failure::message(FailureKind::Other, text));
        if name <= self.last || name >= PROCESSES_MAX {
            return refuse("the process id has been used before, or is out of range");
        }
        let execs = self.processes.values().filter(|e| !e.process.is_gone());
        // One of them is the init.
        if execs.count() > MAX_EXECS {
            return refuse("too many processes are executed at a time");
        }
        Ok(pid)
    }

    /// The pid of the init, if that has been created and has not ended.
    pub(crate) fn init(&self) -> Option<i32> {
        let init = self.process(INIT)?;
        let pid = init.pid()?;
        (!init.has_ended() && (init.is_ready() || init.is_released())).then_some(pid)
    }

    /// Adds a process that is being set up, for `request`.
    pub(super) fn add(&mut self, name: ProcessId, process: Process, request: u64) {
        let request = Some(request);
        self.last = name;
        self.processes.insert(name, Entry { process, request });
    }

    /// Gives up a process that cannot be served.
    pub(crate) fn forget(&mut self, name: ProcessId) {
        self.processes.remove(&name);
    }

    /// What it is made from.
    pub(crate) fn setup(&self) -> &SetupFile {
        &self.setup
    }

    /// The directory of its cgroup.
    pub(crate) fn cgroup_directory(&self) -> &Path {
        &self.directory
    }

    /// Its cgroup, to be watched; None until it has been created.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Its socket for notifications, to be watched, if it has one.
    pub(crate) fn notify(&self) -> Option<&Notify> {
        self.notify.as_ref()
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

    /// Notes the end of a child; whether it is one of the container's.
    pub(crate) fn reaped(&mut self, child: &Reaped) -> bool {
        let found = self
            .processes()
            .find(|(_, process)| process.pid() == Some(child.pid) && !process.has_ended());
        let Some((name, process)) = found else {
            return false;
        };
        process.reaped(child.exit());
        if name == INIT {
            if !self.own_pids {
                // Nothing else ends what init leaves behind. Already gone is fine.
                let _ = fs::write(self.directory.join("cgroup.kill"), "1");
            }
            for (_, process) in self.processes().filter(|(name, _)| *name != INIT) {
                process.abandon();
            }
        }
        true
    }

    /// Looks whether the kernel has killed because memory ran out.
    pub(crate) fn look_at_memory(&mut self) {
        if let Some(cgroup) = &mut self.cgroup {
            self.out_of_memory |= cgroup.out_of_memory();
        }
    }

    /// Whether the host must be told that memory ran out; once.
    pub(crate) fn take_out_of_memory(&mut self) -> bool {
        std::mem::take(&mut self.out_of_memory)
    }

    /// Reads what has come on the socket for notifications.
    pub(crate) fn notified(&mut self) {
        if self.notify.as_mut().is_some_and(Notify::read) {
            self.news.push(Event::Ready);
        }
    }

    /// Moves what can be moved and takes the steps that have become possible. Returns what the host
    /// must be told of them, and whether there is more to move at once.
    pub(crate) fn turn(&mut self) -> (Vec<Event>, bool) {
        let mut events = std::mem::take(&mut self.news);
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

    /// Whether its end has been told and nobody is left in its cgroup. Outputs that its processes
    /// have left to others do not count.
    pub(crate) fn is_over(&self) -> bool {
        let mut processes = self.processes.values();
        processes.all(|entry| entry.process.is_gone()) && !hierarchy::is_populated(&self.directory)
    }

    /// Removes what is left of one that is over. Returns what is left to be told.
    pub(crate) fn bury(mut self) -> Vec<Event> {
        if let Some(cgroup) = &mut self.cgroup {
            let answer = |id| Event::Answer(id, Err(not_running()));
            self.news.extend(cgroup.unanswered().map(answer));
        }
        hierarchy::remove(&self.directory);
        drop(self.place);
        self.news
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
            // All that happened to it comes before its end.
            if name == INIT && matches!(step, Step::Exited(_)) && self.take_out_of_memory() {
                events.push(Event::OutOfMemory);
            }
            events.extend(self.meaning(name, step));
        }
    }

    /// What a step means to the host.
    fn meaning(&mut self, name: ProcessId, step: Step) -> Option<Event> {
        let entry = self.processes.get_mut(&name)?;
        let result = match step {
            Step::Ready if name == INIT => match Cgroup::open(&self.directory) {
                Ok(cgroup) => {
                    self.cgroup = Some(cgroup);
                    Ok(Reply::Created {
                        pid: entry.process.pid().unwrap_or(0),
                        started: self.started,
                        prepared: now(),
                    })
                }
                Err(error) => {
                    entry.process.discard();
                    Err(error.failure())
                }
            },
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

    /// Gives the container its network and lets init execute the program, for `request`.
    pub(crate) fn start(
        &mut self,
        request: u64,
        network: &Network,
    ) -> std::result::Result<(), Failure> {
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
        init.request = Some(request);
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

    /// Begins to freeze or thaw its cgroup, for `request`.
    pub(crate) fn freeze(
        &mut self,
        request: u64,
        frozen: bool,
    ) -> std::result::Result<(), Failure> {
        let cgroup = self.cgroup.as_mut().ok_or_else(not_running)?;
        let begun = cgroup.freeze(request, frozen);
        begun.map_err(|error| error.failure())?;
        // It may be so already.
        self.settle();
        Ok(())
    }

    /// Looks which requests to freeze or thaw have come true.
    pub(crate) fn settle(&mut self) {
        if let Some(cgroup) = &mut self.cgroup {
            let answers = cgroup.settle().into_iter();
            let answers = answers.map(|(id, result)| Event::Answer(id, result));
            self.news.extend(answers);
        }
    }

    /// What has to be done to change its limits.
    pub(crate) fn update(&self, resources: Vec<u8>) -> std::result::Result<Task, Failure> {
        self.cgroup.as_ref().ok_or_else(not_running)?;
        let cgroup = self.directory.clone();
        Ok(Task::Update(Update { cgroup, resources }))
    }

    /// What has to be done to list its processes.
    pub(crate) fn list(&self) -> std::result::Result<Task, Failure> {
        self.cgroup.as_ref().ok_or_else(not_running)?;
        Ok(Task::Processes(self.directory.clone()))
    }

    /// The figures of its cgroup.
    pub(crate) fn statistics(&self) -> std::result::Result<Reply, Failure> {
        let cgroup = self.cgroup.as_ref().ok_or_else(not_running)?;
        let files = cgroup.statistics().map_err(|error| error.failure())?;
        Ok(Reply::Statistics(files))
    }

    /// Ends all of it, for `request`.
    pub(crate) fn remove(&mut self, request: u64) -> std::result::Result<(), Failure> {
        if self.removal.is_some() {
            let text = "the container is being removed already";
            return Err(Failure::message(FailureKind::Other, text));
        }
        self.removal = Some(request);
        self.processes().for_each(|(_, process)| process.abandon());
        // Without one there are no processes in it.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        Ok(())
    }

    /// The request that waits until nothing of it is left.
    pub(crate) fn removal(&self) -> Option<u64> {
        self.removal
    }

    fn kill_all(&self, signal: i32) -> std::io::Result<()> {
        if signal == libc::SIGKILL {
            return fs::write(self.directory.join("cgroup.kill"), "1");
        }
        // A process may fork while the list is read: again until nobody new is found.
        let mut done = std::collections::HashSet::new();
        for _ in 0..KILL_PASSES {
            let mut pids = Vec::new();
            hierarchy::processes(&self.directory, &mut pids)?;
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
