//! A container of the machine, as the machine process knows it.
//!
//! ```text
//!  Waiting ──the agent is there──> Preparing ──Created──> Created ──Start──> Running
//!     │                               │                      │                  │
//!     │ the guest ends                │ failure              └──────Exited──────┤ or the guest ends
//!     v                               v                                         v
//!    who asked for it is told, there is no container                         Draining ──output delivered──> over
//! ```
//! The first container is asked for before the machine runs, and by its sync socket; the others by their clients, for
//! whom there is an agent already.
//!
//! Invariants: what the guest sends moves the phase along these arrows only; once Draining, nothing but the readers of
//! the container's output decides when it is over.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::sys::stat::{Mode, SFlag, mknodat};
use protocol::{Create, Exit, Extra, INIT, ProcessId, TerminalSize};
use rustix::termios::tcgetwinsize;
use vmm::vsock::Port;

use super::execs::Execs;
use super::shortage::Limit;
use crate::state::{Entry, Journal};

/// The file in the bundle that says that the guest's kernel has killed because memory ran out, as conmon makes it.
const OOM_FILE: &str = "oom";

/// Where the container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Preparing,
    Created,
    Running,
    Draining(Exit),
}

/// The files of the host that a container has to do with.
pub(super) struct Files {
    pub(super) journal: Journal,
    /// The bundle's directory, as the root of a mount of its own. A process that was in its jail before there was the
    /// container has no use for it.
    pub(super) bundle: Option<OwnedFd>,
    /// The container's terminal on the host, for its size.
    pub(super) terminal: Option<OwnedFd>,
    /// The limit of memory of its cgroup, if it has one.
    pub(super) limit: Option<Limit>,
}

/// A container.
pub(super) struct Container {
    pub(super) phase: Phase,
    /// What the agent is asked to create, until it is.
    pub(super) create: Option<Create>,
    pub(super) execs: Execs,
    /// Its cgroup in the guest is frozen.
    pub(super) paused: bool,
    /// Its init has been sent a SIGKILL, which ends frozen processes, too.
    pub(super) dying: bool,
    /// It has said that it is ready.
    pub(super) ready: bool,
    /// Who stands for its init and is told of its end, if that is not this process itself and has not gone.
    pub(super) client: Option<u64>,
    /// The guest's kernel has killed because memory ran out.
    pub(super) short: bool,
    /// The devices that its network interfaces have, by their indices.
    pub(super) interfaces: BTreeMap<i32, u8>,
    /// Its output streams that have not been delivered to their end.
    output: Vec<Port>,
    /// All streams that end with it.
    ports: Vec<Port>,
    files: Files,
}

impl Container {
    /// A container that waits for the guest's agent.
    pub(super) fn new(create: Create, files: Files) -> Container {
        let extra = create.extra.iter().filter_map(|extra| match *extra {
            Extra::In(_) => None,
            Extra::Out(ports) | Extra::Both(ports) => Some(ports),
        });
        let output = [create.stdio.stdout, create.stdio.stderr];
        let output = output.into_iter().flatten().chain(extra);
        let output: Vec<Port> = output.map(|ports| ports.host).collect();
        let input = create.extra.iter().filter_map(|extra| match *extra {
            Extra::In(ports) => Some(ports),
            Extra::Out(_) | Extra::Both(_) => None,
        });
        let input = input.chain(create.stdio.stdin).map(|ports| ports.host);
        Container {
            phase: Phase::Waiting,
            ports: input.chain(output.iter().copied()).collect(),
            output,
            create: Some(create),
            execs: Execs::new(),
            paused: false,
            dying: false,
            ready: false,
            client: None,
            short: false,
            interfaces: BTreeMap::new(),
            files,
        }
    }

    /// Whether it has an init that has not ended.
    pub(super) fn lives(&self) -> bool {
        matches!(self.phase, Phase::Created | Phase::Running)
    }

    /// Whether nothing of it needs a vCPU.
    pub(super) fn is_frozen(&self) -> bool {
        self.paused && self.lives() && !self.dying
    }

    /// How it ended, when nothing more comes of it.
    pub(super) fn is_over(&self) -> Option<Exit> {
        match self.phase {
            Phase::Draining(exit) if self.output.is_empty() => Some(exit),
            _ => None,
        }
    }

    /// Notes that a stream has been delivered to its end, if it is one of its output.
    pub(super) fn stream_closed(&mut self, port: Port) {
        self.output.retain(|open| *open != port);
    }

    /// Who stands for one of its processes has gone; whether that is to be killed.
    pub(super) fn client_gone(&mut self, process: ProcessId) -> bool {
        match process {
            INIT => {
                self.client = None;
                true
            }
            process => self.execs.client_gone(process),
        }
    }

    /// Its streams, of which nothing more is expected.
    pub(super) fn give_streams_up(&mut self) -> Vec<Port> {
        self.output.clear();
        std::mem::take(&mut self.ports)
    }

    /// Notes how it has ended; `reason` says why, where that was not its program's doing.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub(super) fn drain(&mut self, exit: Exit, reason: Option<String>) -> std::io::Result<()> {
        self.phase = Phase::Draining(exit);
        // An agent that comes now is not asked for it any more.
        self.create = None;
        self.files.journal.append(&Entry::Exited { exit, reason })
    }

    /// Notes that its program runs.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub(super) fn run(&mut self) -> std::io::Result<()> {
        self.phase = Phase::Running;
        self.files.journal.append(&Entry::Started)
    }

    /// Notes that it is paused.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub(super) fn pause(&mut self) -> std::io::Result<()> {
        self.paused = true;
        self.files.journal.append(&Entry::Paused)
    }

    /// Notes that it is not paused any more.
    ///
    /// # Errors
    /// The journal cannot be written; it still says that the container is paused.
    pub(super) fn resume(&mut self) -> std::io::Result<()> {
        self.paused = false;
        self.files.journal.resume()
    }

    /// Says in the bundle that memory ran out.
    pub(super) fn out_of_memory(&mut self) {
        self.short = true;
        // It says no more the second time; a bundle that cannot be written to says nothing. Nothing is opened: a machine
        // process has no call for that in its event loop.
        let mode = Mode::from_bits_truncate(0o644);
        if let Some(bundle) = &self.files.bundle {
            let _ = mknodat(bundle, OOM_FILE, SFlag::S_IFREG, mode, 0);
        }
    }

    /// The last thing that is done for it: where memory ran out, it does on the host.
    pub(super) fn end(&self, exit: Exit) {
        if let Some(limit) = self.files.limit.as_ref().filter(|_| self.short) {
            limit.meet(exit);
        }
    }

    /// Whether it has a terminal.
    pub(super) fn has_terminal(&self) -> bool {
        self.files.terminal.is_some()
    }

    /// The size of the host's terminal, if its program runs on one that has a size.
    pub(super) fn terminal_size(&self) -> Option<TerminalSize> {
        // A terminal that is gone has no size; the stream from it says so.
        let size = tcgetwinsize(self.files.terminal.as_ref()?).ok()?;
        let running = self.phase == Phase::Running;
        (running && (size.ws_row, size.ws_col) != (0, 0)).then_some(TerminalSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_has_ended_before_the_agent_came_is_never_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = File::open(dir.path()).unwrap();
        let files = Files {
            journal: Journal::create(state_dir.as_fd()).unwrap(),
            bundle: Some(state_dir.into()),
            terminal: None,
            limit: None,
        };
        let create = Create {
            cgroup: "c".into(),
            own_pids: true,
            joins: Vec::new(),
            terminal: false,
            plain_newlines: false,
            notify: false,
            stdio: protocol::Stdio::default(),
            extra: Vec::new(),
            setup: Vec::new(),
            policy: Vec::new(),
        };
        let mut container = Container::new(create, files);
        assert!(container.create.is_some());
        container.drain(Exit::Code(255), None).unwrap();
        assert_eq!(container.create, None);
        assert_eq!(container.is_over(), Some(Exit::Code(255)));
    }
}
