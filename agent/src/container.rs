//! The container as PID 1 sees it.
//!
//! ```text
//! Preparing ──Prepared, streams connected──> Created ──start──> Starting ──wire ends──> Running
//!     │                                         │                  │                      │
//!     │ Failed, init dead                       └──init reaped─────┴──────────────────────┤
//!     v                                                                                   v
//!  (create fails)                                     Gone <──streams drained── Draining(exit)
//! ```
//! Invariants: create, start and exit are each answered exactly once; the exit is told only when
//! all that the container wrote has been handed to the vsock.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair};
use nix::unistd::pipe2;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::{Create, Decoder, Exit, Failure, FailureKind, Reply};

use crate::boot::now;
use crate::control::dial;
use crate::error::{During, Error, Result};
use crate::stage::{self, Report};
use crate::stream::{Direction, Stream};
use crate::sys::{self, Reaped};

/// Passes over a cgroup while processes keep appearing in it.
const KILL_PASSES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preparing,
    Created,
    Starting,
    Running,
    Draining(Exit),
    Gone,
}

/// What the host must be told.
#[derive(Debug)]
pub(crate) enum Event {
    /// The answer to create or start.
    Answer(u64, std::result::Result<Reply, Failure>),
    /// The end.
    Exited(Exit),
}

/// The container.
pub(crate) struct Container {
    state: State,
    /// The request that waits for its answer.
    request: Option<u64>,
    started: u64,
    /// To the stage and init; None when its end has been seen.
    wire: Option<OwnedFd>,
    decoder: Decoder,
    failure: Option<Failure>,
    /// Whether init has reported that it waits for the start.
    prepared: bool,
    pid: Option<i32>,
    /// What became of init, until the state takes account of it.
    exit: Option<Exit>,
    cgroup: PathBuf,
    own_pids: bool,
    streams: Vec<Stream>,
    /// A terminal whose output nobody wants.
    _terminal: Option<OwnedFd>,
}

/// The agent's and the container's end of a standard stream.
struct Ends {
    ours: Option<Stream>,
    theirs: Stdio,
}

impl Container {
    /// Begins to create a container, for the request `id`.
    pub(crate) fn create(id: u64, create: &Create) -> Result<Container> {
        let started = now();
        let spec: Spec = serde_json::from_str(&create.config).map_err(Error::Parse)?;
        let cgroup = stage::cgroup_directory(&spec, &create.id)?;
        let linux = spec.linux().as_ref();
        let mut namespaces = linux
            .and_then(|l| l.namespaces().as_ref())
            .into_iter()
            .flatten();
        let own_pids = namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
        let terminal = spec
            .process()
            .as_ref()
            .is_some_and(|p| p.terminal() == Some(true));
        let ports = create.stdio;
        let [stdin, stdout, stderr] = [
            ends(ports.stdin, Direction::ToContainer, terminal)?,
            ends(ports.stdout, Direction::ToHost, terminal)?,
            ends(
                ports.stderr.filter(|_| !terminal),
                Direction::ToHost,
                terminal,
            )?,
        ];
        let (wire, far) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .during(|| "create a socket pair")?;
        fcntl(&wire, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
        let request = request_file(create)?;
        for inherited in [&far, &request] {
            fcntl(inherited, FcntlArg::F_SETFD(FdFlag::empty())).during(|| "pass a descriptor")?;
        }
        // Waited for by the agent's loop, as every child.
        Command::new("/proc/self/exe")
            .env_clear()
            .arg("stage")
            .arg(request.as_raw_fd().to_string())
            .arg(far.as_raw_fd().to_string())
            .stdin(stdin.theirs)
            .stdout(stdout.theirs)
            .stderr(stderr.theirs)
            .spawn()
            .during(|| "start the stage process")?;
        let streams = [stdin.ours, stdout.ours, stderr.ours]
            .into_iter()
            .flatten()
            .collect();
        Ok(Container {
            state: State::Preparing,
            request: Some(id),
            started,
            wire: Some(wire),
            decoder: Decoder::new(),
            failure: None,
            prepared: false,
            pid: None,
            exit: None,
            cgroup,
            own_pids,
            streams,
            _terminal: None,
        })
    }

    /// The wire, to be watched.
    pub(crate) fn wire(&self) -> Option<BorrowedFd<'_>> {
        self.wire.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// The directory of its cgroup.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The standard streams.
    pub(crate) fn streams(&mut self) -> &mut [Stream] {
        &mut self.streams
    }

    /// Reads what the stage and init report. Returns whether the terminal has come, so that the
    /// streams have to be watched at their new ends.
    pub(crate) fn wire_ready(&mut self) -> Result<bool> {
        let mut terminal_came = false;
        while let Some(wire) = &self.wire {
            let mut piece = [0; 4096];
            let (count, descriptor) = match receive(wire, &mut piece) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).during(|| "read from the stage"),
            };
            if let Some(master) = descriptor {
                self.take_terminal(master)?;
                terminal_came = true;
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
                }
            }
        }
        Ok(terminal_came)
    }

    fn take_terminal(&mut self, master: OwnedFd) -> Result<()> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
        for stream in &mut self.streams {
            stream.set_terminal(master.try_clone().during(|| "copy a descriptor")?);
        }
        if !self.streams.iter().any(Stream::is_output) {
            self._terminal = Some(master);
        }
        Ok(())
    }

    /// Notes the end of a child, if it is this container's init.
    pub(crate) fn reaped(&mut self, child: &Reaped) {
        if Some(child.pid) != self.pid {
            return;
        }
        self.exit = Some(child.exit());
        if !self.own_pids {
            // Nothing else ends what init leaves behind. Gone already is as good.
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        }
    }

    /// Whether init has ended, so that what is in the pipes is all that will come.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Draining(_) | State::Gone)
    }

    /// Takes the steps that have become possible. One event at a time, until None.
    pub(crate) fn advance(&mut self) -> Option<Event> {
        match self.state {
            State::Preparing => self.advance_preparing(),
            State::Created if self.exit.is_some() => self.drain(),
            State::Starting => self.advance_starting(),
            State::Running if self.exit.is_some() => self.drain(),
            State::Draining(exit) if self.streams.iter().all(Stream::is_done) => {
                self.state = State::Gone;
                Some(Event::Exited(exit))
            }
            _ => None,
        }
    }

    fn drain(&mut self) -> Option<Event> {
        self.state = State::Draining(self.exit?);
        self.advance()
    }

    fn answer(&mut self, result: std::result::Result<Reply, Failure>) -> Option<Event> {
        Some(Event::Answer(self.request.take()?, result))
    }

    fn advance_preparing(&mut self) -> Option<Event> {
        if self.prepared && self.streams.iter().all(Stream::is_connected) {
            self.state = State::Created;
            let pid = self.pid.unwrap_or(0);
            let times = (self.started, now());
            return self.answer(Ok(Reply::Created {
                pid,
                started: times.0,
                prepared: times.1,
            }));
        }
        if self.wire.is_none() && !self.prepared {
            self.state = State::Gone;
            let failure = self.failure.take();
            return self.answer(Err(failure.unwrap_or_else(|| died("set up", self.exit))));
        }
        None
    }

    fn advance_starting(&mut self) -> Option<Event> {
        if let Some(failure) = self.failure.take() {
            // Its end follows, and is told as such.
            self.state = State::Running;
            return self.answer(Err(failure));
        }
        if self.wire.is_none() {
            self.state = State::Running;
            let executed = now();
            return self.answer(Ok(Reply::Started {
                executed,
                sent: now(),
            }));
        }
        None
    }

    /// Lets init execute the program, for the request `id`. The answer comes as an event.
    pub(crate) fn start(&mut self, id: u64) -> std::result::Result<(), Failure> {
        let wire = match (&self.wire, self.state, self.exit) {
            (Some(wire), State::Created, None) => wire,
            (_, State::Starting | State::Running, _) => {
                let text = "the container has been started already";
                return Err(Failure::message(FailureKind::Other, text));
            }
            _ => return Err(not_running()),
        };
        send(wire.as_raw_fd(), &[0], MsgFlags::MSG_NOSIGNAL)
            .during(|| "release init")
            .map_err(|error| error.failure())?;
        self.request = Some(id);
        self.state = State::Starting;
        Ok(())
    }

    /// Sends a signal to init, or to all in the container's cgroup.
    pub(crate) fn kill(&self, signal: i32, all: bool) -> std::result::Result<(), Failure> {
        let alive = matches!(
            self.state,
            State::Created | State::Starting | State::Running
        );
        // Only this process reaps, so the pid is init's as long as no exit is known.
        let pid = self
            .pid
            .filter(|_| alive && self.exit.is_none())
            .ok_or_else(not_running)?;
        let result = if all {
            self.kill_all(signal)
        } else {
            sys::kill(pid, signal)
        };
        result
            .during(|| format!("send signal {signal}"))
            .map_err(|error| error.failure())
    }

    fn kill_all(&self, signal: i32) -> std::io::Result<()> {
        if signal == libc::SIGKILL {
            return fs::write(self.cgroup.join("cgroup.kill"), "1");
        }
        // A process may fork while the list is read: again until nobody new is found.
        let mut done = std::collections::HashSet::new();
        for _ in 0..KILL_PASSES {
            let mut pids = Vec::new();
            processes(&self.cgroup, &mut pids)?;
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

fn not_running() -> Failure {
    Failure::message(FailureKind::NotRunning, "container not running")
}

fn died(what: &str, exit: Option<Exit>) -> Failure {
    let how = match exit {
        Some(Exit::Signal(signal)) => format!("was killed by signal {signal}"),
        Some(Exit::Code(code)) => format!("exited with {code}"),
        None => "ended".to_owned(),
    };
    Failure::message(
        FailureKind::Other,
        format!("the process that was to {what} the container {how}"),
    )
}

/// The processes of a cgroup and of those below it.
pub(crate) fn processes(cgroup: &Path, pids: &mut Vec<i32>) -> std::io::Result<()> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    // 0 stands for a process that is not in this pid namespace; there is none outside of ours.
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid: &i32| *pid > 0),
    );
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            processes(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// The request in a file of its own: a pipe could fill up and block the agent.
fn request_file(create: &Create) -> Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let what = || "pass the request on";
    let text = serde_json::to_vec(create).map_err(Error::Parse)?;
    let mut file = File::from(memfd_create(c"request", MFdFlags::MFD_CLOEXEC).during(what)?);
    file.write_all(&text)
        .and_then(|()| file.rewind())
        .during(what)?;
    Ok(file.into())
}

/// Dials the port of a standard stream and makes the pipe behind it. Terminals come later.
fn ends(port: Option<u32>, direction: Direction, terminal: bool) -> Result<Ends> {
    let Some(port) = port else {
        return Ok(Ends {
            ours: None,
            theirs: Stdio::null(),
        });
    };
    let socket = dial(port)?;
    if terminal {
        return Ok(Ends {
            ours: Some(Stream::new(direction, socket, None)),
            theirs: Stdio::null(),
        });
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).during(|| "create a pipe")?;
    let (ours, theirs) = match direction {
        Direction::ToContainer => (writer, reader),
        Direction::ToHost => (reader, writer),
    };
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during(|| "set O_NONBLOCK")?;
    Ok(Ends {
        ours: Some(Stream::new(direction, socket, Some(ours))),
        theirs: theirs.into(),
    })
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
