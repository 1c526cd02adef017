//! The system calls that no safe wrapper offers.

#![allow(unsafe_code)]

use std::io;
use std::ptr;

/// linux/ptrace.h
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// An instruction of a seccomp filter: `struct sock_filter` (linux/filter.h).
pub(super) type Instruction = libc::sock_filter;

/// The instructions of a thread's seccomp filter, by the order in which they were installed. The thread must be
/// stopped by the calling thread's ptrace.
///
/// # Errors
/// ENOENT when there are not so many; EINVAL when there is none at all, or when the kernel cannot show it.
pub(super) fn seccomp_filter(thread: i32, index: usize) -> io::Result<Vec<Instruction>> {
    // SAFETY: with no address to write to the kernel only says how many instructions there are.
    let length = unsafe { get_filter(thread, index, ptr::null_mut()) }?;
    let none = Instruction {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut program = vec![none; length];
    // SAFETY: the kernel writes `length` instructions, which is the length of the vector: a filter never changes, and
    // the thread, being stopped, installs no other.
    let written = unsafe { get_filter(thread, index, program.as_mut_ptr()) }?;
    program.truncate(written);
    Ok(program)
}

/// How many instructions the filter has.
///
/// # Safety
/// `program` is null, or has room for all of them.
unsafe fn get_filter(thread: i32, index: usize, program: *mut Instruction) -> io::Result<usize> {
    // SAFETY: the caller has promised what the kernel writes to is there; the request touches no other memory.
    let length = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, thread, index, program) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}
