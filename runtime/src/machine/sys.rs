//! The system calls of the machine process that no safe wrapper offers. The only unsafe code of this module.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::MemoryPolicy;

/// linux/sched.h; the libc crate's constant is an int, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone_process`] returns, once in each process.
pub(crate) enum Cloned {
    /// In the calling process: the pid of the new one.
    Parent(i32),
    /// In the new process.
    Child,
}

/// Copies the process as fork(2) does, the copy being a member of `cgroup` (a cgroup v2 directory) from its first instruction.
///
/// # Errors
/// `EINVAL` when the process has more than one thread, as the copy could find locks held by threads it does not have; else clone3's.
pub(crate) fn clone_process(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: clone_args is a plain C struct for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(cgroup) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child has a copy of everything, the stack included, and the check above established that no
    // other thread's state is copied half-way; args outlives the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) if pid > 0 => Ok(Cloned::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A change that mount_setattr(2) makes: MOUNT_ATTR_* bits, one MS_* propagation type or 0, and a user namespace for MOUNT_ATTR_IDMAP.
#[derive(Default, Clone, Copy)]
pub(super) struct MountChange<'a> {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) propagation: u64,
    pub(super) user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the mount whose root is `mount`, and all mounts below it if `recursive`.
pub(super) fn mount_setattr(
    mount: BorrowedFd<'_>,
    change: &MountChange<'_>,
    recursive: bool,
) -> io::Result<()> {
    let user_namespace = change.user_namespace.map_or(0, |fd| fd.as_raw_fd());
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: u64::from(user_namespace.unsigned_abs()),
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, attr outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// set_mempolicy(2): for the calling thread and those that it creates.
pub(super) fn set_memory_policy(policy: &MemoryPolicy) -> io::Result<()> {
    // The kernel takes one bit less than is said (mm/mempolicy.c, get_nodes).
    let bits = policy.nodes.len() * 64 + 1;
    let nodes = match &policy.nodes[..] {
        [] => std::ptr::null(),
        nodes => nodes.as_ptr(),
    };
    // SAFETY: the kernel reads `bits - 1` bits, which are there and outlive the call, or none where the pointer is null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            policy.mode,
            nodes,
            if nodes.is_null() { 0 } else { bits },
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor but `keep`.
///
/// # Safety
/// No value that owns or borrows one of the other descriptors may be used or dropped afterwards.
pub(crate) unsafe fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_fd().as_raw_fd().unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if first < fd {
            // SAFETY: the caller has promised that nothing uses the descriptors in this range any more.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Lets go of the memory behind a constant that is not needed any more. Reading it again brings it back from the program's file.
pub(super) fn release(constant: &'static [u8]) {
    const PAGE: usize = 4096;
    let range = constant.as_ptr_range();
    let first = range.start.addr().next_multiple_of(PAGE);
    let last = range.end.addr() / PAGE * PAGE;
    if first < last {
        let start = range.start.with_addr(first).cast_mut().cast();
        // SAFETY: the pages lie wholly within a constant of the program, a private mapping of its file that is never written, so the
        // kernel drops nothing but its cached copies of them. Failure leaves them where they are.
        let _ = unsafe { libc::madvise(start, last - first, libc::MADV_DONTNEED) };
    }
}

/// Gives a signal its default action back.
pub(crate) fn default_action(signal: Signal) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process. SIGKILL and SIGSTOP have no other, and setting them fails.
    let _ = unsafe { sigaction(signal, &default) };
}

/// Ends the process at once: no destructors, no exit handlers.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no obligation; nothing in this process needs to be put in order.
    unsafe { libc::_exit(code.into()) }
}
