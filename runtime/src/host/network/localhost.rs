//! Connections to localhost in the container's network namespace on this host: those of `kubectl port-forward`, for
//! which the engine enters the namespace and connects, and of whoever else does so. The container's programs listen in
//! the guest, so that nobody would be there.
//!
//! ```text
//!   a process in the namespace ── connect ──> 127.0.0.1 or ::1, any port
//!                                                 │ sk_lookup
//!                                                 v
//!                                         one listening socket ──> the machine process ── vsock ──> the guest
//! ```
//! A program of the kernel's (BPF, of the type sk_lookup) leads TCP connections to these two addresses, whatever the
//! port, to one socket, which has the port of each as its own address. Only processes of the host come here: what the
//! network sends is never for these addresses, and goes to the guest anyway. Docker's name server has another one,
//! 127.0.0.11. The program is attached for as long as its link is open: nothing is left when the machine process ends,
//! however it does.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, listen, setsockopt, socket, sockopt,
};

use super::bpf;
use crate::error::{Doing, SystemError};

/// How many connections may wait until they are accepted.
const WAITING_MAX: i32 = 64;

/// The end of such connections. Nothing here blocks.
pub(crate) struct Localhost {
    listener: TcpListener,
    /// What leads them here.
    _link: OwnedFd,
}

impl Localhost {
    /// Takes all connections to localhost in the network namespace that the calling thread is in, as long as the result
    /// lives.
    ///
    /// # Errors
    /// Those of the system calls, as on a kernel without BPF.
    pub(crate) fn new() -> Result<Localhost, SystemError> {
        let listener = listener().doing("listen")?;
        let map = bpf::map_of(&listener).doing("create a map of a socket")?;
        let namespace =
            File::open("/proc/thread-self/ns/net").doing("open the network namespace")?;
        let program = program(bpf::number(map.as_fd()));
        let link = bpf::attach(&program, namespace).doing("attach an sk_lookup program")?;
        Ok(Localhost {
            listener,
            _link: link,
        })
    }

    /// The next connection that waits and where it was meant to go.
    ///
    /// # Errors
    /// Those of accept(2), nobody being there among them.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let connection = match self.listener.accept() {
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                result => result?.0,
            };
            if let Ok(address) = connection.local_addr() {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                return Ok((connection, address));
            }
        }
    }
}

impl AsFd for Localhost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A socket that listens to both families, as far as this kernel has them, at a port that the kernel chooses.
fn listener() -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let of = |family| socket(family, SockType::Stream, flags, None);
    let listener = match of(AddressFamily::Inet6) {
        Err(Errno::EAFNOSUPPORT) => of(AddressFamily::Inet)?,
        result => {
            let both = result?;
            setsockopt(&both, sockopt::Ipv6V6Only, &false)?;
            both
        }
    };
    // What is accepted has it as well.
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    listen(&listener, Backlog::new(WAITING_MAX)?)?;
    Ok(listener.into())
}

/// Fields of `struct bpf_sk_lookup` (linux/bpf.h): addresses in network byte order, those of the other family 0.
const PROTOCOL: i16 = 12;
const REMOTE_IP4: i16 = 16;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: [i16; 4] = [44, 48, 52, 56];

/// Functions of the kernel, and the answer by which it goes on (linux/bpf.h).
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

/// Operations (linux/bpf_common.h, linux/bpf.h).
const LOAD: u8 = 0x61;
const STORE: u8 = 0x62;
const LOAD_LONG: u8 = 0x18;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const AND: u8 = 0x57;
const JUMP: u8 = 0x05;
const IF_EQUAL: u8 = 0x15;
const UNLESS_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// What [`LOAD_LONG`] takes its number for: a map's.
const MAP: u8 = 1;

/// The register of the stack's end; those of the answer and of arguments are 0 and 1 to 5, and 6 and 7 are kept by calls.
const STACK: u8 = 10;

/// A place in the program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Ip6,
    Found,
    Pass,
}

/// A line of the program.
#[derive(Clone, Copy)]
enum Line {
    /// `struct bpf_insn` (linux/bpf.h): what to do, with which registers, an offset and a number.
    Do(u8, [u8; 2], i16, i32),
    /// The same with a place in place of the offset.
    Jump(u8, [u8; 2], Place, i32),
    /// Names the next one.
    Here(Place),
}

/// Loads a field of the context.
fn load(field: i16) -> Line {
    Line::Do(LOAD, [2, 1], field, 0)
}

/// Goes on at another place unless what has been loaded is this.
fn unless(value: i32, place: Place) -> Line {
    Line::Jump(UNLESS_EQUAL, [2, 0], place, value)
}

fn call(function: i32) -> Line {
    Line::Do(CALL, [0, 0], 0, function)
}

fn copy(to: u8, from: u8) -> Line {
    Line::Do(COPY, [to, from], 0, 0)
}

/// The program, for the socket that is in a map.
fn program(map: i32) -> Vec<u64> {
    use Line::{Do, Here, Jump};
    use Place::{Found, Ip6, Pass};
    // As a field is read.
    let word = i32::from_ne_bytes;
    let ip6 = LOCAL_IP6.map(load);
    encoded(&[
        load(PROTOCOL),
        unless(libc::IPPROTO_TCP, Pass),
        load(LOCAL_IP4),
        unless(word(Ipv4Addr::LOCALHOST.octets()), Ip6),
        load(REMOTE_IP4),
        Do(AND, [2, 0], 0, word([255, 0, 0, 0])),
        unless(word([127, 0, 0, 0]), Pass),
        Jump(JUMP, [0, 0], Found, 0),
        Here(Ip6),
        ip6[0],
        unless(0, Pass),
        ip6[1],
        unless(0, Pass),
        ip6[2],
        unless(0, Pass),
        ip6[3],
        unless(word([0, 0, 0, 1]), Pass),
        Here(Found),
        copy(6, 1),
        Do(STORE, [STACK, 0], -4, 0),
        copy(2, STACK),
        Do(ADD, [2, 0], 0, -4),
        Do(LOAD_LONG, [1, MAP], 0, map),
        // Its second half.
        Do(0, [0, 0], 0, 0),
        call(MAP_LOOKUP_ELEM),
        Jump(IF_EQUAL, [0, 0], Pass, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        Do(SET, [3, 0], 0, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        Here(Pass),
        Do(SET, [0, 0], 0, SK_PASS),
        Do(EXIT, [0, 0], 0, 0),
    ])
}

fn encoded(lines: &[Line]) -> Vec<u64> {
    let is_here = |line: &&Line| matches!(line, Line::Here(_));
    let distance = |from: usize, place: Place| {
        let rest = &lines[from + 1..];
        let to = rest
            .iter()
            .position(|line| matches!(line, Line::Here(here) if *here == place));
        let to = to.unwrap_or(rest.len());
        to - rest[..to].iter().filter(is_here).count()
    };
    let mut all = Vec::with_capacity(lines.len());
    for (at, line) in lines.iter().enumerate() {
        let (operation, [to, from], offset, number) = match *line {
            Line::Do(operation, registers, offset, number) => {
                (operation, registers, offset, number)
            }
            Line::Jump(operation, registers, place, number) => {
                let offset = i16::try_from(distance(at, place)).unwrap_or(i16::MAX);
                (operation, registers, offset, number)
            }
            Line::Here(_) => continue,
        };
        all.push(
            u64::from(operation)
                | u64::from(to) << 8
                | u64::from(from) << 12
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(number.cast_unsigned()) << 32,
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use super::*;

    const TCP: u32 = 6;
    const UDP: u32 = 17;
    const NUMBER: i32 = 77;

    /// What the kernel has of a packet.
    fn context(protocol: u32, remote: IpAddr, local: IpAddr) -> [u8; 68] {
        let mut bytes = [0; 68];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(12, &protocol.to_ne_bytes());
        match (remote, local) {
            (IpAddr::V4(remote), IpAddr::V4(local)) => {
                put(8, &2_u32.to_ne_bytes());
                put(16, &remote.octets());
                put(40, &local.octets());
            }
            (IpAddr::V6(remote), IpAddr::V6(local)) => {
                put(8, &10_u32.to_ne_bytes());
                put(20, &remote.octets());
                put(44, &local.octets());
            }
            _ => panic!("of two families"),
        }
        bytes
    }

    /// Runs a program on a context, with `found` for the socket that the map has; the functions called and the answer.
    fn run(program: &[u64], context: &[u8], found: u64) -> (Vec<i32>, u64) {
        let (mut registers, mut calls, mut stack, mut at) =
            ([0_u64; 11], Vec::new(), HashMap::new(), 0);
        let context_address = 1_u64 << 40;
        registers[1] = context_address;
        registers[usize::from(STACK)] = 1 << 41;
        loop {
            let line = program[at];
            at += 1;
            let [operation, pair, o0, o1, n0, n1, n2, n3] = line.to_le_bytes();
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let offset = i16::from_le_bytes([o0, o1]);
            let number = i32::from_le_bytes([n0, n1, n2, n3]);
            // As the kernel extends it.
            let wide = i64::from(number).cast_unsigned();
            let mut jump = |when: bool| {
                at += if when {
                    usize::try_from(offset).unwrap()
                } else {
                    0
                }
            };
            match operation {
                LOAD => {
                    assert_eq!(registers[from], context_address);
                    let field = usize::try_from(offset).unwrap();
                    let bytes = context[field..field + 4].try_into().unwrap();
                    registers[to] = u32::from_ne_bytes(bytes).into();
                }
                STORE => {
                    stack.insert(registers[to].wrapping_add_signed(offset.into()), number);
                }
                LOAD_LONG => {
                    assert_eq!((from, number, program[at]), (usize::from(MAP), NUMBER, 0));
                    registers[to] = wide;
                    at += 1;
                }
                COPY => registers[to] = registers[from],
                SET => registers[to] = wide,
                ADD => registers[to] = registers[to].wrapping_add_signed(number.into()),
                AND => registers[to] &= wide,
                JUMP => jump(true),
                IF_EQUAL => jump(registers[to] == wide),
                UNLESS_EQUAL => jump(registers[to] != wide),
                CALL => {
                    match number {
                        MAP_LOOKUP_ELEM => {
                            assert_eq!((registers[1], stack[&registers[2]]), (NUMBER as u64, 0));
                        }
                        SK_ASSIGN => assert_eq!(registers[1..4], [context_address, found, 0]),
                        _ => assert_eq!(registers[1], found),
                    }
                    calls.push(number);
                    registers[..6].fill(u64::MAX);
                    registers[0] = found;
                }
                EXIT => return (calls, registers[0]),
                _ => panic!("{operation:#x}"),
            }
        }
    }

    #[test]
    fn localhost_is_led_here_and_nothing_else() {
        let program = program(NUMBER);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (protocol, remote, local, here) in [
            (TCP, "127.0.0.1", "127.0.0.1", true),
            (TCP, "127.3.2.1", "127.0.0.1", true),
            (TCP, "::1", "::1", true),
            (TCP, "fd00::1", "::1", true),
            (UDP, "127.0.0.1", "127.0.0.1", false),
            (UDP, "::1", "::1", false),
            // Docker's name server, an address of the container, and what comes from elsewhere.
            (TCP, "127.0.0.1", "127.0.0.11", false),
            (TCP, "10.0.0.2", "10.0.0.2", false),
            (TCP, "10.0.0.1", "127.0.0.1", false),
            (TCP, "::1", "::2", false),
            (TCP, "::1", "::1:0:1", false),
            (TCP, "::1", "0:0:1::1", false),
            (TCP, "::1", "1::1", false),
            (TCP, "::1", "::", false),
        ] {
            let context = context(protocol, ip(remote), ip(local));
            let (calls, answer) = run(&program, &context, 5);
            let expected = [MAP_LOOKUP_ELEM, SK_ASSIGN, SK_RELEASE];
            let expected = if here { &expected[..] } else { &[] };
            assert_eq!(calls, expected, "{protocol} {remote} {local}");
            assert_eq!(answer, 1, "{protocol} {remote} {local}");
        }
    }

    #[test]
    fn without_its_socket_it_leaves_all_as_it_is() {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let context = context(TCP, localhost, localhost);
        let (calls, answer) = run(&program(NUMBER), &context, 0);
        assert_eq!((calls, answer), (vec![MAP_LOOKUP_ELEM], 1));
    }
}
