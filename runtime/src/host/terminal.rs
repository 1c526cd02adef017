//! Pseudo-terminals on this host.
//!
//! ```text
//!  caller's terminal <──relay──> master│slave <──> machine process <──vsock──> agent <──> master│slave <──> program
//!                    or whoever holds the console socket          this host │ guest
//! ```
//! The line discipline is the guest's: the pseudo-terminal here is raw, and carries bytes, the window size and the
//! hang-up only. Its ONLCR, which does nothing in a raw one, says whether the guest's has it.

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::Process;
use protocol::TerminalSize;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{
    OptionalActions, OutputModes, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::error::{Doing, SystemError};

/// Why a process gets no terminal, or its caller no descriptor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot use console socket if chiton will not detach or allocate tty")]
    ConsoleSocket,
    #[error("cannot allocate tty if chiton will detach without setting console socket")]
    NoConsoleSocket,
    #[error("process.consoleSize: must be less than 65536 by 65536")]
    ConsoleSize,
    #[error(transparent)]
    System(#[from] SystemError),
}

/// A pseudo-terminal, raw.
pub(crate) struct Pty {
    /// The end of whoever shows the terminal.
    pub(crate) master: OwnedFd,
    /// The end of the machine process.
    pub(crate) slave: OwnedFd,
    /// The slave's path, for instance `/dev/pts/3`.
    name: CString,
}

impl Pty {
    /// Makes one of the given size, or of the kernel's 0 by 0.
    pub(crate) fn open(size: Option<TerminalSize>) -> io::Result<Pty> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let name = ptsname(&master, Vec::new())?;
        let mut attributes = tcgetattr(&slave)?;
        attributes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &attributes)?;
        if let Some(size) = size {
            set_size(&master, size)?;
        }
        Ok(Pty {
            master,
            slave,
            name,
        })
    }
}

/// The host's end of a process's terminal.
pub(crate) struct Terminal {
    /// For the machine process.
    pub(crate) slave: OwnedFd,
    /// For the verb that stays; `None` when whoever listens on the console socket has it.
    pub(crate) master: Option<OwnedFd>,
}

/// Makes the terminal that a process wants, and hands its master over if the verb does not stay.
///
/// # Errors
/// When the flags do not suit the process, as with runc: who waits for it has a terminal to lend, who does not must
/// name a socket.
pub(crate) fn prepare(
    process: &Process,
    detached: bool,
    console_socket: Option<&Path>,
) -> Result<Option<Terminal>, Error> {
    let wanted = process.terminal() == Some(true);
    check_flags(wanted, detached, console_socket)?;
    if !wanted {
        return Ok(None);
    }
    let socket = console_socket.map(DescriptorSocket::connect).transpose()?;
    let pty = Pty::open(console_size(process)?).doing("make a pseudo-terminal")?;
    let Some(socket) = socket else {
        // The terminal that it is shown on makes CR LF of LF, as with runc.
        leave_newlines(&pty.slave).doing("clear ONLCR of a pseudo-terminal")?;
        return Ok(Some(Terminal {
            slave: pty.slave,
            master: Some(pty.master),
        }));
    };
    socket.send(pty.master, pty.name.as_bytes())?;
    Ok(Some(Terminal {
        slave: pty.slave,
        master: None,
    }))
}

/// The window size of a terminal; `None` when it has none: 0 by 0, or no terminal at all.
pub(crate) fn size(terminal: impl AsFd) -> Option<TerminalSize> {
    let size = tcgetwinsize(terminal).ok()?;
    let size = TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    };
    (size != TerminalSize::default()).then_some(size)
}

/// Sets the window size of a terminal. Its session hears of it by SIGWINCH.
pub(crate) fn set_size(terminal: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Has the guest's terminal leave LF alone.
fn leave_newlines(terminal: &OwnedFd) -> io::Result<()> {
    let mut attributes = tcgetattr(terminal)?;
    attributes.output_modes.remove(OutputModes::ONLCR);
    Ok(tcsetattr(terminal, OptionalActions::Now, &attributes)?)
}

/// `process.consoleSize`.
///
/// # Errors
/// When it does not fit into a `struct winsize` (ioctl_tty(2)).
fn console_size(process: &Process) -> Result<Option<TerminalSize>, Error> {
    let Some(size) = process.console_size() else {
        return Ok(None);
    };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(rows), Ok(columns)) => Ok(Some(TerminalSize { rows, columns })),
        _ => Err(Error::ConsoleSize),
    }
}

/// Whether the flags suit a process that wants a terminal or does not.
fn check_flags(terminal: bool, detached: bool, console_socket: Option<&Path>) -> Result<(), Error> {
    match (terminal && detached, console_socket) {
        (true, None) => Err(Error::NoConsoleSocket),
        (false, Some(_)) => Err(Error::ConsoleSocket),
        _ => Ok(()),
    }
}

/// A socket on which a caller waits for one descriptor: `--console-socket`, `--pidfd-socket`.
pub(crate) struct DescriptorSocket {
    stream: UnixStream,
    path: PathBuf,
}

impl DescriptorSocket {
    /// Connects to the listener at `path`.
    pub(crate) fn connect(path: &Path) -> Result<DescriptorSocket, Error> {
        let stream = UnixStream::connect(path).doing_to("connect to", path)?;
        Ok(DescriptorSocket {
            stream,
            path: path.to_owned(),
        })
    }

    /// Sends the descriptor with a text that says what it is.
    pub(crate) fn send(self, fd: impl AsFd, text: &[u8]) -> Result<(), Error> {
        let fds = [fd.as_fd().as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let bytes = [IoSlice::new(text)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let socket = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(socket, &bytes, &message, flags, None);
        sent.doing_to("send a descriptor to", self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;
    use crate::sys;

    const SIZE: TerminalSize = TerminalSize {
        rows: 40,
        columns: 132,
    };

    #[test]
    fn bytes_pass_as_they_are_and_the_end_is_heard() {
        let pty = Pty::open(None).unwrap();
        let (mut master, mut slave) = (File::from(pty.master), File::from(pty.slave));
        let all: Vec<u8> = (0..=255).collect();
        let mut read = vec![0; 256];
        master.write_all(&all).unwrap();
        slave.read_exact(&mut read).unwrap();
        assert_eq!(read, all);
        slave.write_all(&all).unwrap();
        drop(slave);
        master.read_exact(&mut read).unwrap();
        assert_eq!(read, all);
        let end = master.read(&mut read).unwrap_err();
        assert_eq!(end.raw_os_error(), Some(nix::libc::EIO));
    }

    #[test]
    fn a_closed_master_is_the_end_of_the_slave() {
        let pty = Pty::open(None).unwrap();
        drop(pty.master);
        assert_eq!(File::from(pty.slave).read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn both_ends_have_one_size() {
        let pty = Pty::open(None).unwrap();
        assert_eq!(size(&pty.slave), None);
        set_size(&pty.master, SIZE).unwrap();
        assert_eq!(size(&pty.slave), Some(SIZE));
        assert_eq!(size(&Pty::open(Some(SIZE)).unwrap().slave), Some(SIZE));
        assert_eq!(size(File::open("/dev/null").unwrap()), None);
    }

    #[test]
    fn a_master_is_given_away_with_the_slaves_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let process = serde_json::json!({"user": {}, "cwd": "/", "terminal": true,
            "consoleSize": {"height": SIZE.rows, "width": SIZE.columns}});
        let process: Process = serde_json::from_value(process).unwrap();
        let terminal = prepare(&process, true, Some(&path)).unwrap().unwrap();
        assert!(terminal.master.is_none());
        let slave = terminal.slave;
        let (stream, _) = listener.accept().unwrap();
        let mut text = [0; 64];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut bytes = [io::IoSliceMut::new(&mut text)];
        let raw = stream.as_raw_fd();
        let message = recvmsg::<()>(raw, &mut bytes, Some(&mut space), MsgFlags::empty()).unwrap();
        let ControlMessageOwned::ScmRights(fds) = message.cmsgs().unwrap().next().unwrap() else {
            panic!("no descriptor");
        };
        let length = message.bytes;
        let master = sys::received(fds[0]);
        let name = std::str::from_utf8(&text[..length]).unwrap();
        let device = |at: &dyn Fn() -> io::Result<std::fs::Metadata>| at().unwrap().rdev();
        let slave = File::from(slave);
        assert_eq!(
            device(&|| std::fs::metadata(name)),
            device(&|| slave.metadata())
        );
        assert_eq!(size(&master), Some(SIZE));
    }

    #[test]
    fn flags_are_runcs() {
        let socket = Some(Path::new("/s"));
        let without = "cannot allocate tty if chiton will detach without setting console socket";
        let vain = "cannot use console socket if chiton will not detach or allocate tty";
        for (terminal, detached, socket, refusal) in [
            (false, false, None, ""),
            (false, true, None, ""),
            (true, false, None, ""),
            (true, true, None, without),
            (false, false, socket, vain),
            (false, true, socket, vain),
            (true, false, socket, vain),
            (true, true, socket, ""),
        ] {
            let answer = check_flags(terminal, detached, socket)
                .map_or_else(|e| e.to_string(), |()| String::new());
            assert_eq!(answer, refusal);
        }
    }
}
