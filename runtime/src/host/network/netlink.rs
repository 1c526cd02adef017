//! rtnetlink(7): messages as bytes, and a socket for them.
//!
//! There is no typed model of the messages, such as the netlink-packet crates have: few attributes are looked at, and
//! what the guest is to have is what the host's kernel said, attributes that nobody here knows included.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// Size of `struct nlmsghdr` (linux/netlink.h).
const HEADER: usize = 16;

/// Size of `struct nlattr` (linux/netlink.h).
const ATTRIBUTE_HEADER: usize = 4;

/// What is said about an attribute besides its type (`NLA_TYPE_MASK` of linux/netlink.h).
const TYPE_MASK: u16 = 0x3fff;

/// Flags of a request (linux/netlink.h).
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// A dump that changes went on during (`NLM_F_DUMP_INTR`).
const INTERRUPTED: u16 = 0x10;

/// Types of messages about messages (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// More than the kernel puts into one datagram of a dump (`NLMSG_GOODSIZE` and af_netlink.c, `netlink_dump`: 32 KiB).
const DATAGRAM: usize = 64 << 10;

/// How often a dump is repeated because of changes that went on meanwhile.
const ATTEMPTS: usize = 16;

/// A message being written.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message with the fixed part of its body.
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        Message(bytes)
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Message {
        self.push(kind, value);
        self
    }

    /// Adds an attribute.
    pub(super) fn push(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&attribute(kind, value));
    }

    /// The message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// An attribute, for instance inside of another one.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A C string.
pub(super) fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// The attributes in a piece of a message: type and value. Ends at what is no attribute.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, kind) = (u16_at(rest, 0)?, u16_at(rest, 2)?);
        let value = rest.get(ATTRIBUTE_HEADER..length.into())?;
        let next = usize::from(length).next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// The value of the attribute of a type.
pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A number in host byte order.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

/// A number in host byte order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// A number in host byte order.
pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

/// A socket to the network configuration of the namespace it was opened in.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Socket> {
        let route = SockProtocol::NetlinkRoute;
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Socket(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            route,
        )?))
    }

    /// Opens a socket in the namespace of the calling thread that hears of changes: a bit for each of `RTNLGRP_*`
    /// (linux/rtnetlink.h), less one.
    pub(super) fn listen(groups: u32) -> io::Result<Socket> {
        let socket = Socket::open()?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(socket)
    }

    /// What a socket that listens has heard by now, given to `look`: type and body. Returns whether there was more than
    /// the socket could hold.
    pub(super) fn heard(&self, mut look: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        let mut datagram = vec![0; DATAGRAM];
        let mut lost = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    messages(&datagram[..length]).for_each(|(kind, _, body)| look(kind, body))
                }
                Err(Errno::EAGAIN) => return Ok(lost),
                Err(Errno::ENOBUFS) => lost = true,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends a request that is answered by one message: its body.
    pub(super) fn get(&self, message: Message) -> io::Result<Vec<u8>> {
        self.send(message)?;
        let mut datagram = vec![0; DATAGRAM];
        match messages(self.receive(&mut datagram)?).next() {
            Some((ERROR, _, body)) => Err(verdict(body).err().unwrap_or_else(invalid)),
            Some((_, _, body)) => Ok(body.to_owned()),
            None => Err(invalid()),
        }
    }

    /// Sends a request that asks for an acknowledgement, and waits for it.
    pub(super) fn ask(&self, message: Message) -> io::Result<()> {
        self.send(message)?;
        let mut datagram = vec![0; DATAGRAM];
        let answer = self.receive(&mut datagram)?;
        for (kind, _, body) in messages(answer) {
            if kind == ERROR {
                return verdict(body);
            }
        }
        Err(invalid())
    }

    /// All that the kernel has of a kind: the bodies of its messages. `body` is the fixed part of the request's.
    pub(super) fn dump(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..ATTEMPTS {
            self.send(Message::new(kind, REQUEST | DUMP, body))?;
            if let Some(found) = self.dumped()? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the configuration keeps changing"))
    }

    /// The answers to a dump request; `None` if they do not fit together.
    fn dumped(&self) -> io::Result<Option<Vec<Vec<u8>>>> {
        let mut found = Vec::new();
        let mut consistent = true;
        let mut datagram = vec![0; DATAGRAM];
        loop {
            for (kind, flags, body) in messages(self.receive(&mut datagram)?) {
                consistent &= flags & INTERRUPTED == 0;
                match kind {
                    DONE => return Ok(consistent.then_some(found)),
                    ERROR => verdict(body)?,
                    _ => found.push(body.to_owned()),
                }
            }
        }
    }

    fn send(&self, message: Message) -> io::Result<()> {
        let message = message.finish();
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    fn receive<'d>(&self, datagram: &'d mut [u8]) -> io::Result<&'d [u8]> {
        // With MSG_TRUNC it says the length that the datagram has.
        let length = recv(self.0.as_raw_fd(), datagram, MsgFlags::MSG_TRUNC)?;
        let datagram = datagram.get(..length);
        datagram.ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The messages in a datagram: type, flags and body.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let (kind, flags) = (u16_at(rest, 4)?, u16_at(rest, 6)?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, body))
    })
}

/// What a `struct nlmsgerr` (linux/netlink.h) says.
fn verdict(body: &[u8]) -> io::Result<()> {
    match i32_at(body, 0) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(invalid()),
    }
}

/// The kernel has said something that is no answer.
fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = attribute(3, &string("lo"));
        let message = Message::new(16, REQUEST | ACK, &[7; 16])
            .with(1, &inner)
            .with(2 | 0x8000, &5_u32.to_ne_bytes())
            .finish();
        let read: Vec<_> = messages(&message).collect();
        let (kind, flags, body) = read[0];
        assert_eq!(
            (read.len(), kind, flags, &body[..16]),
            (1, 16, 5, &[7; 16][..])
        );
        let read: Vec<_> = attributes(&body[16..]).collect();
        assert_eq!(read, [(1, &inner[..]), (2, &5_u32.to_ne_bytes()[..])]);
        assert_eq!(find(find(&body[16..], 1).unwrap(), 3).unwrap(), b"lo\0");
        assert_eq!(find(&body[16..], 9), None);
    }

    #[test]
    fn broken_lengths_end_the_list() {
        for broken in [
            &[][..],
            &[3, 0, 1, 0],
            &[0, 0, 1, 0],
            &[8, 0, 1, 0, 1],
            &[255, 255, 1, 0],
        ] {
            assert_eq!(attributes(broken).count(), 0, "{broken:?}");
        }
        // The last one need not be padded.
        assert_eq!(
            attributes(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(),
            [(1, &[9][..])]
        );
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut message = Message::new(1, 0, &[]).finish();
            message[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&message).count(), 0, "{length}");
        }
    }

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::open().unwrap();
        // RTM_GETLINK: there is a loopback interface everywhere.
        let links = socket.dump(18, &[0; 16]).unwrap();
        let name = |link: &Vec<u8>| find(&link[16..], 3).map(<[u8]>::to_owned);
        assert!(links.iter().any(|link| name(link) == Some(string("lo"))));
        let error = socket.ask(Message::new(u16::MAX, REQUEST | ACK, &[0; 16]));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
