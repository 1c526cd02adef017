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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::Mode;
use protocol::{
    Create, Exit, Extra, FIRST, Failure, INIT, Message, ProcessId, Reply, RequestBody, TerminalSize,
};
use rustix::termios::tcgetwinsize;
use vmm::vsock::Port;
use vmm::{Ended, Event, Machine};

use super::agent::Agent;
use super::clients::Clients;
use super::control::ControlReply;
use super::execs::{Execs, Executed};
use super::journal::{Entry, Journal};
use super::process::{MACHINE_LOST, give_up};
use super::requests::{answer, exec_failure, failed, start_failure};
use super::sync::{FromMachine, SyncSocket, ToMachine};
use super::timeline::{Timeline, now, placed};
use super::{Doing, Error, sys};
use crate::guest;

/// Most requests that the agent has not answered.
const REQUESTS_MAX: usize = 1024;

/// The file in the bundle that says that the guest's kernel has killed for want of memory, as conmon makes it.
const OOM_FILE: &str = "oom";

/// What the life is made of.
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) agent: Agent,
    pub(super) signals: SignalFd,
    pub(super) clients: Clients,
    pub(super) journal: Journal,
    pub(super) create: Create,
    pub(super) timeline: Timeline,
    pub(super) timeline_file: Option<File>,
    /// The container's terminal on the host, for its size.
    pub(super) terminal: Option<OwnedFd>,
    /// The bundle's directory.
    pub(super) bundle: OwnedFd,
}

/// Where the container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Booting,
    Preparing,
    Created,
    Running,
    Draining(Exit),
}

/// Who waits for a response of the agent. Clients by their numbers: one that has gone gets nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiting {
    /// The create verb.
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
    Clients,
}

impl Token {
    fn of(number: u64) -> Option<Token> {
        use Token::{Agent, Clients, Machine, Signals, Sync};
        [Machine, Agent, Sync, Signals, Clients]
            .into_iter()
            .find(|token| *token as u64 == number)
    }
}

/// The state of the loop.
pub(super) struct Life {
    epoll: Epoll,
    pub(super) parts: Parts,
    agent_interest: EpollFlags,
    pub(super) execs: Execs,
    pub(super) waiting: HashMap<u64, Waiting>,
    pub(super) phase: Phase,
    /// The container's cgroup in the guest is frozen.
    pub(super) paused: bool,
    /// Init has been sent a SIGKILL, which ends frozen processes, too.
    dying: bool,
    /// The vCPUs do not run.
    stopped: bool,
    /// The container has said that it is ready.
    pub(super) ready: bool,
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
            (parts.clients.as_fd(), Token::Clients),
        ];
        for (fd, token) in watched {
            watch(&epoll, fd, token).doing("watch a descriptor")?;
        }
        let stdio = parts.create.stdio;
        let beside = parts.create.extra.iter().filter_map(|extra| match *extra {
            Extra::In(_) => None,
            Extra::Out(ports) | Extra::Both(ports) => Some(ports),
        });
        let output = [stdio.stdout, stdio.stderr].into_iter().flatten();
        let output = output.chain(beside).map(|ports| ports.host).collect();
        Ok(Life {
            epoll,
            parts,
            agent_interest: EpollFlags::EPOLLIN,
            execs: Execs::new(),
            waiting: HashMap::new(),
            phase: Phase::Booting,
            paused: false,
            dying: false,
            stopped: false,
            ready: false,
            output,
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
                Some(Token::Machine) => self.machine_events(sync.as_ref())?,
                Some(Token::Agent) => self.agent_event(event.events(), sync.as_ref())?,
                Some(Token::Sync) => self.commit(sync)?,
                Some(Token::Signals) => self.pass_signals()?,
                Some(Token::Clients) => self.clients_told()?,
                None => {}
            }
        }
        self.watch_agent()?;
        self.stop_or_go()
    }

    /// A paused container's vCPUs run only as long as the agent has something to do.
    fn stop_or_go(&mut self) -> io::Result<()> {
        let at_rest = self.waiting.is_empty() && !self.parts.agent.wants_to_write();
        let lives = matches!(self.phase, Phase::Created | Phase::Running) && !self.dying;
        let stop = self.paused && at_rest && lives;
        if stop && !self.stopped {
            self.parts.machine.pause().map_err(io::Error::other)?;
        } else if self.stopped && !stop {
            self.parts.machine.resume();
        }
        self.stopped = stop;
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

    fn machine_events(&mut self, sync: Option<&SyncSocket>) -> io::Result<()> {
        for event in self
            .parts
            .machine
            .handle_events()
            .map_err(io::Error::other)?
        {
            match event {
                Event::StreamClosed(port) => {
                    self.output.retain(|open| *open != port);
                    let over = self.execs.stream_closed(port);
                    self.exec_over(over);
                }
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
                    container: FIRST,
                    process: INIT,
                    exit,
                },
                Phase::Created | Phase::Running,
            ) => {
                self.drain(exit, None);
                self.answer_all(&ControlReply::NotRunning);
            }
            (Message::Exited { process, exit, .. }, _) if process != INIT => {
                let over = self.execs.exited(process, exit);
                self.exec_over(over);
            }
            (Message::OutOfMemory(FIRST), Phase::Created | Phase::Running) => self.out_of_memory(),
            (Message::Ready(FIRST), Phase::Created | Phase::Running) => {
                self.ready = true;
                self.parts.clients.answer_expecting(&ControlReply::Done);
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
                self.parts.clients.reply(client, &ControlReply::Done);
                self.send_size()?;
                // The guest has its own copies, and nobody waits any more.
                sys::release(guest::KERNEL);
                sys::release(guest::INITRAMFS);
            }
            (Some(Waiting::Start(client)), Err(failure)) => {
                let reply = ControlReply::Failed(start_failure(&failure));
                self.parts.clients.reply(client, &reply);
            }
            (Some(Waiting::Exec(process)), Ok(_)) => match self.execs.executed(process) {
                Some(Executed::Tell(client)) => {
                    self.parts.clients.tell(client, &ControlReply::Executed);
                }
                Some(Executed::Kill) => self.kill(process, libc::SIGKILL)?,
                None => {}
            },
            (Some(Waiting::Exec(process)), Err(failure)) => {
                self.exec_failed(process, &exec_failure(&failure));
            }
            (Some(Waiting::Pause(client)), Ok(_)) => {
                self.paused = true;
                self.journal(&Entry::Paused);
                self.parts.clients.reply(client, &ControlReply::Done);
            }
            (Some(Waiting::Resume(client)), Ok(_)) => {
                self.paused = false;
                let reply = match self.parts.journal.resume() {
                    Ok(()) => ControlReply::Done,
                    Err(e) => ControlReply::Failed(format!("cannot write the journal: {e}")),
                };
                self.parts.clients.reply(client, &reply);
            }
            (Some(Waiting::Client(client)), Ok(reply)) => {
                self.parts.clients.reply(client, &answer(reply));
            }
            (
                Some(Waiting::Pause(client) | Waiting::Resume(client) | Waiting::Client(client)),
                Err(failure),
            ) => self.parts.clients.reply(client, &failed(&failure)),
            (Some(Waiting::Nobody), _) => {}
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
        self.parts
            .clients
            .answer_expecting(&ControlReply::NotRunning);
        self.journal(&Entry::Exited { exit, reason });
    }

    fn journal(&mut self, entry: &Entry) {
        // On a full disk the record is lost, the container is not: readers fall back on the process.
        let _ = self.parts.journal.append(entry);
    }

    /// Signals to this process are for the container's init; that its terminal has another size is for the guest's terminal.
    fn pass_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.parts.signals.read_signal()? {
            match i32::try_from(info.ssi_signo) {
                Ok(libc::SIGWINCH) if self.parts.terminal.is_some() => self.send_size()?,
                Ok(signal) if matches!(self.phase, Phase::Created | Phase::Running) => {
                    self.kill(INIT, signal)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn kill(&mut self, process: ProcessId, signal: i32) -> io::Result<()> {
        let kill = RequestBody::Kill {
            process,
            signal,
            all: false,
        };
        self.request(kill, Waiting::Nobody).map(drop)
    }

    /// Gives the guest's terminal the size of the host's, if that has one.
    fn send_size(&mut self) -> io::Result<()> {
        let Some(terminal) = &self.parts.terminal else {
            return Ok(());
        };
        // A terminal that is gone has no size; the stream from it says so.
        let Ok(size) = tcgetwinsize(terminal) else {
            return Ok(());
        };
        if self.phase != Phase::Running || (size.ws_row, size.ws_col) == (0, 0) {
            return Ok(());
        }
        let resize = RequestBody::Resize {
            process: INIT,
            size: TerminalSize {
                rows: size.ws_row,
                columns: size.ws_col,
            },
        };
        self.request(resize, Waiting::Nobody).map(drop)
    }

    fn out_of_memory(&mut self) {
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // It says no more the second time; a bundle that cannot be written to says nothing.
        let mode = Mode::from_bits_truncate(0o644);
        let _ = openat(&self.parts.bundle, OOM_FILE, flags, mode);
        self.parts.clients.out_of_memory();
    }

    /// Whether the agent will be asked.
    pub(super) fn request(&mut self, body: RequestBody, waiting: Waiting) -> io::Result<bool> {
        if let RequestBody::Kill {
            process: INIT,
            signal: libc::SIGKILL,
            ..
        } = body
        {
            self.dying = true;
        }
        if self.waiting.len() >= REQUESTS_MAX {
            return Ok(false);
        }
        match self.parts.agent.request(body) {
            Ok(id) => drop(self.waiting.insert(id, waiting)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_gone(&e) => return Ok(false),
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn answer_all(&mut self, reply: &ControlReply) {
        let waiting: Vec<Waiting> = self.waiting.drain().map(|(_, waiting)| waiting).collect();
        for waiting in waiting {
            match waiting {
                Waiting::Start(client)
                | Waiting::Pause(client)
                | Waiting::Resume(client)
                | Waiting::Client(client) => self.parts.clients.reply(client, reply),
                Waiting::Exec(process) => self.exec_failed(process, reply),
                Waiting::Create | Waiting::Nobody => {}
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
