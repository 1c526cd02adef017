//! bpf(2), as far as [`localhost`](super::localhost) needs it.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

// Commands, a type of maps, a type of programs and where these are attached (linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// What is asked of programs that call the kernel's functions for the GPL alone: this one calls none.
const LICENSE: &CStr = c"Apache-2.0";

/// Creates a map of one socket, and puts a socket there.
pub(super) fn map_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
    }
    #[repr(C)]
    struct Update {
        map: RawNumber,
        padding: u32,
        key: *const u32,
        value: *const RawNumber,
        flags: u64,
    }
    let create = Create {
        kind: BPF_MAP_TYPE_SOCKMAP,
        // Both are numbers of 32 bits.
        key_size: 4,
        value_size: 4,
        entries: 1,
    };
    // SAFETY: `create` is the beginning of `union bpf_attr` for this command and holds no pointer.
    let map = unsafe { make(BPF_MAP_CREATE, &create) }?;
    let (key, value) = (0_u32, socket.as_fd().as_raw_fd());
    let update = Update {
        map: map.as_raw_fd(),
        padding: 0,
        key: &raw const key,
        value: &raw const value,
        flags: 0,
    };
    // SAFETY: `update` is the beginning of `union bpf_attr` for this command; its pointers are to a key and a value of
    // the map's sizes, which live through the call and are only read.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &update) }?;
    Ok(map)
}

/// Attaches a program that chooses a socket for what comes in to a network namespace, for as long as the result is open.
pub(super) fn attach(program: &[u64], namespace: impl AsFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: *const u64,
        license: *const libc::c_char,
        log: [u64; 2],
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attached: u32,
    }
    #[repr(C)]
    struct Link {
        program: RawNumber,
        target: RawNumber,
        attached: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr(),
        license: LICENSE.as_ptr(),
        log: [0; 2],
        kernel: 0,
        flags: 0,
        name: *b"chiton\0\0\0\0\0\0\0\0\0\0",
        interface: 0,
        attached: BPF_SK_LOOKUP,
    };
    // SAFETY: `load` is the beginning of `union bpf_attr` for this command; its pointers are to `count` instructions of
    // eight bytes and to a C string, which live through the call and are only read.
    let program = unsafe { make(BPF_PROG_LOAD, &load) }?;
    let link = Link {
        program: program.as_raw_fd(),
        target: namespace.as_fd().as_raw_fd(),
        attached: BPF_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: `link` is the beginning of `union bpf_attr` for this command and holds no pointer.
    unsafe { make(BPF_LINK_CREATE, &link) }
}

/// The number by which a program names a map.
pub(super) fn number(map: BorrowedFd<'_>) -> i32 {
    map.as_raw_fd()
}

type RawNumber = i32;

/// A command that makes a descriptor.
///
/// # Safety
/// As for [`call`].
unsafe fn make<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let made = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has made this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` must be the beginning of `union bpf_attr` as the command has it, and its pointers valid for that.
unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<RawNumber> {
    let attributes: *const T = attributes;
    // SAFETY: the kernel reads as many bytes as it is told of, which `attributes` has; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    let result = RawNumber::try_from(result).map_err(io::Error::other)?;
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
