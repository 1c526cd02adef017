//! The loop of PID 1: one thread, one epoll instance, and nothing that blocks.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use protocol::{
    BALLOON_DEVICE, Create, Exec, FIRST, Failure, FailureKind, INIT, Message, ProcessId, Reply,
    Request, RequestBody,
};

use super::boot::Booted;
use super::cgroup::Cgroup;
use super::container::{Container, Event};
use super::device;
use super::errand::Errands;
use super::process::{self, Process};
use super::stream::Stream;
use crate::clock::now;
use crate::error::{self, During, Error, Result};
use crate::sys;
use crate::task::{Task, Update};

/// What an epoll event is about: one of these, or a part of a process.
const CONTROL: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;

/// A process's parts are its wire, and for each of its streams the socket and its own end; three
/// streams and those of EXTRA_MAX more descriptors fit.
const PARTS: u64 = 64;
const WIRE: u64 = 0;
const STREAMS: u64 = 1;

/// The files of the container's cgroup, beyond all streams.
const FREEZING: u64 = u64::MAX - 2;
const MEMORY: u64 = u64::MAX - 3;

/// The socket that the container tells of its readiness on.
const NOTIFY: u64 = u64::MAX - 4;

/// There is time for what the start did not need.
const SETTLED: u64 = u64::MAX - 5;

/// How long after the container's start that is: one that is over sooner is spared it.
const SETTLING: TimeSpec = TimeSpec::from_duration(Duration::from_secs(1));

/// Errands, beyond all streams, too: their numbers are added.
const ERRANDS: u64 = 1 << 63;

/// Events taken at once.
const BATCH: usize = 16;

/// PID 1 at work.
pub(crate) struct Agent {
    epoll: Epoll,
    booted: Booted,
    container: Option<Container>,
    /// Of the container that has been created.
    cgroup: Option<Cgroup>,
    errands: Errands,
    /// Until the container has run for [`SETTLING`].
    settling: Option<TimerFd>,
    /// The host is to be told, once it has taken what it was told before.
    out_of_memory: bool,
    /// What epoll knows of the control stream's wishes.
    interest: EpollFlags,
}

impl Agent {
    /// Serves the host until it goes away or something breaks; both are the end of the guest.
    pub(crate) fn run(booted: Booted) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).during(|| "create an epoll")?;
        let interest = booted.control.interest();
        let mut agent = Agent {
            epoll,
            booted,
            container: None,
            cgroup: None,
            errands: Errands::default(),
            settling: None,
            out_of_memory: false,
            interest,
        };
        watch(&agent.epoll, agent.booted.control.fd(), interest, CONTROL)?;
        watch(
            &agent.epoll,
            agent.booted.signals.as_fd(),
            EpollFlags::EPOLLIN,
            SIGNALS,
        )?;
        loop {
            agent.turn()?;
        }
    }

    fn turn(&mut self) -> Result<()> {
        let more = self.pump()?;
        let timeout = if more {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => return Ok(()),
            result => result.during(|| "wait for events")?,
        };
        for event in &events[..count] {
            self.handle(event.data(), event.events())?;
        }
        Ok(())
    }

    /// Moves what can be moved, then tells the host what has come of it. Returns whether there is
    /// more to move at once.
    fn pump(&mut self) -> Result<bool> {
        if self.out_of_memory && self.booted.control.is_idle() {
            self.out_of_memory = false;
            self.booted.control.send(&Message::OutOfMemory(FIRST))?;
        }
        let Some(container) = &mut self.container else {
            return self.update_interest(false);
        };
        let (events, more) = container.turn();
        for event in events {
            if matches!(event, Event::Answer(_, Ok(Reply::Created { .. }))) {
                let cgroup = Cgroup::open(container.cgroup())?;
                watch_cgroup(&self.epoll, &cgroup)?;
                self.cgroup = Some(cgroup);
            }
            let message = match event {
                Event::Answer(id, result) => Message::Response { id, result },
                Event::Exited(process, exit) => Message::Exited {
                    container: FIRST,
                    process,
                    exit,
                },
            };
            self.booted.control.send(&message)?;
        }
        self.update_interest(more)
    }

    fn update_interest(&mut self, more: bool) -> Result<bool> {
        let interest = self.booted.control.interest();
        if interest != self.interest {
            let mut event = EpollEvent::new(interest, CONTROL);
            self.epoll
                .modify(self.booted.control.fd(), &mut event)
                .during(|| "watch a descriptor")?;
            self.interest = interest;
        }
        Ok(more)
    }

    fn handle(&mut self, token: u64, events: EpollFlags) -> Result<()> {
        match token {
            CONTROL => self.control_ready(events),
            SIGNALS => self.reap(),
            FREEZING => self.settle(),
            MEMORY => self.look_at_memory(),
            NOTIFY => self.notified(),
            SETTLED => {
                self.settled();
                Ok(())
            }
            token if token >= ERRANDS => self.errand_ready(token - ERRANDS),
            token => self.process_ready(token / PARTS, token % PARTS, events),
        }
    }

    fn control_ready(&mut self, events: EpollFlags) -> Result<()> {
        if self.booted.control.ready(events)? {
            let agent_started = self.booted.started;
            let hello = Message::Hello {
                version: protocol::VERSION,
                agent_started,
                sent: now(),
            };
            self.booted.control.send(&hello)?;
        }
        while let Some(request) = self.booted.control.request()? {
            self.serve(request)?;
        }
        Ok(())
    }

    fn serve(&mut self, request: Request) -> Result<()> {
        let id = request.id;
        let none = || Failure::message(FailureKind::NotRunning, "there is no container");
        let result = match request.body {
            // The answers come when the work is done.
            RequestBody::Create(create) => match self.create(id, create) {
                Ok(()) => return Ok(()),
                Err(failure) => Err(failure),
            },
            RequestBody::Exec(exec) => match self.exec(id, exec) {
                Ok(()) => return Ok(()),
                Err(failure) => Err(failure),
            },
            RequestBody::Start(network) => match &mut self.container {
                Some(container) => match container.start(id, &network) {
                    Ok(()) => return self.settle_later(),
                    Err(failure) => Err(failure),
                },
                None => Err(none()),
            },
            RequestBody::Kill {
                process,
                signal,
                all,
            } => match &mut self.container {
                Some(container) => container.kill(process, signal, all).map(|()| Reply::Done),
                None => Err(none()),
            },
            RequestBody::Resize { process, size } => match &self.container {
                Some(container) => container.resize(process, size).map(|()| Reply::Done),
                None => Err(none()),
            },
            body => match self.serve_cgroup(id, body) {
                Some(result) => result,
                None => return self.settle(),
            },
        };
        self.booted.control.send(&Message::Response { id, result })
    }

    /// Serves what concerns the container's cgroup. None when the answer comes later.
    fn serve_cgroup(
        &mut self,
        id: u64,
        body: RequestBody,
    ) -> Option<std::result::Result<Reply, Failure>> {
        let Some(cgroup) = &mut self.cgroup else {
            return Some(Err(Error::NotRunning.failure()));
        };
        let result = match body {
            RequestBody::Pause | RequestBody::Resume => {
                match cgroup.freeze(id, body == RequestBody::Pause) {
                    Ok(()) => return None,
                    Err(error) => Err(error),
                }
            }
            RequestBody::Update { resources } => {
                let cgroup = cgroup.directory().to_owned();
                return self.errand(id, &Task::Update(Update { cgroup, resources }));
            }
            RequestBody::Processes => {
                let cgroup = cgroup.directory().to_owned();
                return self.errand(id, &Task::Processes(cgroup));
            }
            RequestBody::Statistics => cgroup.statistics().map(Reply::Statistics),
            _ => Err(Error::Config("the request is not supported".into())),
        };
        Some(result.map_err(|error| error.failure()))
    }

    /// Sends for the answer. None when it comes later.
    fn errand(&mut self, id: u64, task: &Task) -> Option<std::result::Result<Reply, Failure>> {
        let watch = |number, wire: BorrowedFd<'_>| {
            watch(&self.epoll, wire, EpollFlags::EPOLLIN, ERRANDS + number)
        };
        let Some(container) = &self.container else {
            return Some(Err(Error::NotRunning.failure()));
        };
        let begun = self.errands.begin(id, task, container.setup(), watch);
        begun.err().map(|error| Err(error.failure()))
    }

    fn errand_ready(&mut self, number: u64) -> Result<()> {
        match self.errands.hear(number) {
            Some((id, result)) => self.booted.control.send(&Message::Response { id, result }),
            None => Ok(()),
        }
    }

    fn settle(&mut self) -> Result<()> {
        let Some(cgroup) = &mut self.cgroup else {
            return Ok(());
        };
        for (id, result) in cgroup.settle()? {
            self.booted
                .control
                .send(&Message::Response { id, result })?;
        }
        Ok(())
    }

    fn look_at_memory(&mut self) -> Result<()> {
        if let Some(cgroup) = &mut self.cgroup {
            self.out_of_memory |= cgroup.out_of_memory()?;
        }
        Ok(())
    }

    fn notified(&mut self) -> Result<()> {
        let container = self.container.as_mut();
        let Some(notify) = container.and_then(Container::notify_mut) else {
            return Ok(());
        };
        if notify.read()? {
            self.booted.control.send(&Message::Ready(FIRST))?;
        }
        Ok(())
    }

    fn settle_later(&mut self) -> Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
            .and_then(|timer| {
                timer.set(Expiration::OneShot(SETTLING), TimerSetTimeFlags::empty())?;
                Ok(timer)
            })
            .during(|| "set a timer")?;
        watch(&self.epoll, timer.as_fd(), EpollFlags::EPOLLIN, SETTLED)?;
        self.settling = Some(timer);
        Ok(())
    }

    /// From here on the guest gives memory back that it has no use for.
    fn settled(&mut self) {
        self.settling = None;
        if let Err(error) = device::bind(BALLOON_DEVICE) {
            // A container whose memory stays with the guest is a whole one.
            error::log(&error.failure().to_string());
        }
    }

    fn create(&mut self, id: u64, create: Create) -> std::result::Result<(), Failure> {
        if self.container.is_some() {
            let text = "this guest has its container already";
            return Err(Failure::message(FailureKind::Other, text));
        }
        let container = Container::create(id, create).map_err(|error| error.failure())?;
        let watched = watch_process(&self.epoll, INIT, container.process(INIT));
        let watched = watched.and_then(|()| match container.notify() {
            Some(notify) => watch(&self.epoll, notify.fd(), EpollFlags::EPOLLIN, NOTIFY),
            None => Ok(()),
        });
        self.container = Some(container);
        watched.map_err(|error| error.failure())
    }

    fn exec(&mut self, id: u64, exec: Exec) -> std::result::Result<(), Failure> {
        let container = self.container.as_mut();
        let container = container.ok_or_else(process::not_running)?;
        let name = exec.process;
        container.exec(id, exec)?;
        let watched = watch_process(&self.epoll, name, container.process(name));
        watched.map_err(|error| {
            container.forget(name);
            error.failure()
        })
    }

    fn reap(&mut self) -> Result<()> {
        // Standard signals do not queue: one read, then all children that there are.
        self.booted
            .signals
            .read_signal()
            .during(|| "read the signalfd")?;
        // The kernel may be late to say why a process ended; the host wants to know before the end.
        self.look_at_memory()?;
        // A pid is told before its process may end, so hearing comes before reaping.
        for (name, process) in self.container.iter_mut().flat_map(Container::processes) {
            hear(&self.epoll, name, process)?;
        }
        while let Some(child) = sys::reap().during(|| "wait for a child")? {
            if let Some(container) = &mut self.container {
                container.reaped(&child);
            }
        }
        Ok(())
    }

    fn process_ready(&mut self, name: ProcessId, part: u64, events: EpollFlags) -> Result<()> {
        let container = self.container.as_mut();
        let Some(process) = container.and_then(|container| container.process_mut(name)) else {
            return Ok(());
        };
        if part == WIRE {
            return hear(&self.epoll, name, process);
        }
        let number = part - STREAMS;
        let index = usize::try_from(number / 2).unwrap_or(usize::MAX);
        if number.is_multiple_of(2) {
            process.socket_ready(index, events);
        } else {
            process.end_ready(index, events);
        }
        Ok(())
    }
}

fn hear(epoll: &Epoll, name: ProcessId, process: &mut Process) -> Result<()> {
    if process.hear()? {
        watch_ends(epoll, name, process)?;
    }
    Ok(())
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, events: EpollFlags, token: u64) -> Result<()> {
    epoll
        .add(fd, EpollEvent::new(events, token))
        .during(|| "watch a descriptor")
}

fn watch_process(epoll: &Epoll, name: ProcessId, process: Option<&Process>) -> Result<()> {
    let Some(process) = process else {
        return Ok(());
    };
    if let Some(wire) = process.wire() {
        watch(epoll, wire, EpollFlags::EPOLLIN, name * PARTS + WIRE)?;
    }
    for (index, stream) in (0..).zip(process.streams()) {
        if let Some(socket) = stream.socket() {
            let token = name * PARTS + STREAMS + 2 * index;
            watch(epoll, socket, Stream::interest(), token)?;
        }
    }
    watch_ends(epoll, name, process)
}

fn watch_ends(epoll: &Epoll, name: ProcessId, process: &Process) -> Result<()> {
    for (index, stream) in (0..).zip(process.streams()) {
        if let Some(end) = stream.end() {
            let token = name * PARTS + STREAMS + 2 * index + 1;
            watch(epoll, end, Stream::interest(), token)?;
        }
    }
    Ok(())
}

fn watch_cgroup(epoll: &Epoll, cgroup: &Cgroup) -> Result<()> {
    for (file, token) in cgroup.watched().into_iter().zip([FREEZING, MEMORY]) {
        watch(epoll, file, EpollFlags::EPOLLPRI, token)?;
    }
    Ok(())
}
