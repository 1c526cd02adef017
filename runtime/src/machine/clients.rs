//! The connections to control.sock, seen from the machine process.
//!
//! ```text
//!  Asking ──request──> Waiting ──reply──> Leaving ──all written──> closed
//!                        ├──> Exec: steers a process, until reply
//!                        ├──> Admitted: asks for the container whose number it has been told; then Waiting again
//!                        ├──> Listening: told of out-of-memory kills in a container
//!                        ├──> Expecting: told that a container is ready
//!                        └──> Watching: asks for a network, or a change of one; then Asking again
//! ```
//! Invariants: nothing here blocks; there are at most [`CLIENTS_MAX`]; of each no more is kept than one request, its
//! descriptors and the answers it has not read, which are one and a few short ones. A client that hangs up is closed in
//! every state. Who cannot be accepted for want of a descriptor or of memory waits for the next to come or to leave:
//! nothing is tried again and again meanwhile.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocol::{ContainerId, Decoder};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::execs::{EXECS_MAX, Target};
use crate::control::{Control, ControlReply, DESCRIPTORS_MAX, ExecControl, Request};

/// Most connections at once; more are closed as they come.
const CLIENTS_MAX: usize = EXECS_MAX + 64;

/// What is read at once.
const READ_MAX: usize = 16 << 10;

/// What a client hears whose descriptors did not arrive.
const LOST: &str = "the host does not let the machine process have one of the descriptors that it is to use, for its SELinux \
     label or because it has too many";

/// The listener's event data; clients have the serial numbers after it.
const LISTENER: u64 = 0;

/// What a connection is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Asking,
    Admitted(ContainerId),
    Waiting,
    Exec(Target),
    Listening(ContainerId),
    Expecting(ContainerId),
    Watching,
    Leaving,
}

/// What a client has done.
#[derive(Debug)]
pub(super) enum ClientEvent {
    /// It asks for something, with the descriptors that came along, and waits for its reply.
    Asked(u64, Request<Control>, Vec<OwnedFd>),
    /// It steers the process of its exec.
    Steered(Target, ExecControl),
    /// It has left the process of its exec alone.
    Left(Target),
    /// It has left without the reply it has waited for.
    GaveUp(u64),
}

struct Client {
    stream: UnixStream,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
    outbox: Vec<u8>,
    role: Role,
    interest: EpollFlags,
}

/// All connections.
pub(super) struct Clients {
    epoll: Epoll,
    listener: UnixListener,
    table: HashMap<u64, Client>,
    last: u64,
}

impl Clients {
    /// Listens to nobody but `listener`, which does not block.
    ///
    /// # Errors
    /// No epoll instance to be had.
    pub(super) fn new(listener: UnixListener) -> io::Result<Clients> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Told of once: a connection that cannot be accepted stays where it is.
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&listener, EpollEvent::new(interest, LISTENER))?;
        Ok(Clients {
            epoll,
            listener,
            table: HashMap::new(),
            last: LISTENER,
        })
    }

    /// Handles what is ready.
    pub(super) fn handle_events(&mut self) -> Vec<ClientEvent> {
        let mut events = [EpollEvent::empty(); 16];
        // It cannot fail but by a signal, and then the events are still there at the next call.
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let mut told = Vec::new();
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                serial => self.ready(serial, event.events(), &mut told),
            }
        }
        told
    }

    /// Makes a waiting client the one that steers a process.
    pub(super) fn steer(&mut self, serial: u64, process: Target) {
        self.turn_into(serial, Role::Exec(process));
    }

    /// Tells a waiting client the number of the container that it may ask for now.
    pub(super) fn admit(&mut self, serial: u64, container: ContainerId) {
        self.turn_into(serial, Role::Admitted(container));
        self.tell(serial, &ControlReply::Admitted(container));
    }

    /// Makes a waiting client one that is told of a container's out-of-memory kills.
    pub(super) fn listen(&mut self, serial: u64, container: ContainerId) {
        self.turn_into(serial, Role::Listening(container));
    }

    /// Makes a waiting client one that is told of a container's readiness.
    pub(super) fn expect(&mut self, serial: u64, container: ContainerId) {
        self.turn_into(serial, Role::Expecting(container));
    }

    /// Answers those that wait for a container's readiness.
    pub(super) fn answer_expecting(&mut self, container: ContainerId, reply: &ControlReply) {
        for serial in self.with_role(Role::Expecting(container)) {
            self.reply(serial, reply);
        }
    }

    fn with_role(&self, role: Role) -> Vec<u64> {
        let found = self.table.iter().filter(|(_, c)| c.role == role);
        found.map(|(serial, _)| *serial).collect()
    }

    /// Answers and hangs up, unless the client may ask for more.
    pub(super) fn reply(&mut self, serial: u64, reply: &ControlReply) {
        self.tell(serial, reply);
        match self.table.get(&serial).map(|client| client.role) {
            Some(Role::Watching) => self.turn_into(serial, Role::Asking),
            _ => self.close(serial),
        }
    }

    /// Hangs up when the client has got all its answers.
    pub(super) fn close(&mut self, serial: u64) {
        self.turn_into(serial, Role::Leaving);
    }

    /// Answers and stays.
    pub(super) fn tell(&mut self, serial: u64, reply: &ControlReply) {
        if let Some(client) = self.table.get_mut(&serial) {
            match protocol::encode(reply) {
                Ok(frame) => client.outbox.extend_from_slice(&frame),
                // Too long: the client hears that the connection ended.
                Err(_) => client.role = Role::Leaving,
            }
            if client.flush().is_err() {
                // It has hung up, which epoll will tell.
                client.outbox.clear();
            }
            self.settle(serial);
        }
    }

    /// Tells those that listen to a container. Who has not read what it was told last has lost nothing: it says the
    /// same.
    pub(super) fn out_of_memory(&mut self, container: ContainerId) {
        for serial in self.with_role(Role::Listening(container)) {
            let unread = |client: &Client| !client.outbox.is_empty();
            if !self.table.get(&serial).is_some_and(unread) {
                self.tell(serial, &ControlReply::OutOfMemory);
            }
        }
    }

    fn turn_into(&mut self, serial: u64, role: Role) {
        if let Some(client) = self.table.get_mut(&serial) {
            client.role = role;
            self.settle(serial);
        }
    }

    /// Accepts all that wait, or as many as there are descriptors and memory for.
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.table.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.last += 1;
            let interest = EpollFlags::EPOLLIN;
            let event = EpollEvent::new(interest, self.last);
            if self.epoll.add(&stream, event).is_ok() {
                let client = Client {
                    stream,
                    decoder: Decoder::new(),
                    descriptors: Vec::new(),
                    outbox: Vec::new(),
                    role: Role::Asking,
                    interest,
                };
                self.table.insert(self.last, client);
            }
        }
    }

    fn ready(&mut self, serial: u64, flags: EpollFlags, told: &mut Vec<ClientEvent>) {
        let Some(client) = self.table.get_mut(&serial) else {
            return;
        };
        if client.ready(serial, flags, told).is_ok() {
            return self.settle(serial);
        }
        match client.role {
            Role::Exec(process) => told.push(ClientEvent::Left(process)),
            Role::Waiting => told.push(ClientEvent::GaveUp(serial)),
            _ => {}
        }
        self.remove(serial);
    }

    /// Closes a client. Another may have waited for its descriptor.
    fn remove(&mut self, serial: u64) {
        self.table.remove(&serial);
        self.accept();
    }

    /// Closes a client that is done, or watches it for what it is there for.
    fn settle(&mut self, serial: u64) {
        let Some(client) = self.table.get_mut(&serial) else {
            return;
        };
        let interest = client.wants();
        let gone = client.role == Role::Leaving && client.outbox.is_empty();
        let mut event = EpollEvent::new(interest, serial);
        if gone
            || (interest != client.interest
                && self.epoll.modify(&client.stream, &mut event).is_err())
        {
            self.remove(serial);
        } else {
            client.interest = interest;
        }
    }
}

impl AsFd for Clients {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Client {
    /// Hang-ups are always reported.
    fn wants(&self) -> EpollFlags {
        let mut interest = match self.role {
            Role::Asking | Role::Admitted(_) | Role::Exec(_) => EpollFlags::EPOLLIN,
            Role::Waiting
            | Role::Listening(_)
            | Role::Expecting(_)
            | Role::Watching
            | Role::Leaving => EpollFlags::empty(),
        };
        if !self.outbox.is_empty() {
            interest |= EpollFlags::EPOLLOUT;
        }
        interest
    }

    /// An error: the client has gone or talks nonsense.
    fn ready(
        &mut self,
        serial: u64,
        flags: EpollFlags,
        told: &mut Vec<ClientEvent>,
    ) -> io::Result<()> {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.flush()?;
        }
        if flags.contains(EpollFlags::EPOLLIN) {
            self.read()?;
        } else if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.role {
            Role::Asking | Role::Admitted(_) => {
                if let Some(request) = self.decoder.take().map_err(io::Error::other)? {
                    if !self.may_ask(&request) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    self.role = match &request.control {
                        Control::Network(_) => Role::Watching,
                        Control::Start(network) if !network.interfaces.is_empty() => Role::Watching,
                        _ => Role::Waiting,
                    };
                    let descriptors = std::mem::take(&mut self.descriptors);
                    told.push(ClientEvent::Asked(serial, request, descriptors));
                }
            }
            Role::Exec(process) => {
                while let Some(control) = self.decoder.take().map_err(io::Error::other)? {
                    told.push(ClientEvent::Steered(process, control));
                }
            }
            Role::Waiting
            | Role::Listening(_)
            | Role::Expecting(_)
            | Role::Watching
            | Role::Leaving => {}
        }
        Ok(())
    }

    /// A container is created by the client that has its number, and by no other.
    fn may_ask(&self, request: &Request<Control>) -> bool {
        let creates = matches!(request.control, Control::Create(_));
        match self.role {
            Role::Admitted(container) => creates && request.container == container,
            _ => !creates,
        }
    }

    /// Reads once. Descriptors count with a request only, and no more than belong to one.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; READ_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let pieces = &mut [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(&self.stream, pieces, &mut ancillary, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            result => result?,
        };
        let came = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let came: Vec<OwnedFd> = came.flatten().collect();
        let asks = matches!(self.role, Role::Asking | Role::Admitted(_));
        let lost = received.flags.contains(ReturnFlags::CTRUNC);
        if asks && lost {
            return self.refuse(LOST);
        }
        let unwanted = !asks && !came.is_empty();
        if unwanted || lost || self.descriptors.len() + came.len() > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.descriptors.extend(came);
        self.decoder.push(&bytes[..received.bytes]);
        Ok(())
    }

    /// Says why nothing will be done, and hangs up.
    fn refuse(&mut self, why: &str) -> io::Result<()> {
        let reply = ControlReply::Failed(why.to_owned());
        let frame = protocol::encode(&reply).map_err(io::Error::other)?;
        self.outbox.extend_from_slice(&frame);
        self.role = Role::Leaving;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;

    use super::*;

    /// In a process of its own, which has few descriptors.
    const ALONE: &str = "CHITON_TEST_WITH_FEW_DESCRIPTORS";

    #[test]
    fn who_cannot_be_accepted_waits_until_another_leaves() {
        if std::env::var_os(ALONE).is_some() {
            return without_descriptors();
        }
        let name = "machine::clients::tests::who_cannot_be_accepted_waits_until_another_leaves";
        let text = "ulimit -n 64 && exec \"$0\" --exact \"$1\" --test-threads 1";
        let mut shell = Command::new("sh");
        shell
            .args(["-c", text])
            .arg(std::env::current_exe().unwrap());
        let output = shell.arg(name).env(ALONE, "").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    fn without_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut clients = Clients::new(listener).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        clients.handle_events();
        assert_eq!(clients.table.len(), 1);

        let late = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        let mut all = Vec::new();
        while let Ok(taken) = late.try_clone() {
            all.push(taken);
        }
        connect(late.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        assert!(clients.is_ready());
        clients.handle_events();
        assert_eq!(clients.table.len(), 1, "there is no descriptor");
        assert!(!clients.is_ready(), "it would be tried again at once");

        // It leaves its own and, as both ends are here, the other one.
        drop(first);
        clients.handle_events();
        let serials: Vec<u64> = clients.table.keys().copied().collect();
        assert_eq!(serials, [2], "the late one is there");
        drop(all);
    }

    #[test]
    fn who_sends_descriptors_that_do_not_arrive_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut clients = Clients::new(UnixListener::bind(&path).unwrap()).unwrap();
        clients.listener.set_nonblocking(true).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        clients.handle_events();
        // The kernel drops what there is no room for just as what a policy denies.
        let many = [client.as_fd(); DESCRIPTORS_MAX + 16];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX + 16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        let bytes = [IoSlice::new(b"x")];
        sendmsg(&client, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        assert!(clients.handle_events().is_empty());
        clients.handle_events();
        let reply = protocol::read(&mut client).unwrap();
        assert_eq!(reply, Some(ControlReply::Failed(LOST.to_owned())));
        assert!(clients.table.is_empty());
    }

    impl Clients {
        fn is_ready(&self) -> bool {
            let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
        }
    }
}
