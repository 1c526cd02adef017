//! The caller's own terminal, lent to a process for as long as the verb waits for it.
//!
//! While there is a [`Relay`], two threads copy: standard input to the host pseudo-terminal's master, and the master to
//! standard output until the last byte. They block; everything else goes on without them. A standard input that is a
//! terminal is raw meanwhile but for its output, so that the guest's line discipline is the only one, and gets its
//! attributes back in every way out: when the relay is dropped, and in a panic.

use std::fs::File;
use std::io::{self, Read, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::TerminalSize;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use crate::host::terminal;

/// Bytes that are copied at once.
const CHUNK: usize = 16 << 10;

/// Bytes of stack of a copying thread, its buffer included.
const STACK: usize = 128 << 10;

/// What standard input was before it became raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The attributes of standard input are restored when this goes.
struct Raw;

impl Raw {
    /// Makes standard input raw; `None` when it is no terminal.
    fn enter() -> io::Result<Option<Raw>> {
        static HOOK: Once = Once::new();
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        // A panic ends the program without any destructor.
        HOOK.call_once(|| {
            let then = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                then(info);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
        let raw = Raw;
        let mut attributes = before;
        attributes.make_raw();
        // As with runc it is this terminal that makes CR LF of the process's LF.
        attributes.output_modes |= OutputModes::OPOST;
        tcsetattr(stdin(), OptionalActions::Now, &attributes)?;
        Ok(Some(raw))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(attributes) = before {
        // A terminal that has hung up has nothing to be restored.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &attributes);
    }
}

/// The caller's terminal at work. To be made when signals are blocked.
pub(crate) struct Relay {
    master: OwnedFd,
    output: JoinHandle<()>,
    _raw: Option<Raw>,
}

impl Relay {
    /// Begins to copy, and gives the pseudo-terminal the size of the caller's.
    pub(crate) fn start(master: OwnedFd) -> io::Result<Relay> {
        let from = File::from(stdin().as_fd().try_clone_to_owned()?);
        let to = File::from(stdout().as_fd().try_clone_to_owned()?);
        let (into, out_of) = (master.try_clone()?, master.try_clone()?);
        resize(&master);
        let raw = Raw::enter()?;
        let thread = |name: &str| Builder::new().name(name.into()).stack_size(STACK);
        // It ends with the program at the latest: nobody else's descriptor is made non-blocking for its sake.
        thread("input").spawn(move || copy(from, into.into(), Rest::Left))?;
        let output = thread("output").spawn(move || copy(out_of.into(), to, Rest::Discarded))?;
        Ok(Relay {
            master,
            output,
            _raw: raw,
        })
    }

    /// Gives the pseudo-terminal the size of the caller's terminal, if that has one; the size it has then.
    pub(crate) fn resize(&self) -> Option<TerminalSize> {
        resize(&self.master);
        terminal::size(&self.master)
    }

    /// Waits until all output is delivered: the slave has been closed.
    pub(crate) fn finish(self) {
        let _ = self.output.join();
    }
}

fn resize(master: &OwnedFd) {
    let (input, output, errors) = (stdin(), stdout(), stderr());
    let callers: [BorrowedFd<'_>; 3] = [input.as_fd(), output.as_fd(), errors.as_fd()];
    if let Some(size) = callers.into_iter().find_map(terminal::size) {
        // It has hung up: the process has ended.
        let _ = terminal::set_size(master, size);
    }
}

/// What is done when the receiver takes no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The sender keeps it.
    Left,
    /// It is read nevertheless, so that the sender does not wait for ever.
    Discarded,
}

fn copy(mut from: File, mut to: File, rest: Rest) {
    let mut buffer = [0; CHUNK];
    let mut taken = true;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) if taken => {
                taken = write_all(&mut to, &buffer[..count]).is_ok();
                if !taken && rest == Rest::Left {
                    return;
                }
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if wait(&from, PollFlags::POLLIN).is_err() {
                    return;
                }
            }
            // EIO: the slave of a pseudo-terminal is closed.
            Err(_) => return,
        }
    }
}

/// The caller may have made its descriptors non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait(to, PollFlags::POLLOUT)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(fd: &File, events: PollFlags) -> io::Result<()> {
    let mut polled = [PollFd::new(fd.as_fd(), events)];
    match poll(&mut polled, PollTimeout::NONE) {
        Err(Errno::EINTR) => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::host::terminal::Pty;

    #[test]
    fn all_output_is_delivered_before_the_end() {
        let pty = Pty::open(None).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = File::from(OwnedFd::from(writer));
        let master = File::from(pty.master);
        let copying = thread::spawn(move || copy(master, writer, Rest::Discarded));
        let sent = vec![b'x'; 1 << 20];
        let mut slave = File::from(pty.slave);
        let length = sent.len();
        let sending = thread::spawn(move || slave.write_all(&sent).unwrap());
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        copying.join().unwrap();
        assert_eq!(received.len(), length);
    }

    #[test]
    fn output_that_nobody_takes_holds_nobody_up() {
        let pty = Pty::open(None).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (master, writer) = (File::from(pty.master), File::from(OwnedFd::from(writer)));
        let copying = thread::spawn(move || copy(master, writer, Rest::Discarded));
        let mut slave = File::from(pty.slave);
        slave.write_all(&vec![b'x'; 1 << 20]).unwrap();
        drop(slave);
        copying.join().unwrap();
    }

    #[test]
    fn descriptors_that_do_not_block_are_waited_for() {
        let (from, mut feed) = io::pipe().unwrap();
        let (mut drain, to) = io::pipe().unwrap();
        for fd in [from.as_fd(), to.as_fd()] {
            let flags = nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        }
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        let copying = thread::spawn(move || copy(from.into(), to.into(), Rest::Left));
        let feeding = thread::spawn(move || feed.write_all(&vec![b'x'; 1 << 20]).unwrap());
        let mut received = Vec::new();
        drain.read_to_end(&mut received).unwrap();
        feeding.join().unwrap();
        copying.join().unwrap();
        assert_eq!(received.len(), 1 << 20);
    }
}
