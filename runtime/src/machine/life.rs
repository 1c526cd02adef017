//! The machine's life: one event loop until the container has ended.
//!
//! ```text
//!  Booting ──Hello──> Preparing ──Created──> Created ──Start──> Running
//!     │                   │                     │                  │
//!     │ guest ends        │ failure             └──────Exited──────┤ or the guest ends
//!     v                   v                                        v
//!    the verb is told, the process ends                         Draining ──output delivered──> the end
//! ```
//! Invariants: what the guest sends moves the phase along these arrows only; control requests are answered in every phase; once
//! Draining, nothing but the readers of the container's output decides when the process ends. The loop never blocks on anything but
//! epoll_wait, and no table in it grows with what the guest does.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use protocol::{Create, Exit, Failure, FailureKind, INIT, Message, Reply, RequestBody};
use vmm::vsock::Port;
use vmm::{Ended, Event, Machine};

use super::agent::Agent;
use super::control::{Client, Control, ControlReply};
use super::journal::{Entry, Journal};
use super::process::{MACHINE_LOST, give_up};
use super::sync::{FromMachine, SyncSocket, ToMachine};
use super::timeline::{Timeline, now, placed};
use super::{Doing, Error, sys};
use crate::guest;

/// Most control connections at once; more are closed as they come.
const CLIENTS_MAX: usize = 64;

/// Most characters of an error text that are taken from the guest.
const WORDS_MAX: usize = 4096;

/// What the life is made of.
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) agent: Agent,
    pub(super) signals: SignalFd,
    pub(super) listener: UnixListener,
    pub(super) journal: Journal,
    pub(super) create: Create,
    pub(super) timeline: Timeline,
    pub(super) timeline_file: Option<File>,
}

/// Where the container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Booting,
    Preparing,
    Created,
    Running,
    Draining(Exit),
}

/// Who waits for a response of the agent.
enum Waiting {
    /// The create verb.
    Create,
    /// A start verb.
    Start(Client),
    /// A kill verb, or nobody when a signal to the process itself was passed on.
    Kill(Option<Client>),
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Machine,
    Agent,
    Sync,
    Signals,
    Listener,
    Client(u64),
}

impl Token {
    const FIRST_CLIENT: u64 = 5;

    fn number(self) -> u64 {
        match self {
            Token::Machine => 0,
            Token::Agent => 1,
            Token::Sync => 2,
            Token::Signals => 3,
            Token::Listener => 4,
            Token::Client(serial) => Self::FIRST_CLIENT + serial,
        }
    }

    fn of(number: u64) -> Token {
        match number {
            0 => Token::Machine,
            1 => Token::Agent,
            2 => Token::Sync,
            3 => Token::Signals,
            4 => Token::Listener,
            _ => Token::Client(number - Self::FIRST_CLIENT),
        }
    }
}

/// The state of the loop.
pub(super) struct Life {
    epoll: Epoll,
    parts: Parts,
    agent_interest: EpollFlags,
    clients: HashMap<u64, Client>,
    clients_seen: u64,
    waiting: HashMap<u64, Waiting>,
    phase: Phase,
    /// The container's output streams that have not been delivered to their end.
    output: Vec<Port>,
}

impl Life {
    /// Sets up the loop.
    pub(super) fn new(parts: Parts, sync: &SyncSocket) -> Result<Life, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("create an epoll")?;
        let watched: [(BorrowedFd<'_>, Token); 5] = [
            (parts.machine.epoll_fd(), Token::Machine),
            (parts.agent.as_fd(), Token::Agent),
            (sync.as_fd(), Token::Sync),
            (parts.signals.as_fd(), Token::Signals),
            (parts.listener.as_fd(), Token::Listener),
        ];
        for (fd, token) in watched {
            watch(&epoll, fd, token).doing("watch a descriptor")?;
        }
        let stdio = parts.create.stdio;
        Ok(Life {
            epoll,
            parts,
            agent_interest: EpollFlags::EPOLLIN,
            clients: HashMap::new(),
            clients_seen: 0,
            waiting: HashMap::new(),
            phase: Phase::Booting,
            output: [stdio.stdout, stdio.stderr].into_iter().flatten().collect(),
        })
    }

    /// Lives until the container has ended and its output is delivered; how it ended.
    pub(super) fn live(mut self, sync: SyncSocket) -> Exit {
        let mut sync = Some(sync);
        loop {
            if let Phase::Draining(exit) = self.phase
                && self.output.is_empty()
            {
                return exit;
            }
            if let Err(e) = self.turn(&mut sync) {
                self.lost(&format!("the machine process failed: {e}"), sync.as_ref());
                return Exit::Code(MACHINE_LOST);
            }
        }
    }

    /// One wait and what it brings.
    fn turn(&mut self, sync: &mut Option<SyncSocket>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        for event in &events[..count] {
            match Token::of(event.data()) {
                Token::Machine => self.machine_events(sync.as_ref())?,
                Token::Agent => self.agent_event(event.events(), sync.as_ref())?,
                Token::Sync => self.commit(sync)?,
                Token::Signals => self.pass_signals()?,
                Token::Listener => self.accept(),
                Token::Client(serial) => self.client_request(serial),
            }
        }
        self.watch_agent()
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

    fn machine_events(&mut self, sync: Option<&SyncSocket>) -> io::Result<()> {
        for event in self
            .parts
            .machine
            .handle_events()
            .map_err(io::Error::other)?
        {
            match event {
                Event::StreamClosed(port) => self.output.retain(|open| *open != port),
                Event::Ended(ended) => self.lost(&obituary(&ended), sync),
            }
        }
        Ok(())
    }

    /// The machine has ended before its container.
    fn lost(&mut self, reason: &str, sync: Option<&SyncSocket>) {
        if let (Some(sync), Phase::Booting | Phase::Preparing) = (sync, self.phase) {
            give_up(sync, reason.to_owned());
        }
        if !matches!(self.phase, Phase::Draining(_)) {
            self.drain(Exit::Code(MACHINE_LOST), Some(reason.to_owned()));
        }
        // The guest speaks no more: what has not arrived by now never will.
        self.answer_all(&ControlReply::NotRunning);
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
                self.answer_all(&ControlReply::NotRunning);
                // The agent is the guest's pid 1: when it goes the guest goes with it, and the machine will say how. A guest that
                // stays nevertheless is one that has to be killed.
                if !is_gone(&e) {
                    self.lost(&format!("the guest's agent is out of order: {e}"), sync);
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message, sync: Option<&SyncSocket>) -> io::Result<()> {
        match (message, self.phase) {
            (
                Message::Hello {
                    version,
                    agent_started,
                    sent,
                },
                Phase::Booting,
            ) => {
                if version != protocol::VERSION {
                    let text = format!("the guest's agent speaks protocol version {version}");
                    self.lost(&text, sync);
                    return Ok(());
                }
                let hello = now();
                self.parts.timeline.first_run = self.parts.machine.first_run().unwrap_or(hello);
                self.parts.timeline.hello = hello;
                self.parts.timeline.agent = placed(hello, sent, agent_started);
                self.request(
                    RequestBody::Create(self.parts.create.clone()),
                    Waiting::Create,
                )?;
                self.phase = Phase::Preparing;
            }
            (Message::Response { id, result }, _) => self.response(id, result, sync)?,
            (
                Message::Exited {
                    process: INIT,
                    exit,
                },
                Phase::Created | Phase::Running,
            ) => {
                self.drain(exit, None);
                self.answer_all(&ControlReply::NotRunning);
            }
            // Anything else is out of turn; a guest that talks nonsense is not listened to.
            _ => {}
        }
        Ok(())
    }

    fn response(
        &mut self,
        id: u64,
        result: Result<Reply, Failure>,
        sync: Option<&SyncSocket>,
    ) -> io::Result<()> {
        match (self.waiting.remove(&id), result) {
            (None, _) => {}
            (Some(Waiting::Create), Ok(_)) => {
                if let (Some(sync), Phase::Preparing) = (sync, self.phase) {
                    self.parts.timeline.prepared = now();
                    self.phase = Phase::Created;
                    sync.send(&FromMachine::Created)?;
                }
            }
            (Some(Waiting::Create), Err(failure)) => {
                if let Some(sync) = sync {
                    give_up(sync, start_failure(&failure));
                }
            }
            (Some(Waiting::Start(client)), Ok(reply)) => {
                self.started(&reply);
                client.reply(&ControlReply::Done);
                // The guest has its own copies, and nobody waits any more.
                sys::release(guest::KERNEL);
                sys::release(guest::INITRAMFS);
            }
            (Some(Waiting::Start(client)), Err(failure)) => {
                client.reply(&ControlReply::Failed(start_failure(&failure)));
            }
            (Some(Waiting::Kill(client)), result) => {
                let reply = match result {
                    Ok(_) => ControlReply::Done,
                    Err(failure) if failure.kind == FailureKind::NotRunning => {
                        ControlReply::NotRunning
                    }
                    Err(failure) => ControlReply::Failed(words(&failure)),
                };
                if let Some(client) = client {
                    client.reply(&reply);
                }
            }
        }
        Ok(())
    }

    /// The container's program runs.
    fn started(&mut self, reply: &Reply) {
        if self.phase != Phase::Created {
            return;
        }
        self.phase = Phase::Running;
        self.journal(&Entry::Started);
        let Reply::Started { executed, sent } = reply else {
            return;
        };
        self.parts.timeline.executed = placed(now(), *sent, *executed);
        if let Some(file) = self.parts.timeline_file.take() {
            // The container runs whether or not the caller's file takes the timeline.
            let _ = self.parts.timeline.write(&file);
        }
    }

    fn drain(&mut self, exit: Exit, reason: Option<String>) {
        self.phase = Phase::Draining(exit);
        self.journal(&Entry::Exited { exit, reason });
    }

    fn journal(&mut self, entry: &Entry) {
        // On a full disk the record is lost, the container is not: readers fall back on the process.
        let _ = self.parts.journal.append(entry);
    }

    /// Signals to this process are for the container's init.
    fn pass_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.parts.signals.read_signal()? {
            if let (Ok(signal), Phase::Created | Phase::Running) =
                (i32::try_from(info.ssi_signo), self.phase)
            {
                let kill = RequestBody::Kill {
                    process: INIT,
                    signal,
                    all: false,
                };
                self.request(kill, Waiting::Kill(None))?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.parts.listener.accept() {
            if self.clients.len() + self.waiting.len() >= CLIENTS_MAX {
                continue;
            }
            let serial = self.clients_seen;
            self.clients_seen += 1;
            let watched = Client::new(stream).and_then(|client| {
                watch(&self.epoll, client.as_fd(), Token::Client(serial))?;
                Ok(client)
            });
            if let Ok(client) = watched {
                self.clients.insert(serial, client);
            }
        }
    }

    fn client_request(&mut self, serial: u64) {
        let Some(client) = self.clients.get_mut(&serial) else {
            return;
        };
        let request = match client.request() {
            Ok(None) => return,
            result => result.ok().flatten(),
        };
        let Some(client) = self.clients.remove(&serial) else {
            return;
        };
        let _ = self.epoll.delete(&client);
        match request {
            Some(request) => self.control(client, request),
            None => drop(client),
        }
    }

    fn control(&mut self, client: Client, request: Control) {
        let running = matches!(self.phase, Phase::Created | Phase::Running);
        let starting = self
            .waiting
            .values()
            .any(|w| matches!(w, Waiting::Start(_)));
        let (body, waiting) = match request {
            Control::Start if self.phase == Phase::Created && !starting => {
                self.parts.timeline.start = now();
                (RequestBody::Start, Waiting::Start(client))
            }
            Control::Start => {
                let text = "cannot start a container that has been started";
                return client.reply(&ControlReply::Failed(text.into()));
            }
            Control::Exec(_)
            | Control::Pause
            | Control::Resume
            | Control::Update(_)
            | Control::Statistics
            | Control::Processes
            | Control::Events => {
                return client.reply(&ControlReply::Failed("not supported yet".into()));
            }
            Control::Kill { .. } if !running => return client.reply(&ControlReply::NotRunning),
            Control::Kill { signal, all } => (
                RequestBody::Kill {
                    process: INIT,
                    signal,
                    all,
                },
                Waiting::Kill(Some(client)),
            ),
        };
        // When the guest takes no more requests the client hears that the connection ended.
        let _ = self.request(body, waiting);
    }

    fn request(&mut self, body: RequestBody, waiting: Waiting) -> io::Result<()> {
        if self.waiting.len() >= CLIENTS_MAX {
            return Ok(());
        }
        match self.parts.agent.request(body) {
            Ok(id) => drop(self.waiting.insert(id, waiting)),
            // Whoever waits hears that there is no answer.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_gone(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn answer_all(&mut self, reply: &ControlReply) {
        for (_, waiting) in self.waiting.drain() {
            if let Waiting::Start(client) | Waiting::Kill(Some(client)) = waiting {
                client.reply(reply);
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
            let mut event = EpollEvent::new(interest, Token::Agent.number());
            self.epoll.modify(&self.parts.agent, &mut event)?;
            self.agent_interest = interest;
        }
        Ok(())
    }
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.number()))?)
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

/// A failure to start, in the words callers of runc look for.
fn start_failure(failure: &Failure) -> String {
    format!("unable to start container process: {}", words(failure))
}

/// The guest's words, fit for somebody's terminal: bounded, without control characters.
fn words(failure: &Failure) -> String {
    let text = failure.to_string();
    text.chars()
        .filter(|c| !c.is_control())
        .take(WORDS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_their_numbers() {
        let fixed = [
            Token::Machine,
            Token::Agent,
            Token::Sync,
            Token::Signals,
            Token::Listener,
        ];
        for token in fixed
            .into_iter()
            .chain([Token::Client(0), Token::Client(77)])
        {
            assert_eq!(Token::of(token.number()), token);
        }
    }

    #[test]
    fn a_guest_speaks_no_terminal_commands() {
        let failure = Failure::message(FailureKind::Other, "\x1b[2Jexec: \u{9b}x\n".repeat(1000));
        let text = start_failure(&failure);
        assert!(text.starts_with("unable to start container process: [2Jexec: x[2J"));
        assert!(text.len() < 2 * WORDS_MAX && !text.contains(char::is_control));
    }
}
