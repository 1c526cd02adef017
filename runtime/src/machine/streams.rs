//! The host's ends of the standard streams: the caller's own, a terminal, or what came along with an exec.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::stat::{SFlag, fstat, makedev};
use nix::sys::termios::{OutputFlags, tcgetattr};
use protocol::{Ports, Stdio};
use vmm::vsock::{self, HostStream, Sink, Source, Vsock};

use crate::control::{Direction, Passed, Stream};

/// Standard input, output and error; `None` stands for /dev/null.
pub(super) type Streams = [Option<HostStream>; 3];

/// The caller's standard streams, or the terminal in their place; none of a machine that is not the caller's own. The
/// process keeps `null`, /dev/null, as its own.
pub(super) fn of_launch(
    own: bool,
    terminal: Option<OwnedFd>,
    null: OwnedFd,
) -> Result<Streams, vsock::Error> {
    let streams = match terminal {
        Some(terminal) => of_terminal(terminal, false)?,
        None if !own => Streams::default(),
        None => of_descriptors([
            Some((duplicate(io::stdin())?, false)),
            Some((duplicate(io::stdout())?, false)),
            Some((duplicate(io::stderr())?, false)),
        ])?,
    };
    replace_standard_descriptors(&null).map_err(vsock::Error::Events)?;
    Ok(streams)
}

/// A descriptor beside the standard streams, with all that it can do.
pub(super) struct Extra {
    pub(super) direction: Direction,
    pub(super) stream: HostStream,
}

/// The host's end of a descriptor that the caller has given to the container. `own` is as of [`Stream::Passed`].
pub(super) fn extra(fd: OwnedFd, direction: Direction, own: bool) -> Result<Extra, vsock::Error> {
    let sink = if own { Sink::reopened } else { Sink::new };
    let (source, sink) = match direction {
        Direction::In => (Some(source(fd, own)?.on_demand()), None),
        Direction::Out => (None, Some(sink(fd)?)),
        Direction::Both => (Some(source(duplicate(&fd)?, own)?), Some(sink(fd)?)),
    };
    let sink = sink.map(Sink::given_away);
    let stream = HostStream { source, sink };
    Ok(Extra { direction, stream })
}

/// Offers the streams of a process to the guest, by `offer`; what the agent is told of them.
pub(super) fn offer<E>(
    standard: Streams,
    beside: Vec<Extra>,
    mut offer: impl FnMut(Direction, HostStream) -> Result<Ports, E>,
) -> Result<(Stdio, Vec<protocol::Extra>), E> {
    let [stdin, stdout, stderr] = standard;
    let mut one = |direction, stream: Option<HostStream>| {
        stream.map(|stream| offer(direction, stream)).transpose()
    };
    let stdio = Stdio {
        stdin: one(Direction::In, stdin)?,
        stdout: one(Direction::Out, stdout)?,
        stderr: one(Direction::Out, stderr)?,
    };
    let beside = beside.into_iter().map(|Extra { direction, stream }| {
        offer(direction, stream).map(|ports| direction.to_guest(ports))
    });
    Ok((stdio, beside.collect::<Result<_, _>>()?))
}

/// Offers a stream to the guest at ports that only those who are told can know.
pub(super) fn offer_one(vsock: &mut Vsock, stream: HostStream) -> Result<Ports, vsock::Error> {
    let key = vsock.offer(stream)?;
    Ok(Ports {
        guest: key.guest_port,
        host: key.host_port,
    })
}

/// What has come along with a request.
pub(super) struct Arrived {
    /// As of [`plain_newlines`].
    pub(super) plain_newlines: bool,
    pub(super) streams: Streams,
    pub(super) extra: Vec<Extra>,
}

/// The streams that come along with a request. An error is the client's answer.
pub(super) fn passed(passed: &Passed, descriptors: Vec<OwnedFd>) -> Result<Arrived, String> {
    let announced = passed.streams.iter();
    let announced = announced.filter(|s| **s != Stream::None).count();
    let announced = announced + passed.extra.len();
    if announced != descriptors.len() {
        return Err(format!(
            "{announced} descriptors are announced, {} came",
            descriptors.len()
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let standard = passed.streams.map(|stream| match stream {
        Stream::None => None,
        Stream::Passed { own } => descriptors.next().map(|fd| (fd, own)),
    });
    let mut plain = false;
    let streams = match (passed.terminal, standard) {
        (true, [Some((terminal, own)), None, None]) => {
            plain = plain_newlines(&terminal);
            of_terminal(terminal, own)
        }
        (true, _) => return Err("a terminal is one descriptor, as standard input".into()),
        (false, streams) => of_descriptors(streams),
    };
    let extra = passed.extra.iter().zip(descriptors);
    let extra = extra
        .map(|(wanted, fd)| self::extra(fd, wanted.direction, wanted.own))
        .collect::<Result<_, _>>();
    let text = |e: vsock::Error| e.to_string();
    Ok(Arrived {
        plain_newlines: plain,
        streams: streams.map_err(text)?,
        extra: extra.map_err(text)?,
    })
}

/// Whether the guest's terminal is to leave LF alone, as the host's says, which being raw does nothing about it itself:
/// [`terminal::prepare`](crate::host::terminal::prepare).
pub(super) fn plain_newlines(terminal: &OwnedFd) -> bool {
    tcgetattr(terminal).is_ok_and(|found| !found.output_flags.contains(OutputFlags::ONLCR))
}

/// Descriptors, and whether they are of our own making ([`Stream::Passed`]).
fn of_descriptors(descriptors: [Option<(OwnedFd, bool)>; 3]) -> Result<Streams, vsock::Error> {
    let [stdin, stdout, stderr] = descriptors;
    let input = |given: Option<(OwnedFd, bool)>| match given {
        Some((fd, own)) => input(fd, own),
        None => Ok(None),
    };
    let output = |given: Option<(OwnedFd, bool)>| match given {
        Some((fd, own)) => output(fd, own),
        None => Ok(None),
    };
    Ok([input(stdin)?, output(stdout)?, output(stderr)?])
}

fn of_terminal(terminal: OwnedFd, own: bool) -> Result<Streams, vsock::Error> {
    let copy = duplicate(&terminal)?;
    // A terminal's driver has to have what is typed, whether or not a program reads: it makes signals of it.
    let input = HostStream {
        source: Some(source(copy, own)?),
        sink: None,
    };
    Ok([Some(input), output(terminal, own)?, None])
}

/// A descriptor that is not open for its direction (nohup opens standard input for writing only) is nothing to the
/// guest, and neither is a directory, which nobody can read or write and which would lead out of the jail.
fn input(fd: OwnedFd, own: bool) -> Result<Option<HostStream>, vsock::Error> {
    if is_null_or_directory(&fd) {
        return Ok(None);
    }
    match source(fd, own) {
        Err(vsock::Error::NotReadable(_)) => Ok(None),
        source => Ok(Some(HostStream {
            source: Some(source?.on_demand()),
            sink: None,
        })),
    }
}

fn source(fd: OwnedFd, own: bool) -> Result<Source, vsock::Error> {
    if own {
        Source::reopened(fd)
    } else {
        Source::new(fd)
    }
}

fn output(fd: OwnedFd, own: bool) -> Result<Option<HostStream>, vsock::Error> {
    if is_null_or_directory(&fd) {
        return Ok(None);
    }
    let sink = if own { Sink::reopened } else { Sink::new };
    match sink(fd) {
        Err(vsock::Error::NotWritable(_)) => Ok(None),
        sink => Ok(Some(HostStream {
            source: None,
            sink: Some(sink?),
        })),
    }
}

/// Whether a descriptor is a directory, or /dev/null (1:3 in Documentation/admin-guide/devices.txt): the container's
/// own does as well, and is nobody's to be given to the container's user.
fn is_null_or_directory(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(
        |stat| match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFCHR => stat.st_rdev == makedev(1, 3),
            SFlag::S_IFDIR => true,
            _ => false,
        },
    )
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, vsock::Error> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(vsock::Error::Events)
}

fn replace_standard_descriptors(null: &OwnedFd) -> io::Result<()> {
    nix::unistd::dup2_stdin(null)?;
    nix::unistd::dup2_stdout(null)?;
    nix::unistd::dup2_stderr(null)?;
    Ok(())
}
