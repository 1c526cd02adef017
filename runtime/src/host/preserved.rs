//! Descriptors besides the standard streams that a caller passes into a container: `--preserve-fds`, and socket
//! activation (LISTEN_FDS).
//!
//! What crosses into a machine is bytes, so what can be passed is what bytes are all there is to:
//!
//! | descriptor                                   | what the process in the guest has at the same number      |
//! |----------------------------------------------|-------------------------------------------------------------|
//! | pipe or FIFO, open for one direction         | a pipe                                                      |
//! | stream socket that is connected              | a stream socket; each direction can be shut down by itself  |
//! | terminal, /dev/null and its like             | a pipe, or for both directions a socket                     |
//!
//! All else is refused by its number and what it is: files, whose position and locks belong to their openers; sockets
//! that accept connections or carry datagrams; and what stands for something in this host's kernel.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::{env, process};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    SockType, SockaddrStorage, getpeername, getsockopt,
    sockopt::{self, AcceptConn},
};
use nix::sys::stat::{SFlag, fstat, major, minor};
use protocol::EXTRA_MAX;
use rustix::termios::isatty;

use crate::control::{Direction, Preserved};
use crate::error::{Doing, SystemError};
use crate::sys;

/// The first number.
const FIRST: RawFd = 3;

/// Why descriptors are not passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0} descriptors to preserve exceed the maximum of {EXTRA_MAX}")]
    TooMany(usize),
    /// runc's words.
    #[error("unable to stat preserved-fd {index} (of {of})")]
    NotOpen {
        index: usize,
        of: usize,
        source: io::Error,
    },
    #[error(
        "{by}: descriptor {number} is {what}; only pipes, connected stream sockets, terminals and /dev/null can be passed into a machine"
    )]
    Kind {
        /// What asks for it.
        by: &'static str,
        number: RawFd,
        what: String,
    },
    #[error(transparent)]
    System(#[from] SystemError),
}

/// What the caller asks to be passed on, as descriptors from number 3 on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inherited {
    /// Of socket activation; they come first.
    pub(crate) listen: usize,
    /// Of `--preserve-fds`.
    pub(crate) preserve: usize,
}

impl Inherited {
    /// With socket activation, if it is meant for this process (sd_listen_fds(3)).
    pub(crate) fn with_environment(preserve: u32) -> Inherited {
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let own = number("LISTEN_PID") == Some(process::id() as usize);
        Inherited {
            listen: number("LISTEN_FDS").filter(|_| own).unwrap_or(0),
            preserve: preserve as usize,
        }
    }

    /// Of `--preserve-fds` alone.
    pub(crate) fn preserved(preserve: u32) -> Inherited {
        Inherited {
            listen: 0,
            preserve: preserve as usize,
        }
    }

    /// What the process is told of them.
    pub(crate) fn environment(self) -> Vec<String> {
        match self.listen {
            0 => Vec::new(),
            count => vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()],
        }
    }

    /// Takes the descriptors.
    ///
    /// # Errors
    /// When there are too many, or one is not open or of a kind that cannot be passed on.
    pub(crate) fn take(self) -> Result<Vec<Preserved>, Error> {
        let all = self.listen.saturating_add(self.preserve);
        if all > EXTRA_MAX {
            return Err(Error::TooMany(all));
        }
        let name = |index| match index < self.listen {
            true => "LISTEN_FDS",
            false => "--preserve-fds",
        };
        let one = |(index, number): (usize, RawFd)| {
            let fd = sys::adopt_inherited(number).map_err(|source| {
                let index = index.saturating_sub(self.listen);
                Error::NotOpen {
                    index,
                    of: self.preserve,
                    source,
                }
            })?;
            let kind = kind(fd.as_fd(), number)?;
            let direction = kind.map_err(|what| Error::Kind {
                by: name(index),
                number,
                what,
            })?;
            Ok(Preserved { fd, direction })
        };
        (FIRST..).take(all).enumerate().map(one).collect()
    }
}

/// The direction of a descriptor, or what it is that cannot be passed on.
fn kind(fd: BorrowedFd<'_>, number: RawFd) -> Result<Result<Direction, String>, Error> {
    const WHAT: &str = "inspect a descriptor";
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).doing(WHAT)?);
    if flags.contains(OFlag::O_PATH) {
        return Ok(Err("open for its path only (O_PATH)".to_owned()));
    }
    let by_mode = match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY => Direction::In,
        OFlag::O_WRONLY => Direction::Out,
        _ => Direction::Both,
    };
    let stat = fstat(fd).doing(WHAT)?;
    let what = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO if by_mode == Direction::Both => "a FIFO that is open for both directions",
        SFlag::S_IFIFO => return Ok(Ok(by_mode)),
        SFlag::S_IFSOCK => match socket(fd) {
            Ok(()) => return Ok(Ok(Direction::Both)),
            Err(what) => what,
        },
        SFlag::S_IFCHR if is_stream(major(stat.st_rdev), minor(stat.st_rdev)) || isatty(fd) => {
            return Ok(Ok(by_mode));
        }
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        _ => {
            let link = fs::read_link(format!("/proc/self/fd/{number}"));
            let name = link.unwrap_or_default().to_string_lossy().into_owned();
            let name = name.trim_start_matches("anon_inode:");
            return Ok(Err(format!(
                "not a stream ({})",
                name.trim_matches(['[', ']'])
            )));
        }
    };
    Ok(Err(what.to_owned()))
}

/// What is wrong with a socket, if it is not one whose bytes are all there is to it.
fn socket(fd: BorrowedFd<'_>) -> Result<(), &'static str> {
    match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::Stream) => {}
        Ok(SockType::Datagram) => return Err("a datagram socket"),
        _ => return Err("a socket that is not a stream socket"),
    }
    if getsockopt(&fd, AcceptConn) == Ok(true) {
        return Err("a listening socket");
    }
    match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
        Err(nix::errno::Errno::ENOTCONN) => Err("a socket that is not connected"),
        _ => Ok(()),
    }
}

/// /dev/null, /dev/zero, /dev/full, /dev/random, /dev/urandom (admin-guide/devices.rst of Linux).
fn is_stream(major: libc::dev_t, minor: libc::dev_t) -> bool {
    major == 1 && matches!(minor, 3 | 5 | 7 | 8 | 9)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn of(fd: impl AsFd) -> Result<Direction, String> {
        let fd = fd.as_fd();
        kind(fd, fd.as_raw_fd()).unwrap()
    }

    #[test]
    fn what_is_a_stream_has_a_direction_and_the_rest_has_a_name() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(of(reader), Ok(Direction::In));
        assert_eq!(of(writer), Ok(Direction::Out));
        assert_eq!(of(UnixStream::pair().unwrap().0), Ok(Direction::Both));
        let device = |path| File::options().read(true).write(true).open(path).unwrap();
        assert_eq!(of(device("/dev/null")), Ok(Direction::Both));
        assert_eq!(of(File::open("/dev/zero").unwrap()), Ok(Direction::In));
        let pty = crate::host::terminal::Pty::open(None).unwrap();
        assert_eq!(of(pty.slave), Ok(Direction::Both));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(of(&listener).unwrap_err(), "a listening socket");
        let datagram = UnixDatagram::unbound().unwrap();
        assert_eq!(of(&datagram).unwrap_err(), "a datagram socket");
        let file = tempfile::tempfile().unwrap();
        assert_eq!(of(&file).unwrap_err(), "a regular file");
        assert_eq!(of(File::open("/").unwrap()).unwrap_err(), "a directory");
        let path = File::from(
            nix::fcntl::open("/", OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap(),
        );
        assert_eq!(of(&path).unwrap_err(), "open for its path only (O_PATH)");
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty());
        assert_eq!(
            of(&epoll.unwrap().0).unwrap_err(),
            "not a stream (eventpoll)"
        );
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let both = File::options().read(true).write(true).open(&fifo).unwrap();
        assert_eq!(
            of(&both).unwrap_err(),
            "a FIFO that is open for both directions"
        );
    }

    #[test]
    fn there_is_a_limit() {
        let asked = Inherited {
            listen: 1,
            preserve: EXTRA_MAX,
        };
        let error = asked.take().unwrap_err().to_string();
        assert!(error.starts_with("17 descriptors"), "{error}");
        assert!(Inherited::default().take().unwrap().is_empty());
    }
}
