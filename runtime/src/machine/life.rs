//! The machine's life: one event loop until its first container has ended.
//!
//! ```text
//!  booting ──Hello──> serving ──the first container is over──> the end
//!     │                  │
//!     └──the guest ends──┴──> every container drains, as one whose machine was lost
//! ```
//! Invariants: what the guest sends moves a container along the arrows of [`Container`] only; control requests are
//! answered in every phase. The loop never blocks on anything but epoll_wait, and no table in it grows with what the
//! guest does.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use protocol::{ContainerId, Exit, FIRST, Failure, INIT, Message, ProcessId, Reply, RequestBody};
use vmm::vsock::Port;
use vmm::{Ended, Event, Machine};

use super::agent::Agent;
use super::clients::Clients;
use super::clock::Clock;
use super::container::{Container, Phase};
use super::error::Error;
use super::execs::{Executed, Target};
use super::forwards::Forwards;
use super::log::Log;
use super::pins::Pins;
use super::replies::{answer, exec_failure, failed, start_failure};
use super::sync::{FromMachine, SyncSocket, ToMachine, give_up};
use super::timeline::{Timeline, now, placed};
use super::tree::Exported;
use crate::control::ControlReply;
use crate::error::{Doing, one_line};
use crate::{guest, sys};

/// Exit code of a container whose machine ended before it.
const MACHINE_LOST: u8 = 255;

/// Maximum number of requests that the agent has not answered.
const REQUESTS_MAX: usize = 1024;

/// What the life is made of.
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) exported: Exported,
    pub(super) agent: Agent,
    pub(super) signals: SignalFd,
    pub(super) clock: Clock,
    pub(super) clients: Clients,
    pub(super) forwards: Forwards,
    pub(super) pins: Pins,
    pub(super) log: Log,
    pub(super) timeline: Timeline,
    pub(super) timeline_file: Option<File>,
}

/// Who waits for a response of the agent. Clients by their numbers: one that has gone gets nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiting {
    /// The create verb of the first container, or the client of another one.
    Create,
    /// A start verb.
    Start(u64),
    /// The client of an exec.
    Exec(ProcessId),
    /// A pause verb.
    Pause(u64),
    /// A resume verb.
    Resume(u64),
    /// Any other verb.
    Client(u64),
    /// A verb that has a container removed: it is answered whether or not there still is one.
    Remove(u64),
    /// Somebody who has connected to localhost, by the port of the stream.
    Forward(Port),
    /// This process, to set the guest's clock: at once, or gently.
    Time { step: bool },
    /// Nobody: a signal or a size was passed on.
    Nobody,
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Machine,
    Agent,
    Sync,
    Signals,
    Clock,
    Clients,
    Forwards,
    Pins,
}

impl Token {
    fn of(number: u64) -> Option<Token> {
        use Token::{Agent, Clients, Clock, Forwards, Machine, Pins, Signals, Sync};
        [
            Machine, Agent, Sync, Signals, Clock, Clients, Forwards, Pins,
        ]
        .into_iter()
        .find(|token| *token as u64 == number)
    }
}

/// The state of the loop.
pub(super) struct Life {
    pub(super) epoll: Epoll,
    pub(super) parts: Parts,
    agent_interest: EpollFlags,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    /// By the request's id: the container that it is about, and who waits.
    pub(super) waiting: HashMap<u64, (ContainerId, Waiting)>,
    /// The last number that a container was given.
    pub(super) last: ContainerId,
    /// The agent has said that it is there.
    pub(super) up: bool,
    /// The vCPUs do not run.
    stopped: bool,
}

impl Life {
    /// Sets up the loop of a machine that is made for `first`.
    pub(super) fn new(parts: Parts, first: Container, sync: &SyncSocket) -> Result<Life, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("create an epoll")?;
        let watched: [(BorrowedFd<'_>, Token); 6] = [
            (parts.machine.epoll_fd(), Token::Machine),
            (parts.agent.as_fd(), Token::Agent),
            (sync.as_fd(), Token::Sync),
            (parts.signals.as_fd(), Token::Signals),
            (parts.clock.as_fd(), Token::Clock),
            (parts.clients.as_fd(), Token::Clients),
        ];
        for (fd, token) in watched {
            watch(&epoll, fd, token).doing("watch a descriptor")?;
        }
        if let Some(fd) = parts.forwards.fd() {
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            let event = EpollEvent::new(interest, Token::Forwards as u64);
            epoll.add(fd, event).doing("watch localhost")?;
        }
        if let Pins::Watched(pins) = &parts.pins {
            watch(&epoll, pins.as_fd(), Token::Pins).doing("watch the pins")?;
        }
        Ok(Life {
            epoll,
            parts,
            agent_interest: EpollFlags::EPOLLIN,
            containers: BTreeMap::from([(FIRST, first)]),
            waiting: HashMap::new(),
            last: FIRST,
            up: false,
            stopped: false,
        })
    }

    /// Lives until the first container has ended and its output is delivered; how it ended.
    pub(super) fn live(mut self, sync: SyncSocket) -> Exit {
        let mut sync = Some(sync);
        loop {
            let first = self.containers.get(&FIRST);
            if let Some((first, exit)) = first.and_then(|first| Some((first, first.is_over()?))) {
                first.end(exit);
                return exit;
            }
            self.bury();
            if self.end_pod() {
                continue;
            }
            if let Err(e) = self.turn(&mut sync) {
                self.lost(&format!("the machine process failed: {e}"), sync.as_ref());
                return Exit::Code(MACHINE_LOST);
            }
        }
    }

    /// One wait and what it brings.
    pub(super) fn turn(&mut self, sync: &mut Option<SyncSocket>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        for event in &events[..count] {
            match Token::of(event.data()) {
                Some(Token::Machine) => self.machine_events(sync.as_ref())?,
                Some(Token::Agent) => self.agent_event(event.events(), sync.as_ref())?,
                Some(Token::Sync) => self.commit(sync)?,
                Some(Token::Signals) => self.pass_signals()?,
                Some(Token::Clock) => self.clock_event()?,
                Some(Token::Clients) => self.client_events()?,
                Some(Token::Forwards) => self.forward()?,
                Some(Token::Pins) => self.unpinned()?,
                None => {}
            }
        }
        self.watch_agent()?;
        self.stop_or_go();
        Ok(())
    }

    /// The vCPUs of a machine whose containers are all paused run only as long as the agent has something to do.
    fn stop_or_go(&mut self) {
        let at_rest = self.waiting.is_empty() && !self.parts.agent.wants_to_write();
        if at_rest && self.containers.values().all(Container::is_frozen) {
            if let Err(e) = self.stop() {
                self.parts.log.write(&one_line(&e));
            }
        } else if self.stopped {
            self.parts.machine.resume();
            self.stopped = false;
        }
    }

    fn stop(&mut self) -> Result<(), vmm::Error> {
        if !self.stopped {
            self.parts.machine.pause()?;
            self.stopped = true;
        }
        Ok(())
    }

    /// The verb has put the container on record, or has gone: then nobody wants the container.
    fn commit(&mut self, sync: &mut Option<SyncSocket>) -> io::Result<()> {
        let Some(socket) = sync.take() else {
            return Ok(());
        };
        self.epoll.delete(&socket)?;
        match socket.receive()? {
            Some(ToMachine::Commit) => Ok(()),
            _ => sys::exit_now(1),
        }
    }

    pub(super) fn machine_events(&mut self, sync: Option<&SyncSocket>) -> io::Result<()> {
        let events = self.parts.machine.handle_events();
        for event in events.map_err(io::Error::other)? {
            match event {
                Event::StreamClosed(port) => self.stream_closed(port)?,
                Event::Ended(ended) => self.lost(&obituary(&ended), sync),
                Event::Fault { device, fault } => {
                    let text = format!("device {device}: {}", one_line(&fault));
                    self.parts.log.write(&text);
                }
            }
        }
        Ok(())
    }

    /// Tells those who stand for containers that are over, and forgets these.
    fn bury(&mut self) {
        let further = self.containers.range(FIRST + 1..);
        let over = further.filter_map(|(id, container)| Some((*id, container.is_over()?)));
        for (id, exit) in over.collect::<Vec<_>>() {
            let Some(mut container) = self.containers.remove(&id) else {
                continue;
            };
            self.abandon(&container.give_streams_up());
            if let Some(client) = container.client {
                if container.short {
                    self.parts.clients.tell(client, &ControlReply::OutOfMemory);
                }
                let reply = ControlReply::Exited(exit);
                self.parts.clients.reply(client, &reply);
            }
        }
    }

    fn stream_closed(&mut self, port: Port) -> io::Result<()> {
        let mut finished = None;
        for container in self.containers.values_mut() {
            container.stream_closed(port);
            finished = finished.or_else(|| container.execs.stream_closed(port));
        }
        self.exec_finished(finished);
        self.forwarded(port)
    }

    /// The machine has ended before its containers.
    fn lost(&mut self, reason: &str, sync: Option<&SyncSocket>) {
        let first = self.containers.get(&FIRST).map(|first| first.phase);
        if let (Some(sync), Some(Phase::Waiting | Phase::Preparing)) = (sync, first) {
            give_up(sync, reason.to_owned());
        }
        let containers: Vec<ContainerId> = self.containers.keys().copied().collect();
        for container in containers {
            self.drain(container, Exit::Code(MACHINE_LOST), Some(reason));
            // The guest speaks no more: what has not arrived by now never will.
            self.answer_all(container, &ControlReply::NotRunning);
        }
    }

    fn agent_event(&mut self, flags: EpollFlags, sync: Option<&SyncSocket>) -> io::Result<()> {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.parts.agent.flush()?;
        }
        if !flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return Ok(());
        }
        match self.parts.agent.receive() {
            Ok(messages) => {
                for message in messages {
                    self.message(message, sync)?;
                }
            }
            Err(e) => {
                self.epoll.delete(&self.parts.agent)?;
                self.agent_interest = EpollFlags::empty();
                let containers: Vec<ContainerId> = self.containers.keys().copied().collect();
                for container in containers {
                    self.answer_all(container, &ControlReply::NotRunning);
                }
                // The agent is the guest's pid 1: when it goes the guest goes with it, and the machine will say how. A
                // guest that stays nevertheless is one that has to be killed.
                if !is_gone(&e) {
                    self.lost(&format!("the guest's agent is out of order: {e}"), sync);
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message, sync: Option<&SyncSocket>) -> io::Result<()> {
        match message {
            Message::Hello {
                version,
                agent_started,
                sent,
            } if !self.up => {
                if version == protocol::VERSION {
                    self.hello(agent_started, sent)?;
                } else {
                    let text = format!("the guest's agent speaks protocol version {version}");
                    self.lost(&text, sync);
                }
            }
            Message::Response { id, result } => self.response(id, result, sync)?,
            Message::Exited {
                container,
                process,
                exit,
            } => self.exited(container, process, exit),
            Message::OutOfMemory(id) if self.lives(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.out_of_memory();
                }
                self.parts.clients.out_of_memory(id);
            }
            Message::Ready(id) if self.lives(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.ready = true;
                }
                let clients = &mut self.parts.clients;
                clients.answer_expecting(id, &ControlReply::Done);
            }
            // Out of turn: a guest that talks nonsense is not listened to.
            Message::Hello { .. } => self.parts.log.write("the guest's agent says hello again"),
            // Their container has ended meanwhile.
            Message::OutOfMemory(_) | Message::Ready(_) => {}
        }
        Ok(())
    }

    pub(super) fn lives(&self, id: ContainerId) -> bool {
        self.containers.get(&id).is_some_and(Container::lives)
    }

    /// The agent is there, and is asked for what waits for it.
    fn hello(&mut self, agent_started: u64, sent: u64) -> io::Result<()> {
        self.up = true;
        let hello = now();
        self.parts.timeline.first_run = self.parts.machine.first_run().unwrap_or(hello);
        self.parts.timeline.hello = hello;
        self.parts.timeline.agent = placed(hello, sent, agent_started);
        self.set_time(sent, true)?;
        let mut asked = Vec::new();
        for (id, container) in &mut self.containers {
            if let Some(create) = container.create.take() {
                container.phase = Phase::Preparing;
                asked.push((*id, create));
            }
        }
        for (id, create) in asked {
            self.request(id, RequestBody::Create(create), Waiting::Create)?;
        }
        Ok(())
    }

    fn exited(&mut self, id: ContainerId, process: ProcessId, exit: Exit) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if process != INIT {
            let finished = container.execs.exited(process, exit);
            self.exec_finished(finished);
        } else if container.lives() {
            self.drain(id, exit, None);
            self.answer_all(id, &ControlReply::NotRunning);
        }
    }

    fn response(
        &mut self,
        id: u64,
        result: Result<Reply, Failure>,
        sync: Option<&SyncSocket>,
    ) -> io::Result<()> {
        let Some((id, waiting)) = self.waiting.remove(&id) else {
            return Ok(());
        };
        match waiting {
            Waiting::Create if id != FIRST => return self.created(id, result),
            Waiting::Remove(client) => {
                self.removed(id, client, result);
                return Ok(());
            }
            _ => {}
        }
        let Some(container) = self.containers.get_mut(&id) else {
            return Ok(());
        };
        match (waiting, result) {
            (Waiting::Create, Ok(_)) => {
                if let (Some(sync), Phase::Preparing) = (sync, container.phase) {
                    self.parts.timeline.prepared = now();
                    container.phase = Phase::Created;
                    sync.send(&FromMachine::Created)?;
                    self.forward()?;
                }
            }
            (Waiting::Create, Err(failure)) => {
                if let Some(sync) = sync {
                    give_up(sync, start_failure(&failure));
                }
            }
            (Waiting::Start(client), Ok(reply)) => {
                self.started(id, &reply);
                self.parts.clients.reply(client, &ControlReply::Done);
                self.send_size(id)?;
                if id == FIRST {
                    // The guest has its own copies, and nobody waits any more.
                    sys::release(guest::KERNEL);
                    sys::release(guest::INITRAMFS);
                }
            }
            (Waiting::Start(client), Err(failure)) => {
                let reply = ControlReply::Failed(start_failure(&failure));
                self.parts.clients.reply(client, &reply);
            }
            (Waiting::Exec(process), Ok(_)) => match container.execs.executed(process) {
                Some(Executed::Tell(client)) => {
                    self.parts.clients.tell(client, &ControlReply::Executed);
                }
                Some(Executed::Kill) => self.kill(id, process, libc::SIGKILL)?,
                None => {}
            },
            (Waiting::Exec(process), Err(failure)) => {
                let process = Target {
                    container: id,
                    process,
                };
                self.exec_failed(process, &exec_failure(&failure));
            }
            (Waiting::Pause(client), Ok(_)) => self.paused(id, client)?,
            (Waiting::Resume(client), Ok(_)) => {
                let reply = match container.resume() {
                    Ok(()) => ControlReply::Done,
                    Err(e) => ControlReply::Failed(format!("cannot write the journal: {e}")),
                };
                self.parts.clients.reply(client, &reply);
            }
            (Waiting::Time { step }, Ok(Reply::Time(monotonic))) => {
                self.set_time(monotonic, step)?;
            }
            (Waiting::Client(client), Ok(reply)) => {
                self.parts.clients.reply(client, &answer(reply));
            }
            (
                Waiting::Pause(client) | Waiting::Resume(client) | Waiting::Client(client),
                Err(failure),
            ) => self.parts.clients.reply(client, &failed(&failure)),
            (Waiting::Forward(port), Err(_)) => self.refused(port),
            (
                Waiting::Remove(_) | Waiting::Forward(_) | Waiting::Time { .. } | Waiting::Nobody,
                _,
            ) => {}
        }
        Ok(())
    }

    /// The container's cgroup is frozen: it is paused, once the vCPUs stand still where nothing else needs them.
    fn paused(&mut self, id: ContainerId, client: u64) -> io::Result<()> {
        let Some(container) = self.containers.get_mut(&id) else {
            return Ok(());
        };
        let recorded = container.pause();
        self.note("record the pause", recorded);
        let stopped = if self.containers.values().all(Container::is_frozen) {
            self.stop()
        } else {
            Ok(())
        };
        let reply = match stopped {
            Ok(()) => ControlReply::Done,
            Err(e) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    let recorded = container.resume();
                    self.note("take the pause back", recorded);
                }
                self.request(id, RequestBody::Resume, Waiting::Nobody)?;
                ControlReply::Failed(one_line(&e))
            }
        };
        self.parts.clients.reply(client, &reply);
        Ok(())
    }

    /// The container's program runs.
    fn started(&mut self, id: ContainerId, reply: &Reply) {
        let container = self.containers.get_mut(&id);
        let Some(container) = container.filter(|c| c.phase == Phase::Created) else {
            return;
        };
        let recorded = container.run();
        self.note("record the start", recorded);
        let Reply::Started { executed, sent } = reply else {
            return;
        };
        self.parts.timeline.executed = placed(now(), *sent, *executed);
        if let Some(file) = self.parts.timeline_file.take() {
            // The container runs whether or not the caller's file takes the timeline.
            let _ = self.parts.timeline.write(&file);
        }
    }

    pub(super) fn drain(&mut self, id: ContainerId, exit: Exit, reason: Option<&str>) {
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        if matches!(container.phase, Phase::Draining(_)) {
            return;
        }
        let recorded = container.drain(exit, reason.map(str::to_owned));
        self.note("record the end", recorded);
        let clients = &mut self.parts.clients;
        clients.answer_expecting(id, &ControlReply::NotRunning);
        if id == FIRST {
            self.parts.forwards.close();
        }
    }

    /// Logs what could not be done and has to go on without: on a full disk a record is lost, the container is not, as
    /// readers fall back on the process.
    fn note(&mut self, what: &str, result: io::Result<()>) {
        if let Err(e) = result {
            self.parts.log.write(&format!("cannot {what}: {e}"));
        }
    }

    /// Signals to this process are for the first container's init; that its terminal has another size is for the
    /// guest's terminal.
    fn pass_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.parts.signals.read_signal()? {
            let first = self.containers.get(&FIRST);
            match i32::try_from(info.ssi_signo) {
                Ok(libc::SIGWINCH) if first.is_some_and(Container::has_terminal) => {
                    self.send_size(FIRST)?;
                }
                Ok(signal) if self.lives(FIRST) => self.kill(FIRST, INIT, signal)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn kill(
        &mut self,
        container: ContainerId,
        process: ProcessId,
        signal: i32,
    ) -> io::Result<()> {
        let kill = RequestBody::Kill {
            process,
            signal,
            all: false,
        };
        self.request(container, kill, Waiting::Nobody).map(drop)
    }

    /// Gives the guest's terminal the size of the host's, if that has one.
    fn send_size(&mut self, id: ContainerId) -> io::Result<()> {
        let container = self.containers.get(&id);
        let Some(size) = container.and_then(Container::terminal_size) else {
            return Ok(());
        };
        let resize = RequestBody::Resize {
            process: INIT,
            size,
        };
        self.request(id, resize, Waiting::Nobody).map(drop)
    }

    /// Whether the agent will be asked.
    pub(super) fn request(
        &mut self,
        id: ContainerId,
        body: RequestBody,
        waiting: Waiting,
    ) -> io::Result<bool> {
        if let RequestBody::Kill {
            process: INIT,
            signal: libc::SIGKILL,
            ..
        } = body
            && let Some(container) = self.containers.get_mut(&id)
        {
            container.dying = true;
        }
        if self.waiting.len() >= REQUESTS_MAX {
            return Ok(false);
        }
        match self.parts.agent.request(id, body) {
            Ok(request) => drop(self.waiting.insert(request, (id, waiting))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_gone(&e) => return Ok(false),
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Answers all that wait for a container.
    fn answer_all(&mut self, id: ContainerId, reply: &ControlReply) {
        let ends = |(container, waiting): &(ContainerId, Waiting)| {
            *container == id && !matches!(waiting, Waiting::Remove(_))
        };
        let waiting = self.waiting.extract_if(|_, waiting| ends(waiting));
        let waiting: Vec<Waiting> = waiting.map(|(_, (_, waiting))| waiting).collect();
        for waiting in waiting {
            match waiting {
                Waiting::Start(client)
                | Waiting::Pause(client)
                | Waiting::Resume(client)
                | Waiting::Client(client) => self.parts.clients.reply(client, reply),
                Waiting::Exec(process) => {
                    let process = Target {
                        container: id,
                        process,
                    };
                    self.exec_failed(process, reply);
                }
                Waiting::Forward(port) => self.refused(port),
                Waiting::Create | Waiting::Remove(_) | Waiting::Time { .. } | Waiting::Nobody => {}
            }
        }
    }

    /// Watches the channel to the agent for room exactly while something waits for it.
    fn watch_agent(&mut self) -> io::Result<()> {
        let mut interest = EpollFlags::EPOLLIN;
        if self.parts.agent.wants_to_write() {
            interest |= EpollFlags::EPOLLOUT;
        }
        if !self.agent_interest.is_empty() && interest != self.agent_interest {
            let mut event = EpollEvent::new(interest, Token::Agent as u64);
            self.epoll.modify(&self.parts.agent, &mut event)?;
            self.agent_interest = interest;
        }
        Ok(())
    }
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token as u64))?)
}

/// Whether an error says that the other end of the channel has been closed.
fn is_gone(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Why the guest ended, with its last words.
fn obituary(ended: &Ended) -> String {
    if ended.last_words.is_empty() {
        format!("the virtual machine ended: {}", ended.reason)
    } else {
        format!(
            "the virtual machine ended: {}; its last words:\n{}",
            ended.reason, ended.last_words
        )
    }
}
