//! The device against a driver in guest memory and real descriptors.

mod data;
mod demand;
mod driver;
mod hostile;
mod life;
mod ports;
mod tcp;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::connection::BUF_ALLOC;
use super::packet::{HEADER_SIZE, MAX_PAYLOAD, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::streams::{MAX_REFUSALS, MAX_STREAMS};
use super::{Broken, Error, HostStream, Sink, Source, sys};
use driver::{Driver, GUEST_PORT, PORT};

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = io::pipe().unwrap();
    (reader.into(), writer.into())
}

fn source(fd: impl Into<OwnedFd>) -> HostStream {
    HostStream {
        source: Some(Source::new(fd.into()).unwrap()),
        sink: None,
    }
}

fn sink(fd: impl Into<OwnedFd>) -> HostStream {
    HostStream {
        source: None,
        sink: Some(Sink::new(fd.into()).unwrap()),
    }
}

/// Both sides of a socket, and the peer.
fn socket() -> (HostStream, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    let stream = HostStream {
        source: Some(Source::new(ours.try_clone().unwrap().into()).unwrap()),
        sink: Some(Sink::new(ours.into()).unwrap()),
    };
    (stream, peer)
}

/// Bytes in which every displacement shows.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(len);
    for _ in 0..len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push(state.to_be_bytes()[0]);
    }
    bytes
}

/// What can be read from `fd` without waiting for more.
fn available(fd: &OwnedFd) -> Vec<u8> {
    let mut file = File::from(fd.try_clone().unwrap());
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while sys::ready(fd.as_fd(), libc::POLLIN).unwrap() {
        match file.read(&mut chunk).unwrap() {
            0 => break,
            count => all.extend_from_slice(&chunk[..count]),
        }
    }
    all
}

/// Whether the writers of the pipe `fd` are gone.
fn at_end(fd: &OwnedFd) -> bool {
    sys::ready(fd.as_fd(), libc::POLLIN).unwrap()
        && File::from(fd.try_clone().unwrap()).read(&mut [0]).unwrap() == 0
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}
