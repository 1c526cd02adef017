//! A machine process without a machine and without a jail: its event loop, its journal and log, its control.sock.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protocol::{Create, Exit, FIRST, Message, Ports, Reply, Requests, Stdio};
use vmm::{EndReason, Ended, Event, Machine};

use super::agent::Agent;
use super::clients::Clients;
use super::clock::Clock;
use super::container::{self, Container, Phase};
use super::forwards::Forwards;
use super::life::{Life, Parts};
use super::log::Log;
use super::pins::Pins;
use super::sync::{FromMachine, SyncSocket, ToMachine};
use super::timeline::Timeline;
use super::tree::Exported;
use crate::cli::LogFormat;
use crate::control;
use crate::report::Report;
use crate::state::Journal;

/// Where the container's output goes.
pub const OUTPUT: Ports = Ports {
    guest: 5001,
    host: 5000,
};

/// The process.
pub struct Process {
    life: Life,
    sync: Option<SyncSocket>,
    /// Where the guest's agent speaks.
    pub guest: UnixStream,
}

/// A tree that nobody asks for anything.
fn exported(directory: &Path) -> io::Result<Exported> {
    let path = |path: &Path| {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(path);
        file.map(OwnedFd::from)
    };
    let server = vmm_fs::Server::new(vmm_fs::Config {
        root: path(directory)?,
        proc_self_fd: path(Path::new("/proc/self/fd"))?,
        open_fd_limit: 8,
        held_fd_limit: 8,
        timeout: Duration::from_secs(1),
        mounts: vmm_fs::Mounts::default(),
        maps: false,
    });
    Ok(Exported {
        server: Arc::new(server.map_err(io::Error::other)?),
        mountinfo: File::open("/proc/self/mountinfo")?,
        privileges: true,
    })
}

impl Process {
    /// A process whose state directory is this empty one. `committed`: an honest guest has prepared the container, and
    /// the verb has put it on record; otherwise the guest has said nothing and there is no verb.
    ///
    /// # Errors
    /// No descriptors left, or the directory cannot be written to.
    pub fn new(directory: &Path, committed: bool) -> io::Result<Process> {
        let other = |e: super::Error| io::Error::other(e);
        let state = File::open(directory)?;
        let report = Report::new(None, LogFormat::Text, false)?;
        let (agent, guest_end) = Agent::new()?;
        let guest = guest_end.source.as_ref().ok_or(io::ErrorKind::Other)?;
        let guest = UnixStream::from(guest.as_fd().try_clone_to_owned()?);
        guest.set_nonblocking(true)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let parts = Parts {
            machine: Machine::without_kvm().map_err(io::Error::other)?,
            exported: exported(directory)?,
            agent,
            signals: SignalFd::with_flags(&SigSet::empty(), flags)?,
            clock: Clock::new()?,
            clients: Clients::new(control::listen(state.as_fd())?)?,
            forwards: Forwards::new(None),
            pins: Pins::None,
            log: Log::create(state.as_fd(), Some(&report))?,
            timeline: Timeline::default(),
            timeline_file: None,
        };
        let create = Create {
            cgroup: "c".into(),
            own_pids: true,
            joins: Vec::new(),
            terminal: false,
            plain_newlines: false,
            notify: true,
            stdio: Stdio {
                stdout: Some(OUTPUT),
                ..Stdio::default()
            },
            extra: Vec::new(),
            setup: Vec::new(),
            policy: Vec::new(),
        };
        let files = container::Files {
            journal: Journal::create(state.as_fd())?,
            bundle: Some(state.into()),
            terminal: None,
            limit: None,
        };
        let (sync, verb) = SyncSocket::pair()?;
        let life = Life::new(parts, Container::new(create, files), &sync).map_err(other)?;
        let mut process = Process {
            life,
            sync: committed.then_some(sync),
            guest,
        };
        if committed {
            process.prepare(&verb)?;
        }
        Ok(process)
    }

    /// What an honest guest and an honest verb do.
    fn prepare(&mut self, verb: &SyncSocket) -> io::Result<()> {
        self.say(&Message::Hello {
            version: protocol::VERSION,
            agent_started: 0,
            sent: 0,
        })?;
        self.turn()?;
        let created = Reply::Created {
            pid: 2,
            started: 0,
            prepared: 0,
        };
        self.say(&Message::Response {
            id: 2, // The first has set the clock.
            result: Ok(created),
        })?;
        self.turn()?;
        let told = verb.receive::<FromMachine>()?;
        assert!(matches!(told, Some(FromMachine::Created)), "{told:?}");
        verb.send(&ToMachine::Commit)?;
        self.turn()?;
        Ok(())
    }

    /// The agent sends a message.
    ///
    /// # Errors
    /// It does not fit into the socket's buffer.
    pub fn say(&self, message: &Message) -> io::Result<()> {
        let frame = protocol::encode(message).map_err(io::Error::other)?;
        (&self.guest).write_all(&frame)
    }

    /// The guest has read, or refused, a stream to its end.
    pub fn close_stream(&mut self, port: u32) {
        self.life.parts.machine.tell(Event::StreamClosed(port));
    }

    /// The guest has ended.
    pub fn end(&mut self, last_words: String) {
        let reason = EndReason::Reset;
        let ended = Ended { reason, last_words };
        self.life.parts.machine.tell(Event::Ended(ended));
    }

    /// The loop runs as long as there is something to do; how the container has ended, if it has.
    ///
    /// # Errors
    /// The machine process would end with this one.
    ///
    /// # Panics
    /// The loop does not come to rest.
    pub fn turn(&mut self) -> io::Result<Option<Exit>> {
        // What the machine has been told to say does not wake anybody.
        self.life.machine_events(self.sync.as_ref())?;
        for _ in 0..10_000 {
            let first = self.life.containers.get(&FIRST);
            if let Some(exit) = first.and_then(Container::is_over) {
                return Ok(Some(exit));
            }
            let fd = PollFd::new(self.life.epoll.0.as_fd(), PollFlags::POLLIN);
            if poll(&mut [fd], PollTimeout::ZERO)? == 0 {
                return Ok(None);
            }
            self.life.turn(&mut self.sync)?;
        }
        panic!("the event loop spins");
    }

    /// How far the container is: from 0, waiting, to 4, draining.
    ///
    /// # Panics
    /// There is no container any more.
    #[must_use]
    pub fn phase(&self) -> u8 {
        match self.life.containers[&FIRST].phase {
            Phase::Waiting => 0,
            Phase::Preparing => 1,
            Phase::Created => 2,
            Phase::Running => 3,
            Phase::Draining(_) => 4,
        }
    }

    /// Requests that the guest has not answered, and containers.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.life.waiting.len(), self.life.containers.len())
    }
}

/// Reads what the agent is asked: the ids of whole requests.
#[derive(Default)]
pub struct Asked(Requests);

impl Asked {
    /// Takes bytes; the requests that are whole by them.
    ///
    /// # Panics
    /// They are none.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<protocol::Request> {
        self.0.push(bytes);
        std::iter::from_fn(|| self.0.take().expect("the machine process sends requests")).collect()
    }
}
