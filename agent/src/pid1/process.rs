//! One process of the container as PID 1 sees it: the init, or one that was executed in addition to it.
//!
//! ```text
//! Preparing ──Prepared, streams connected──> Ready ──release──> Released ──wire ends──> Running
//!     │                                        │                   │                       │
//!     │ Failed, wire ends                      └──────reaped───────┴───────────────────────┤
//!     v                                                                                    v
//!  (failed) Gone <───────────────────streams drained────────────────────────── Draining(exit)
//! ```
//! Invariants: each step is reported once; a failure after the release leaves the end to follow;
//! the end is told only when all that the process wrote has been handed to the vsock. Outputs that
//! other processes still hold then are read on and discarded, so that nobody gets SIGPIPE for it.

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recvmsg, send};
use nix::unistd::pipe2;
use protocol::{Decoder, EXTRA_MAX, Exit, Extra, Failure, FailureKind, Ports, TerminalSize};
use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};

use super::spawn::{Inheritance, SetupFile, spawn_stage};
use super::stream::{Direction, Stream, Turn};
use crate::error::{During, Error, Result};
use crate::sys;
use crate::task::{Report, Task};
use crate::vsock::{STREAM_PATIENCE, dial};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preparing,
    Ready,
    Released,
    Running,
    Draining(Exit),
    Gone,
}

/// A process's state change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is set up and waits for its release.
    Ready,
    /// It executes its program.
    Executed,
    /// It could not be set up, or could not execute its program.
    Failed(Failure),
    /// It has ended, and all that it wrote has been delivered.
    Exited(Exit),
}

/// A process.
pub(crate) struct Process {
    state: State,
    /// To the stage and the process; None when its end has been seen.
    wire: Option<OwnedFd>,
    decoder: Decoder,
    failure: Option<Failure>,
    /// Whether it has reported that it waits for its release.
    prepared: bool,
    pid: Option<i32>,
    /// What became of it.
    exit: Option<Exit>,
    /// The standard streams, then the others.
    streams: Vec<Stream>,
    /// How many of them are standard streams.
    standard: usize,
    /// The terminal's master, for its size.
    terminal: Option<OwnedFd>,
    /// The terminal is not to make CR LF of LF.
    plain_newlines: bool,
    /// Whether something has happened to it since its last turn.
    awake: bool,
}

/// The agent's and the process's end of a standard stream.
struct Ends {
    ours: Option<Stream>,
    theirs: Stdio,
}

impl Process {
    /// Starts a stage process for `task`, with the streams that it is to pass on.
    pub(crate) fn spawn(
        task: &Task,
        setup: &SetupFile,
        stdio: protocol::Stdio,
        extra: &[Extra],
        terminal: bool,
    ) -> Result<Process> {
        if extra.len() > EXTRA_MAX {
            let text = format!("{} descriptors, the maximum is {EXTRA_MAX}", extra.len());
            return Err(Error::Config(text));
        }
        let stderr = stdio.stderr.filter(|_| !terminal);
        let [stdin, stdout, stderr] = [
            ends(stdio.stdin, Direction::ToContainer, terminal)?,
            ends(stdio.stdout, Direction::ToHost, terminal)?,
            ends(stderr, Direction::ToHost, terminal)?,
        ];
        let theirs = [stdin.theirs, stdout.theirs, stderr.theirs];
        let (mut pipes, mut extra_streams) = (Vec::new(), Vec::new());
        for extra in extra {
            let (ports, direction) = match *extra {
                Extra::In(ports) => (ports, Direction::ToContainer),
                Extra::Out(ports) => (ports, Direction::ToHost),
                // The stage's own affair: there is nothing to be pumped.
                Extra::Both(_) => continue,
            };
            let (stream, theirs) = pipe(ports, direction)?;
            extra_streams.push(stream);
            pipes.push(theirs);
        }
        let inheritance = Inheritance {
            stdio: theirs,
            setup: Some(setup),
            others: &pipes,
        };
        let wire = spawn_stage(task, inheritance)?;
        let streams = [stdin.ours, stdout.ours, stderr.ours];
        let mut process = Process::new(wire, streams.into_iter().flatten().collect());
        process.streams.extend(extra_streams);
        Ok(process)
    }

    /// A process whose stage is at the other end of `wire`.
    pub(super) fn new(wire: OwnedFd, streams: Vec<Stream>) -> Process {
        Process {
            state: State::Preparing,
            wire: Some(wire),
            decoder: Decoder::new(),
            failure: None,
            prepared: false,
            pid: None,
            exit: None,
            standard: streams.len(),
            streams,
            terminal: None,
            plain_newlines: false,
            awake: true,
        }
    }

    /// Says whether its terminal, which is still to come, makes CR LF of LF.
    pub(crate) fn set_plain_newlines(&mut self, plain: bool) {
        self.plain_newlines = plain;
    }

    /// The wire, to be watched.
    pub(crate) fn wire(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(AsFd::as_fd)
    }

    /// The streams that are pumped.
    pub(crate) fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// In the guest's root pid namespace; None until the stage has told it.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Whether its end has been told, or why there was no begin.
    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether its end is known, told or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.is_some() || self.is_gone()
    }

    /// Whether it waits for its release.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether it has been released, and perhaps executes its program.
    pub(crate) fn is_released(&self) -> bool {
        matches!(self.state, State::Released | State::Running)
    }

    /// Whether nothing is left of it but outputs that others hold.
    pub(crate) fn lingers(&self) -> bool {
        self.is_gone() && self.streams.iter().any(Stream::is_held)
    }

    /// Whether something has happened to it since its last turn.
    pub(crate) fn is_awake(&self) -> bool {
        self.awake
    }

    /// Reads what the stage and the process report. Returns whether the terminal has come, so that
    /// the streams have to be watched at their new ends.
    pub(crate) fn hear(&mut self) -> Result<bool> {
        let mut terminal_came = false;
        while let Some(wire) = &self.wire {
            self.awake = true;
            let mut piece = [0; 4096];
            let (count, descriptor) = match receive(wire, &mut piece) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // It has died with its release unread: this is not an execve (unix(7)).
                Err(Errno::ECONNRESET) => {
                    self.failure.get_or_insert_with(|| died(self.exit));
                    self.wire = None;
                    break;
                }
                Err(error) => return Err(error).during(|| "read from the stage"),
            };
            if let Some(master) = descriptor {
                match self.take_terminal(master) {
                    Ok(()) => terminal_came = true,
                    Err(error) => {
                        self.failure = Some(error.failure());
                        self.give_up();
                        break;
                    }
                }
            }
            if count == 0 {
                self.wire = None;
                break;
            }
            self.decoder.push(&piece[..count]);
            while let Some(report) = self.decoder.take().map_err(|e| Error::Stream("stage", e))? {
                match report {
                    Report::Child(pid) => self.pid = Some(pid),
                    Report::Prepared => self.prepared = true,
                    Report::Failed(failure) => self.failure = Some(failure),
                    // It was not asked.
                    Report::Answered(_) => {}
                }
            }
        }
        Ok(terminal_came)
    }

    fn take_terminal(&mut self, master: OwnedFd) -> Result<()> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
        if self.plain_newlines {
            let mut attributes = tcgetattr(&master).during(|| "read the terminal's attributes")?;
            attributes.output_modes.remove(OutputModes::ONLCR);
            tcsetattr(&master, OptionalActions::Now, &attributes).during(|| "clear ONLCR")?;
        }
        for stream in self.streams.iter_mut().take(self.standard) {
            stream.set_terminal(master.try_clone().during(|| "copy a descriptor")?);
        }
        self.terminal = Some(master);
        Ok(())
    }

    /// Notes what epoll says of a stream's socket.
    pub(crate) fn socket_ready(&mut self, index: usize, events: nix::sys::epoll::EpollFlags) {
        self.awake = true;
        let Some(stream) = self.streams.get_mut(index) else {
            return;
        };
        if let Err(error) = stream.socket_ready(events) {
            self.failure.get_or_insert_with(|| error.failure());
            self.give_up();
        }
    }

    /// Notes what epoll says of the process's end of a stream.
    pub(crate) fn end_ready(&mut self, index: usize, events: nix::sys::epoll::EpollFlags) {
        self.awake = true;
        if let Some(stream) = self.streams.get_mut(index) {
            stream.end_ready(events);
        }
    }

    /// Notes its end.
    pub(crate) fn reaped(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.awake = true;
    }

    /// Ends a set-up: without its wire the process does not go on.
    fn give_up(&mut self) {
        if self.state == State::Preparing {
            self.prepared = false;
            self.wire = None;
            self.awake = true;
        }
    }

    /// Ends what the end of the container leaves over.
    pub(crate) fn abandon(&mut self) {
        if self.state == State::Preparing {
            self.failure.get_or_insert_with(not_running);
            self.give_up();
        }
        if let (Some(pid), false) = (self.pid, self.has_ended()) {
            // Ended in between is fine.
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    /// Ends one that waits for its release and cannot be served. No step follows.
    pub(crate) fn discard(&mut self) {
        self.abandon();
        self.state = State::Gone;
        self.wire = None;
        self.streams.clear();
        self.terminal = None;
    }

    /// Moves what can be moved and takes one step that has become possible. Must be called until
    /// there is none. The second is whether there is more to move at once.
    pub(crate) fn turn(&mut self) -> (Option<Step>, bool) {
        loop {
            let more = self.pump();
            let before = self.state;
            if let Some(step) = self.advance() {
                return (Some(step), more);
            }
            // Its end is news to the streams: what is empty now is done.
            if self.state == before {
                self.awake = more;
                return (None, more);
            }
        }
    }

    fn pump(&mut self) -> bool {
        let ended = matches!(self.state, State::Draining(_) | State::Gone);
        let mut more = false;
        for stream in &mut self.streams {
            more |= stream.pump(ended) == Turn::More;
        }
        self.hang_up();
        more
    }

    /// Closes the terminal's masters when its input has ended, so that its kernel hangs up; what it
    /// has written so far goes first.
    fn hang_up(&mut self) {
        let fed = |stream: &Stream| !stream.is_output();
        if self.terminal.is_none() {
            return;
        }
        // They are gone when it could not be set up.
        let standard = self.standard.min(self.streams.len());
        let streams = &mut self.streams[..standard];
        if !streams.iter().any(|s| fed(s) && s.is_done()) {
            return;
        }
        // One turn at most: a program that never stops writing is hung up as well.
        let blocked = |stream: &mut Stream| stream.is_output() && stream.pump(true) == Turn::Waits;
        if !streams.iter_mut().any(blocked) {
            streams.iter_mut().for_each(Stream::finish);
            self.terminal = None;
        }
    }

    fn advance(&mut self) -> Option<Step> {
        match self.state {
            State::Preparing if self.prepared => {
                if !self.streams.iter().all(Stream::is_connected) {
                    return None;
                }
                self.state = State::Ready;
                Some(Step::Ready)
            }
            State::Preparing if self.wire.is_none() => {
                self.state = State::Gone;
                self.streams.clear();
                self.terminal = None;
                let failure = self.failure.take();
                Some(Step::Failed(failure.unwrap_or_else(|| died(self.exit))))
            }
            State::Released => {
                let step = match self.failure.take() {
                    Some(failure) => Step::Failed(failure),
                    None if self.wire.is_none() => Step::Executed,
                    None => return None,
                };
                self.state = State::Running;
                Some(step)
            }
            State::Ready | State::Running => {
                self.state = State::Draining(self.exit?);
                None
            }
            State::Draining(exit) if self.streams.iter().all(Stream::is_done) => {
                self.state = State::Gone;
                self.terminal = None;
                Some(Step::Exited(exit))
            }
            _ => None,
        }
    }

    /// Lets it execute its program. [`Step::Executed`] or [`Step::Failed`] follows.
    pub(crate) fn release(&mut self) -> Result<()> {
        let wire = self.wire.as_ref().ok_or(Error::Closed("the process"))?;
        send(wire.as_raw_fd(), &[0], MsgFlags::MSG_NOSIGNAL).during(|| "release the process")?;
        self.state = State::Released;
        self.awake = true;
        Ok(())
    }

    /// Sends it a signal. None when it has ended or does not exist yet.
    pub(crate) fn kill(&mut self, signal: i32) -> Option<std::io::Result<()>> {
        if self.has_ended() {
            return None;
        }
        if signal == libc::SIGKILL && self.state == State::Preparing && self.pid.is_none() {
            self.give_up();
            return Some(Ok(()));
        }
        // Only this process reaps, so the pid is its own as long as no exit is known.
        Some(sys::kill(self.pid?, signal))
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, size: TerminalSize) -> std::result::Result<(), Failure> {
        if self.has_ended() {
            return Err(not_running());
        }
        let Some(terminal) = &self.terminal else {
            let text = "the process has no terminal";
            return Err(Failure::message(FailureKind::Other, text));
        };
        sys::set_window_size(terminal, size.rows, size.columns)
            .during(|| "set the size of the terminal")
            .map_err(|error| error.failure())
    }
}

/// The process that was meant has ended, or never was.
pub(crate) fn not_running() -> Failure {
    Error::NotRunning.failure()
}

fn died(exit: Option<Exit>) -> Failure {
    let how = match exit {
        Some(Exit::Signal(signal)) => format!("was killed by signal {signal}"),
        Some(Exit::Code(code)) => format!("exited with {code}"),
        None => "ended".to_owned(),
    };
    let text = format!("the process that was to be set up {how}");
    Failure::message(FailureKind::Other, text)
}

/// Dials the host for a standard stream and makes the pipe behind it. Terminals come later.
fn ends(ports: Option<Ports>, direction: Direction, terminal: bool) -> Result<Ends> {
    let Some(ports) = ports else {
        return Ok(Ends {
            ours: None,
            theirs: Stdio::null(),
        });
    };
    if terminal {
        return Ok(Ends {
            ours: Some(Stream::new(direction, dial(ports, STREAM_PATIENCE)?, None)),
            theirs: Stdio::null(),
        });
    }
    let (ours, theirs) = pipe(ports, direction)?;
    Ok(Ends {
        ours: Some(ours),
        theirs: theirs.into(),
    })
}

/// Dials the host and makes the pipe behind that, of which the second is the process's end.
fn pipe(ports: Ports, direction: Direction) -> Result<(Stream, OwnedFd)> {
    let socket = dial(ports, STREAM_PATIENCE)?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).during(|| "create a pipe")?;
    let (ours, theirs) = match direction {
        Direction::ToContainer => (writer, reader),
        Direction::ToHost => (reader, writer),
    };
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
    let mut stream = Stream::new(direction, socket, Some(ours));
    if direction == Direction::ToContainer {
        stream = stream.on_demand().during(|| "prepare a pipe")?;
    }
    Ok((stream, theirs))
}

/// Receives bytes and perhaps one descriptor.
fn receive(wire: &OwnedFd, piece: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    use nix::sys::socket::ControlMessageOwned;
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [std::io::IoSliceMut::new(piece)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(wire.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptor = received.first().map(|fd| sys::received(*fd));
        }
    }
    Ok((message.bytes, descriptor))
}
