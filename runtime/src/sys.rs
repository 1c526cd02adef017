//! The system calls that no safe wrapper offers: the only unsafe code of this crate.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use protocol::Exit;

/// linux/sched.h; the libc crate's constant is an int, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Sends any signal, real-time ones included; the process may have ended.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of this process.
    let _ = unsafe { libc::kill(pid, signal) };
}

/// The type of the namespace that a descriptor is of, as its `CLONE_NEW*` flag (ioctl_ns(2)).
pub(crate) fn namespace_type(namespace: impl AsFd) -> io::Result<i32> {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory.
    let kind = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kind)
}

/// Takes a descriptor that has just come by SCM_RIGHTS.
#[cfg(test)]
pub(crate) fn received(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has made the descriptor for the receiver, who gives it away here and only once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes a descriptor that the caller of the program has left open in it, once. From now on no program that is executed
/// gets it.
///
/// # Errors
/// EBADF when there is none.
pub(crate) fn adopt_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // All that this program opens is close-on-exec, and all that it inherits is not.
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 || number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and, as it was inherited, nothing in this program owns it; being close-on-exec
    // now, it cannot be taken again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a tap of an open `/dev/net/tun`, in the network namespace it was opened in (linux/if_tun.h): for Ethernet
/// frames with a `virtio_net_hdr` in front. It is there until the last descriptor of it is closed.
pub(crate) fn make_tap(device: OwnedFd, name: &str) -> io::Result<OwnedFd> {
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// A moment, in seconds since 1970-01-01T00:00:00Z, in this host's time zone; all zero if its year cannot be told.
pub(crate) fn local_time(seconds: u64) -> libc::tm {
    let seconds = libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX);
    // SAFETY: a tm is numbers and a pointer that may be null, so all zero is one.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that outlive the call; the time zone's name that it points the result to
    // lives as long as the program.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut local) };
    local
}

/// KVM by its open device.
pub(crate) fn kvm(device: File) -> Kvm {
    // SAFETY: the descriptor is open and owned by nobody else from here on.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Gives a virtual machine zeroed memory of `length` bytes, a multiple of the page size, from guest address 0 on, that
/// starts with `code`.
///
/// The memory stays mapped until the program ends, so that the machine cannot outlive it.
pub(crate) fn give_memory(vm: &VmFd, code: &[u8], length: usize) -> io::Result<()> {
    if code.len() > length {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice; no existing memory is affected.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is writable, new and of `length` bytes, which is compared with the length of `code` above.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), start.cast::<u8>(), code.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: length as u64,
        userspace_addr: start as u64,
    };
    // SAFETY: the region is exactly the mapping made above, which is never unmapped and which nothing else refers to.
    Ok(unsafe { vm.set_user_memory_region(region) }?)
}

/// What [`clone_process`] returns, once in each process.
pub(crate) enum Cloned {
    /// In the calling process: the pid of the new one.
    Parent(i32),
    /// In the new process.
    Child,
}

/// Copies the process as fork(2) does, the copy being a member of `cgroup` (a cgroup v2 directory) from its first
/// instruction.
///
/// # Errors
/// `EINVAL` when the process has more than one thread, as the copy could find locks held by threads it does not have;
/// else clone3's.
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
    // SAFETY: without CLONE_VM the child has a copy of everything, the stack included, and the check above established
    // that no other thread's state is copied half-way; args outlives the call.
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

/// Makes a process in a user namespace of its own that ends at once. Until it is waited for, it stands for the namespace
/// in `/proc`, where the maps can be written and the namespace opened. It costs a fraction of a copy of this process,
/// whose memory it shares meanwhile.
pub(crate) fn ended_in_user_namespace() -> io::Result<i32> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_NEWUSER | libc::SIGCHLD;
    let pid: i64;
    // SAFETY: clone(2) takes integers, and null for the rest. The child has this thread's stack, which the kernel lets it
    // have to itself (CLONE_VFORK): it touches no memory and ends within these instructions. In this thread only the
    // registers named change.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor edi, edi",
            "mov eax, {exit}",
            "syscall",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone => pid,
            inlateout("rdi") i64::from(flags) => _,
            in("rsi") 0_u64,
            in("rdx") 0_u64,
            in("r10") 0_u64,
            in("r8") 0_u64,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(error) => Err(io::Error::from_raw_os_error(-error)),
        Err(e) => Err(io::Error::other(e)),
    }
}

/// A change that mount_setattr(2) makes: MOUNT_ATTR_* bits, one MS_* propagation type or 0, and a user namespace for
/// MOUNT_ATTR_IDMAP.
#[derive(Default, Clone, Copy)]
pub(crate) struct MountChange<'a> {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the mount whose root is `mount`, and all mounts below it if `recursive`.
pub(crate) fn mount_setattr(
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

/// What set_mempolicy(2) takes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// MPOL_* and MPOL_F_* of linux/mempolicy.h.
    pub(crate) mode: i32,
    /// The nodes as bits, node 0 being the lowest of the first word.
    pub(crate) nodes: Vec<u64>,
}

/// set_mempolicy(2): for the calling thread and those that it creates.
pub(crate) fn set_memory_policy(policy: &MemoryPolicy) -> io::Result<()> {
    // The kernel takes one bit less than is said (mm/mempolicy.c, get_nodes).
    let bits = policy.nodes.len() * 64 + 1;
    let nodes = match &policy.nodes[..] {
        [] => std::ptr::null(),
        nodes => nodes.as_ptr(),
    };
    // SAFETY: the kernel reads `bits - 1` bits, which are there and outlive the call, or none where the pointer is
    // null.
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

/// Joins a session keyring of its own, empty and without a name (keyctl(2)). A kernel without keys has none to join.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: without a name the kernel reads no memory of this process.
    let keyring =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) };
    match io::Error::last_os_error() {
        e if keyring < 0 && e.raw_os_error() != Some(libc::ENOSYS) => Err(e),
        _ => Ok(()),
    }
}

/// The version of Landlock's interface that the kernel offers.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP when it offers none.
pub(crate) fn landlock_version() -> io::Result<i64> {
    /// linux/landlock.h
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let (attributes, size) = (std::ptr::null::<libc::c_void>(), 0_usize);
    // SAFETY: a query of the version takes no attributes and touches no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attributes,
            size,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(version)
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

/// Lets go of the memory behind a constant that is not needed any more. Reading it again brings it back from the
/// program's file.
pub(crate) fn release(constant: &'static [u8]) {
    const PAGE: usize = 4096;
    let range = constant.as_ptr_range();
    let first = range.start.addr().next_multiple_of(PAGE);
    let last = range.end.addr() / PAGE * PAGE;
    if first < last {
        let start = range.start.with_addr(first).cast_mut().cast();
        // SAFETY: the pages lie wholly within a constant of the program, a private mapping of its file that is never
        // written, so the kernel drops nothing but its cached copies of them. Failure leaves them where they are.
        let _ = unsafe { libc::madvise(start, last - first, libc::MADV_DONTNEED) };
    }
}

/// Gives a signal its default action back.
pub(crate) fn default_action(signal: Signal) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process. SIGKILL and SIGSTOP have no other, and setting them
    // fails.
    let _ = unsafe { sigaction(signal, &default) };
}

/// Ends the process at once: no destructors, no exit handlers.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no obligation; nothing in this process needs to be put in order.
    unsafe { libc::_exit(code.into()) }
}

/// Takes memory and keeps it.
///
/// # Errors
/// `ENOMEM` when there is none, and the kernel does not kill for it.
pub(crate) fn take_memory(length: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing refers to it.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is the one just made.
    match unsafe { libc::madvise(memory, length, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process the way another one ended, for the caller that waits for it: with its exit code or by its signal.
pub(crate) fn end_as(exit: Exit) -> ! {
    match exit {
        Exit::Code(code) => exit_now(code),
        Exit::Signal(number) => {
            // The number may be a guest's word.
            if let Some(signal) = Signal::try_from(number).ok().filter(|s| ends(*s)) {
                default_action(signal);
                let _ = raise(signal);
                let _ = SigSet::from(signal).thread_unblock();
            }
            // A signal that ends no process here, for instance a real-time one.
            exit_now(u8::try_from(number).map_or(u8::MAX, |n| n.saturating_add(128)))
        }
    }
}

/// Whether the default action of a signal is to end the process (signal(7)).
fn ends(signal: Signal) -> bool {
    use Signal::{SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH};
    !matches!(
        signal,
        SIGCHLD | SIGCONT | SIGSTOP | SIGTSTP | SIGTTIN | SIGTTOU | SIGURG | SIGWINCH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_does_not_end_by_signals_that_end_nothing() {
        let others = [
            "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "WINCH",
        ];
        for signal in Signal::iterator() {
            let name = signal.as_str().trim_start_matches("SIG");
            assert_eq!(ends(signal), !others.contains(&name), "{signal}");
        }
    }
}
