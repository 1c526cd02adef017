//! The loop of PID 1: one thread, one epoll instance, and nothing that blocks.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocol::{Create, Failure, FailureKind, Message, Reply, Request, RequestBody};

use crate::boot::{Booted, now, since_boot};
use crate::cgroup::Cgroup;
use crate::container::{Container, Event};
use crate::error::{During, Error, Result};
use crate::stream::{Stream, Turn};
use crate::sys;

/// What an epoll event is about.
const CONTROL: u64 = 0;
const SIGNALS: u64 = 1;
const WIRE: u64 = 2;
/// The streams follow: two numbers each, for the socket and for the container's end.
const STREAMS: u64 = 3;

/// The files of the container's cgroup, beyond all streams.
const FREEZING: u64 = u64::MAX - 2;
const MEMORY: u64 = u64::MAX - 3;

/// Events taken at once.
const BATCH: usize = 16;

/// PID 1 at work.
pub(crate) struct Agent {
    epoll: Epoll,
    booted: Booted,
    container: Option<Container>,
    /// The container's configuration, until its cgroup exists.
    config: String,
    /// Of the container that has been created.
    cgroup: Option<Cgroup>,
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
            config: String::new(),
            cgroup: None,
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
            self.booted.control.send(&Message::OutOfMemory)?;
        }
        let mut more = false;
        let Some(container) = &mut self.container else {
            return self.update_interest(false);
        };
        let mut ended = container.has_ended();
        loop {
            for stream in container.streams() {
                more |= stream.pump(ended) == Turn::More;
            }
            while let Some(event) = container.advance() {
                if matches!(event, Event::Answer(_, Ok(Reply::Created { .. }))) {
                    let config = std::mem::take(&mut self.config);
                    let cgroup = Cgroup::open(container.cgroup(), config)?;
                    watch_cgroup(&self.epoll, &cgroup)?;
                    self.cgroup = Some(cgroup);
                }
                let message = match event {
                    Event::Answer(id, result) => Message::Response { id, result },
                    Event::Exited(exit) => Message::Exited {
                        process: protocol::INIT,
                        exit,
                    },
                };
                self.booted.control.send(&message)?;
            }
            // The end of init is news to the streams: what is empty now is done.
            if container.has_ended() == ended {
                return self.update_interest(more);
            }
            ended = true;
        }
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
            WIRE => self.wire_ready(),
            FREEZING => self.settle(),
            MEMORY => self.look_at_memory(),
            token => self.stream_ready(token - STREAMS, events),
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
            RequestBody::Create(create) => match self.create(id, &create) {
                Ok(()) => return Ok(()),
                Err(failure) => Err(failure),
            },
            RequestBody::Start => match &mut self.container {
                Some(container) => match container.start(id) {
                    Ok(()) => return Ok(()),
                    Err(failure) => Err(failure),
                },
                None => Err(none()),
            },
            RequestBody::Kill { signal, all, .. } => match &self.container {
                Some(container) => container.kill(signal, all).map(|()| Reply::Done),
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
            RequestBody::Update(json) => cgroup.update(&json).map(|()| Reply::Done),
            RequestBody::Statistics => cgroup.statistics().map(Reply::Statistics),
            RequestBody::Processes => cgroup.processes().map(|processes| Reply::Processes {
                now: since_boot(),
                processes,
            }),
            _ => Err(Error::Config("the request is not supported".into())),
        };
        Some(result.map_err(|error| error.failure()))
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

    fn create(&mut self, id: u64, create: &Create) -> std::result::Result<(), Failure> {
        if self.container.is_some() {
            let text = "this guest has its container already";
            return Err(Failure::message(FailureKind::Other, text));
        }
        self.config.clone_from(&create.config);
        let mut container = Container::create(id, create).map_err(|error| error.failure())?;
        let watched = watch_container(&self.epoll, &mut container);
        self.container = Some(container);
        watched.map_err(|error| error.failure())
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
        self.wire_ready()?;
        while let Some(child) = sys::reap().during(|| "wait for a child")? {
            if let Some(container) = &mut self.container {
                container.reaped(&child);
            }
        }
        Ok(())
    }

    fn wire_ready(&mut self) -> Result<()> {
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        if container.wire_ready()? {
            for (index, stream) in (0..).zip(container.streams()) {
                watch_end(&self.epoll, stream, index)?;
            }
        }
        Ok(())
    }

    fn stream_ready(&mut self, number: u64, events: EpollFlags) -> Result<()> {
        let index = usize::try_from(number / 2).unwrap_or(usize::MAX);
        let stream = self
            .container
            .as_mut()
            .and_then(|c| c.streams().get_mut(index));
        let Some(stream) = stream else { return Ok(()) };
        if number & 1 == 0 {
            return stream.socket_ready(events);
        }
        stream.end_ready(events);
        Ok(())
    }
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, events: EpollFlags, token: u64) -> Result<()> {
    epoll
        .add(fd, EpollEvent::new(events, token))
        .during(|| "watch a descriptor")
}

fn watch_container(epoll: &Epoll, container: &mut Container) -> Result<()> {
    if let Some(wire) = container.wire() {
        watch(epoll, wire, EpollFlags::EPOLLIN, WIRE)?;
    }
    for (index, stream) in (0..).zip(container.streams()) {
        if let Some(socket) = stream.socket() {
            watch(epoll, socket, Stream::interest(), STREAMS + 2 * index)?;
        }
        watch_end(epoll, stream, index)?;
    }
    Ok(())
}

fn watch_cgroup(epoll: &Epoll, cgroup: &Cgroup) -> Result<()> {
    for (file, token) in cgroup.watched().into_iter().zip([FREEZING, MEMORY]) {
        watch(epoll, file, EpollFlags::EPOLLPRI, token)?;
    }
    Ok(())
}

fn watch_end(epoll: &Epoll, stream: &Stream, index: u64) -> Result<()> {
    match stream.end() {
        Some(end) => watch(epoll, end, Stream::interest(), STREAMS + 2 * index + 1),
        None => Ok(()),
    }
}
