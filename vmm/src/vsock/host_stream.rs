//! The host's end of a stream: descriptors that belong to somebody else.
//!
//! The open file description behind an inherited descriptor is shared with the caller, so its O_NONBLOCK flag is not ours to set. How
//! a descriptor is used without ever waiting on it depends on what it is:
//!
//! | descriptor                      | used as                                                                    |
//! |---------------------------------|----------------------------------------------------------------------------|
//! | FIFO, pipe, tty                 | re-opened through /proc/self/fd, which makes an own, non-blocking description |
//! | socket                          | as it is, every call with MSG_DONTWAIT                                     |
//! | file, block device, /dev/null.. | as it is: it never makes a caller wait for somebody else                   |
//! | the rest, or re-opening failed  | as it is, after a poll(2) that says ready, at most PIPE_BUF bytes at a time  |
//!
//! The last kind can still wait when another process drains or fills the same pipe between the poll and the call; nothing better
//! exists without touching the shared flag.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::Error;
use super::packet::Pieces;
use super::sys::{self, Incoming, Outgoing};

/// The host's end of a stream: what the guest sends goes to `sink`, what `source` yields goes to the guest. A side that is missing is
/// closed from the start.
#[derive(Debug)]
pub struct HostStream {
    /// Where the guest's input comes from.
    pub source: Option<Source>,
    /// Where the guest's output goes.
    pub sink: Option<Sink>,
}

/// A descriptor to read from.
#[derive(Debug)]
pub struct Source(Descriptor);

/// A descriptor to write to. It is only ever closed, never shut down: the object behind it is the caller's.
#[derive(Debug)]
pub struct Sink(Descriptor);

impl Source {
    /// Takes a descriptor that is open for reading. To be called where /proc is mounted and the file may be opened, which is before
    /// the process confines itself.
    ///
    /// # Errors
    /// [`Error::NotReadable`], or [`Error::Inspect`] when the kernel does not tell what the descriptor is.
    pub fn new(fd: OwnedFd) -> Result<Source, Error> {
        match Descriptor::new(fd)? {
            descriptor if descriptor.has_mode(libc::O_RDONLY) => Ok(Source(descriptor)),
            descriptor => Err(Error::NotReadable(descriptor.fd.as_raw_fd())),
        }
    }

    /// Reads at most `limit` bytes, straight into guest memory. 0 is the end.
    pub(super) fn read(&self, room: &Pieces<'_>, limit: usize) -> io::Result<usize> {
        let fd = self.as_fd();
        let limit = self.0.prepare(limit, libc::POLLIN)?;
        let room = Incoming::from_guest(room.slices(), limit);
        match self.0.access {
            Access::Socket => sys::receive(fd, &room),
            Access::Direct | Access::Guarded => sys::read(fd, &room),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Sink {
    /// Takes a descriptor that is open for writing. To be called where /proc is mounted and the file may be opened, which is before
    /// the process confines itself. The process must ignore SIGPIPE, as Rust programs do.
    ///
    /// # Errors
    /// [`Error::NotWritable`], or [`Error::Inspect`] when the kernel does not tell what the descriptor is.
    pub fn new(fd: OwnedFd) -> Result<Sink, Error> {
        match Descriptor::new(fd)? {
            descriptor if descriptor.has_mode(libc::O_WRONLY) => Ok(Sink(descriptor)),
            descriptor => Err(Error::NotWritable(descriptor.fd.as_raw_fd())),
        }
    }

    /// Writes straight from guest memory.
    pub(super) fn write_guest(&self, data: &Pieces<'_>) -> io::Result<usize> {
        let limit = self.0.prepare(usize::MAX, libc::POLLOUT)?;
        self.write(&Outgoing::from_guest(data.slices(), limit))
    }

    /// Writes from host memory.
    pub(super) fn write_host(&self, data: (&[u8], &[u8])) -> io::Result<usize> {
        let limit = self.0.prepare(usize::MAX, libc::POLLOUT)?;
        self.write(&Outgoing::from_host(data, limit))
    }

    fn write(&self, data: &Outgoing<'_>) -> io::Result<usize> {
        match self.0.access {
            Access::Socket => sys::send(self.as_fd(), data),
            Access::Direct | Access::Guarded => sys::write(self.as_fd(), data),
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// How a descriptor is used without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// An own, non-blocking description, or a file that is always ready.
    Direct,
    /// MSG_DONTWAIT.
    Socket,
    /// poll(2) first.
    Guarded,
}

#[derive(Debug)]
struct Descriptor {
    fd: OwnedFd,
    access: Access,
    /// Access mode and status flags as they were inherited.
    flags: libc::c_int,
}

impl Descriptor {
    fn new(fd: OwnedFd) -> Result<Descriptor, Error> {
        let raw = fd.as_raw_fd();
        let inspect = |source| Error::Inspect { fd: raw, source };
        let flags = sys::flags(fd.as_fd()).map_err(inspect)?;
        let file = File::from(fd);
        let metadata = file.metadata().map_err(inspect)?;
        let kind = metadata.file_type();
        let (fd, access) = if kind.is_socket() {
            (file.into(), Access::Socket)
        } else if kind.is_file() || kind.is_block_device() || is_memory_device(&metadata) {
            (file.into(), Access::Direct)
        } else if kind.is_fifo() || (is_reopenable_device(&metadata) && file.is_terminal()) {
            match reopen(&file, &metadata, flags) {
                Some(own) => (own.into(), Access::Direct),
                None => (file.into(), Access::Guarded),
            }
        } else {
            (file.into(), Access::Guarded)
        };
        Ok(Descriptor { fd, access, flags })
    }

    /// Whether the descriptor was opened with `mode` (O_RDONLY, O_WRONLY) or for both.
    fn has_mode(&self, mode: libc::c_int) -> bool {
        let have = self.flags & libc::O_ACCMODE;
        self.flags & libc::O_PATH == 0 && (have == mode || have == libc::O_RDWR)
    }

    /// How many bytes may be moved now without waiting.
    fn prepare(&self, limit: usize, events: libc::c_short) -> io::Result<usize> {
        if self.access != Access::Guarded {
            Ok(limit)
        } else if sys::ready(self.fd.as_fd(), events)? {
            Ok(limit.min(libc::PIPE_BUF))
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

/// Whether it is /dev/null, /dev/zero or /dev/full (major 1, minors 3, 5, 7: admin-guide/devices.rst of Linux).
fn is_memory_device(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    metadata.file_type().is_char_device()
        && libc::major(device) == 1
        && matches!(libc::minor(device), 3 | 5 | 7)
}

/// Whether opening the character device again yields the same one: opening /dev/ptmx (5:2) makes a new terminal.
fn is_reopenable_device(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    metadata.file_type().is_char_device() && (libc::major(device), libc::minor(device)) != (5, 2)
}

/// Opens the same file once more for a description of its own, non-blocking. `None` when that is not possible: no /proc, no
/// permission, a FIFO without a reader.
fn reopen(file: &File, metadata: &Metadata, flags: libc::c_int) -> Option<File> {
    let mode = flags & libc::O_ACCMODE;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let own = OpenOptions::new()
        .read(mode != libc::O_WRONLY)
        .write(mode != libc::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | (flags & libc::O_APPEND))
        .open(path)
        .ok()?;
    let found = own.metadata().ok()?;
    let identity = |of: &Metadata| (of.dev(), of.ino(), of.rdev());
    (identity(&found) == identity(metadata)).then_some(own)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    fn nonblocking(fd: BorrowedFd<'_>) -> bool {
        sys::flags(fd).unwrap() & libc::O_NONBLOCK != 0
    }

    #[test]
    fn a_pipe_gets_an_own_description_and_the_callers_stays_blocking() {
        let (reader, writer) = pipe();
        let callers = (reader.try_clone().unwrap(), writer.try_clone().unwrap());
        let source = Source::new(reader).unwrap();
        let sink = Sink::new(writer).unwrap();
        assert_eq!(
            (source.0.access, sink.0.access),
            (Access::Direct, Access::Direct)
        );
        assert!(nonblocking(source.as_fd()) && nonblocking(sink.as_fd()));
        assert!(!nonblocking(callers.0.as_fd()) && !nonblocking(callers.1.as_fd()));
    }

    #[test]
    fn a_fifo_without_reader_is_guarded_and_then_broken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        sys::make_fifo(&path);
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        drop(reader);
        let sink = Sink::new(writer.into()).unwrap();
        assert_eq!(sink.0.access, Access::Guarded);
        let error = sink.write_host((b"x", b"")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_guarded_pipe_never_waits() {
        let (reader, writer) = pipe();
        let flags = libc::O_WRONLY;
        let sink = Sink(Descriptor {
            fd: writer,
            access: Access::Guarded,
            flags,
        });
        let data = vec![7; 3 * libc::PIPE_BUF];
        let mut written = 0;
        let error = loop {
            match sink.write_host((&data, b"")) {
                Ok(count) => {
                    assert!(count <= libc::PIPE_BUF);
                    written += count;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(written >= libc::PIPE_BUF);
        assert!(!nonblocking(sink.as_fd()));
        drop(reader);
    }

    #[test]
    fn kinds_are_told_apart() {
        let open = |path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
        };
        let access = |fd: OwnedFd| Descriptor::new(fd).unwrap().access;
        assert_eq!(access(open("/dev/null").into()), Access::Direct);
        assert_eq!(access(tempfile::tempfile().unwrap().into()), Access::Direct);
        assert_eq!(access(UnixStream::pair().unwrap().0.into()), Access::Socket);
        // The master of a pseudoterminal is a terminal, but to open it again is to make another one.
        assert_eq!(access(open("/dev/ptmx").into()), Access::Guarded);
    }

    #[test]
    fn a_terminal_gets_an_own_description() {
        let (master, slave) = sys::terminal();
        let callers = slave.try_clone().unwrap();
        let sink = Sink::new(slave).unwrap();
        assert_eq!(sink.0.access, Access::Direct);
        assert!(nonblocking(sink.as_fd()) && !nonblocking(callers.as_fd()));
        assert_eq!(sink.write_host((b"hello", b"")).unwrap(), 5);
        drop(master);
    }

    #[test]
    fn the_wrong_direction_is_refused() {
        let (reader, writer) = pipe();
        let path = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/")
            .unwrap();
        assert!(matches!(Source::new(writer), Err(Error::NotReadable(_))));
        assert!(matches!(Sink::new(reader), Err(Error::NotWritable(_))));
        assert!(matches!(
            Source::new(path.into()),
            Err(Error::NotReadable(_))
        ));
    }
}
