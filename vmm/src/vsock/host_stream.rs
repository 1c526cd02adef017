//! The host's end of a stream: descriptors that belong to somebody else.
//!
//! The open file description behind an inherited descriptor is shared with the caller, so its O_NONBLOCK flag is not
//! ours to set. How a descriptor is used without ever waiting on it depends on what it is:
//!
//! | descriptor                      | used as                                                                    |
//! |---------------------------------|----------------------------------------------------------------------------|
//! | FIFO, pipe, tty                 | re-opened through /proc/self/fd ([`reopen`]), which makes an own, non-blocking description |
//! | socket                          | as it is, every call with MSG_DONTWAIT                                     |
//! | file, block device, /dev/null.. | as it is: it never makes a caller wait for somebody else                   |
//! | the rest, or re-opening failed  | as it is, after a poll(2) that says ready, at most PIPE_BUF bytes at a time  |
//!
//! The last kind can still wait when another process drains or fills the same pipe between the poll and the call;
//! nothing better exists without touching the shared flag.
//!
//! A process that has no /proc is given descriptors that another process has re-opened: [`Source::reopened`],
//! [`Sink::reopened`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IsTerminal};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::Error;
use super::packet::Pieces;
use super::sys::{self, Incoming, Outgoing};

/// The host's end of a stream: what the guest sends goes to `sink`, what `source` yields goes to the guest. A side that
/// is missing is closed from the start.
#[derive(Debug)]
pub struct HostStream {
    /// Where the guest's input comes from.
    pub source: Option<Source>,
    /// Where the guest's output goes.
    pub sink: Option<Sink>,
}

impl HostStream {
    /// Takes a TCP connection of this process's own. The ends of its directions travel both ways, and so does a reset: to
    /// the guest as that of the stream, and to the other side when the guest, or whoever drops this, has not ended
    /// its direction in order. A guest that refuses the connection closes the stream.
    ///
    /// # Errors
    /// [`Error::Inspect`] when the kernel does not tell what the descriptor is, [`Error::Events`] when it cannot be
    /// duplicated.
    pub fn connection(socket: TcpStream) -> Result<HostStream, Error> {
        let copy = socket.try_clone().map_err(Error::Events)?;
        let source = Source {
            resets: true,
            ..Source::new(copy.into())?
        };
        let mut sink = Sink::new(socket.into())?;
        sink.end = End::Reset;
        Ok(HostStream {
            source: Some(source),
            sink: Some(sink),
        })
    }
}

/// A descriptor to read from.
#[derive(Debug)]
pub struct Source {
    descriptor: Descriptor,
    on_demand: bool,
    /// The guest is to tell an error from the end.
    resets: bool,
}

/// What there is in a pipe that has hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    Something,
}

/// A descriptor to write to. It is only ever closed, never shut down: the object behind it is the caller's. Unless the
/// caller has given it away: [`Sink::given_away`].
#[derive(Debug)]
pub struct Sink {
    descriptor: Descriptor,
    end: End,
}

/// What becomes of the object behind a sink, besides that the descriptor is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing.
    Closed,
    /// When the guest shuts its sending direction down and keeps the other, so is that of a socket.
    Shut,
    /// The same; and it is reset, should the guest not have said that it has sent all.
    Reset,
}

impl Source {
    /// Takes a descriptor that is open for reading. Must be called where /proc is mounted and the file may be opened,
    /// which is before the process confines itself.
    ///
    /// # Errors
    /// [`Error::NotReadable`], or [`Error::Inspect`] when the kernel does not tell what the descriptor is.
    pub fn new(fd: OwnedFd) -> Result<Source, Error> {
        Descriptor::new(fd)?.readable().map(Source::of)
    }

    /// Takes a descriptor that [`reopen`] has made in another process; nobody else may have it. Should it block after
    /// all, it is used with a poll(2) first. Anything but a FIFO or a terminal is used as by [`Source::new`].
    ///
    /// # Errors
    /// As [`Source::new`].
    pub fn reopened(fd: OwnedFd) -> Result<Source, Error> {
        Descriptor::reopened(fd)?.readable().map(Source::of)
    }

    fn of(descriptor: Descriptor) -> Source {
        Source {
            descriptor,
            on_demand: false,
            resets: false,
        }
    }

    /// The same one, of which nothing is read before the guest asks for it: what it does not take stays with whoever
    /// else has the descriptor. The guest asks by what it sends: the number of bytes, a `u32`, little-endian. It gets
    /// as many or, when fewer are there, those, and then no more until it asks again.
    #[must_use]
    pub fn on_demand(self) -> Source {
        Source {
            on_demand: true,
            ..self
        }
    }

    /// Whether it waits to be asked.
    pub(super) fn is_on_demand(&self) -> bool {
        self.on_demand
    }

    /// Whether the guest is to tell an error from the end.
    pub(super) fn resets(&self) -> bool {
        self.resets
    }

    /// Whether its end can be told before it is read: nobody opens a pipe without a name again once its writers are
    /// gone, as can be done with a FIFO.
    pub(super) fn hangs_up(&self) -> bool {
        sys::is_pipe(self.as_fd())
    }

    /// Whether its writers are gone, and if so whether nothing of what they have written is left.
    pub(super) fn hung_up(&self) -> io::Result<Option<Left>> {
        let found = sys::poll(self.as_fd(), libc::POLLIN, 0)?;
        Ok(
            (found & libc::POLLHUP != 0).then_some(match found & libc::POLLIN {
                0 => Left::Nothing,
                _ => Left::Something,
            }),
        )
    }

    /// Reads at most `limit` bytes, straight into guest memory. 0 is the end.
    pub(super) fn read(&self, room: &Pieces<'_>, limit: usize) -> io::Result<usize> {
        let fd = self.as_fd();
        let limit = self.descriptor.prepare(limit, libc::POLLIN)?;
        let room = Incoming::from_guest(room.slices(), limit);
        match self.descriptor.access {
            Access::Socket => sys::receive(fd, &room),
            Access::Direct | Access::Guarded => sys::read(fd, &room),
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.fd.as_fd()
    }
}

impl Sink {
    /// Takes a descriptor that is open for writing. Must be called where /proc is mounted and the file may be opened,
    /// which is before the process confines itself. The process must ignore SIGPIPE, as Rust programs do.
    ///
    /// # Errors
    /// [`Error::NotWritable`], or [`Error::Inspect`] when the kernel does not tell what the descriptor is.
    pub fn new(fd: OwnedFd) -> Result<Sink, Error> {
        Descriptor::new(fd)?.writable().map(Sink::of)
    }

    /// Takes a descriptor that [`reopen`] has made in another process; nobody else may have it. Should it block after
    /// all, it is used with a poll(2) first. Anything but a FIFO or a terminal is used as by [`Sink::new`].
    ///
    /// # Errors
    /// As [`Sink::new`].
    pub fn reopened(fd: OwnedFd) -> Result<Sink, Error> {
        Descriptor::reopened(fd)?.writable().map(Sink::of)
    }

    fn of(descriptor: Descriptor) -> Sink {
        Sink {
            descriptor,
            end: End::Closed,
        }
    }

    /// The same one, as the guest's own: when the guest shuts its sending direction down and keeps the other, a socket
    /// is shut down as well. When the guest closes its descriptor it is closed, no more.
    #[must_use]
    pub fn given_away(mut self) -> Sink {
        self.end = End::Shut;
        self
    }

    /// The guest has said that it has sent all.
    pub(super) fn finish(&mut self) {
        if self.end == End::Reset {
            self.end = End::Shut;
        }
    }

    /// What the guest has sent is delivered, and it keeps the other direction.
    pub(super) fn end(&self) {
        if self.end != End::Closed && self.descriptor.access == Access::Socket {
            sys::shut_sending_down(self.as_fd());
        }
    }

    /// Writes straight from guest memory.
    pub(super) fn write_guest(&self, data: &Pieces<'_>) -> io::Result<usize> {
        let limit = self.descriptor.prepare(usize::MAX, libc::POLLOUT)?;
        self.write(&Outgoing::from_guest(data.slices(), limit))
    }

    /// Writes from host memory.
    pub(super) fn write_host(&self, data: (&[u8], &[u8])) -> io::Result<usize> {
        let limit = self.descriptor.prepare(usize::MAX, libc::POLLOUT)?;
        self.write(&Outgoing::from_host(data, limit))
    }

    fn write(&self, data: &Outgoing<'_>) -> io::Result<usize> {
        match self.descriptor.access {
            Access::Socket => sys::send(self.as_fd(), data),
            Access::Direct | Access::Guarded => sys::write(self.as_fd(), data),
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.fd.as_fd()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.end == End::Reset {
            sys::reset(self.as_fd());
        }
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

/// What matters about an open file.
enum Kind {
    Socket,
    /// It never makes a caller wait for somebody else.
    AlwaysReady,
    /// A FIFO or a terminal.
    Reopenable,
    Other,
}

impl Descriptor {
    /// A descriptor somebody else uses too.
    fn new(fd: OwnedFd) -> Result<Descriptor, Error> {
        let (mut file, metadata, flags) = inspect(fd)?;
        let access = match kind(&file, &metadata) {
            Kind::Socket => Access::Socket,
            Kind::AlwaysReady => Access::Direct,
            Kind::Reopenable => match open_again(&file, &metadata, flags) {
                Some(own) => {
                    file = own;
                    Access::Direct
                }
                None => Access::Guarded,
            },
            Kind::Other => Access::Guarded,
        };
        let fd = file.into();
        Ok(Descriptor { fd, access, flags })
    }

    /// A descriptor of an own description.
    fn reopened(fd: OwnedFd) -> Result<Descriptor, Error> {
        let (file, metadata, flags) = inspect(fd)?;
        let access = match kind(&file, &metadata) {
            Kind::Socket => Access::Socket,
            Kind::AlwaysReady => Access::Direct,
            Kind::Reopenable if flags & libc::O_NONBLOCK != 0 => Access::Direct,
            Kind::Reopenable | Kind::Other => Access::Guarded,
        };
        let fd = file.into();
        Ok(Descriptor { fd, access, flags })
    }

    fn readable(self) -> Result<Descriptor, Error> {
        if self.has_mode(libc::O_RDONLY) {
            Ok(self)
        } else {
            Err(Error::NotReadable(self.fd.as_raw_fd()))
        }
    }

    fn writable(self) -> Result<Descriptor, Error> {
        if self.has_mode(libc::O_WRONLY) {
            Ok(self)
        } else {
            Err(Error::NotWritable(self.fd.as_raw_fd()))
        }
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

/// The file behind a descriptor, what it is, and its access mode and status flags.
fn inspect(fd: OwnedFd) -> Result<(File, Metadata, libc::c_int), Error> {
    let raw = fd.as_raw_fd();
    let inspect = |source| Error::Inspect { fd: raw, source };
    let flags = sys::flags(fd.as_fd()).map_err(inspect)?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(inspect)?;
    Ok((file, metadata, flags))
}

fn kind(file: &File, metadata: &Metadata) -> Kind {
    let kind = metadata.file_type();
    if kind.is_socket() {
        Kind::Socket
    } else if kind.is_file() || kind.is_block_device() || is_memory_device(metadata) {
        Kind::AlwaysReady
    } else if kind.is_fifo() || (is_reopenable_device(metadata) && file.is_terminal()) {
        Kind::Reopenable
    } else {
        Kind::Other
    }
}

/// For a process that sends descriptors to one without /proc: opens a FIFO or a terminal again, for a description that
/// is nobody else's and does not block. Returns the new descriptor and true; or the same descriptor and false, when it
/// is something else or cannot be opened again.
///
/// # Errors
/// [`Error::Inspect`] when the kernel does not tell what the descriptor is.
pub fn reopen(fd: OwnedFd) -> Result<(OwnedFd, bool), Error> {
    let (file, metadata, flags) = inspect(fd)?;
    let own = match kind(&file, &metadata) {
        Kind::Reopenable => open_again(&file, &metadata, flags),
        _ => None,
    };
    let reopened = own.is_some();
    Ok((own.unwrap_or(file).into(), reopened))
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

/// Opens the same file once more for a description of its own, non-blocking. `None` when that is not possible: no
/// /proc, no permission, a FIFO without a reader.
fn open_again(file: &File, metadata: &Metadata, flags: libc::c_int) -> Option<File> {
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
            (source.descriptor.access, sink.descriptor.access),
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
        assert_eq!(sink.descriptor.access, Access::Guarded);
        let error = sink.write_host((b"x", b"")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_guarded_pipe_never_waits() {
        let (reader, writer) = pipe();
        let flags = libc::O_WRONLY;
        let sink = Sink::of(Descriptor {
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
        assert_eq!(sink.descriptor.access, Access::Direct);
        assert!(nonblocking(sink.as_fd()) && !nonblocking(callers.as_fd()));
        assert_eq!(sink.write_host((b"hello", b"")).unwrap(), 5);
        drop(master);
    }

    #[test]
    fn what_another_process_has_reopened_is_used_as_it_is() {
        let (reader, writer) = pipe();
        let callers = writer.try_clone().unwrap();
        let (reader, own_reader) = reopen(reader).unwrap();
        let (writer, own_writer) = reopen(writer).unwrap();
        assert!(own_reader && own_writer);
        let numbers = (reader.as_raw_fd(), writer.as_raw_fd());
        let source = Source::reopened(reader).unwrap();
        let sink = Sink::reopened(writer).unwrap();
        assert_eq!(
            (source.as_fd().as_raw_fd(), sink.as_fd().as_raw_fd()),
            numbers
        );
        assert_eq!(
            (source.descriptor.access, sink.descriptor.access),
            (Access::Direct, Access::Direct)
        );
        assert!(nonblocking(source.as_fd()) && nonblocking(sink.as_fd()));
        assert!(!nonblocking(callers.as_fd()));
    }

    #[test]
    fn what_is_said_to_be_reopened_and_blocks_is_guarded() {
        let (reader, writer) = pipe();
        assert_eq!(
            Source::reopened(reader).unwrap().descriptor.access,
            Access::Guarded
        );
        assert_eq!(
            Sink::reopened(writer).unwrap().descriptor.access,
            Access::Guarded
        );
        let (_, slave) = sys::terminal();
        assert_eq!(
            Sink::reopened(slave).unwrap().descriptor.access,
            Access::Guarded
        );
    }

    #[test]
    fn only_fifos_and_terminals_are_reopened() {
        let (_master, slave) = sys::terminal();
        let (terminal, own) = reopen(slave).unwrap();
        assert!(own && nonblocking(terminal.as_fd()));
        let files = [
            OwnedFd::from(UnixStream::pair().unwrap().0),
            tempfile::tempfile().unwrap().into(),
            File::open("/dev/null").unwrap().into(),
            File::open("/dev/ptmx").unwrap().into(),
        ];
        for file in files {
            let number = file.as_raw_fd();
            let (same, own) = reopen(file).unwrap();
            assert_eq!((same.as_raw_fd(), own), (number, false));
        }
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(
            Sink::reopened(socket.into()).unwrap().descriptor.access,
            Access::Socket
        );
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
