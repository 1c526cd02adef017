//! The system calls that no safe wrapper of the dependencies covers. The only unsafe code here.
//!
//! Every function returns the kernel's errno as [`io::Error`] and owns nothing after it returns
//! but what it returns.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_long, pid_t};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{self, CapabilitySet};
use specification::mount::Change;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Narrows what the kernel returns for an int-valued call.
fn int(result: c_long) -> io::Result<c_int> {
    c_int::try_from(check(result)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Takes ownership of a descriptor that a system call has just returned.
fn own(result: c_long) -> io::Result<OwnedFd> {
    let fd = int(result)?;
    // SAFETY: `fd` is a descriptor that the kernel has created for this call; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adopts a descriptor that the parent process passed by number. Must be called once for each.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD touches no memory.
    int(c_long::from(unsafe { libc::fcntl(fd, libc::F_GETFD) }))?;
    // SAFETY: the descriptor is open as just seen. PID 1 passes distinct inherited descriptors for
    // a stage alone to own, and the one caller adopts each of them once, before it opens others.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Owns a descriptor that recvmsg(2) has just installed.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has installed it for this process with SCM_RIGHTS, and the one caller
    // passes each number on once, straight from the control message.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A close-on-exec copy of a descriptor whose number is `least` or more.
pub(crate) fn duplicate_above(fd: impl AsFd, least: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, least)?)
}

/// Makes `number`, which is nobody's or free, a close-on-exec copy of `fd` that stays open for as
/// long as the process lives.
pub(crate) fn place(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    // SAFETY: no memory is involved. The only caller has moved all that the process owns out of the
    // way of these numbers, and nothing owns them from here on.
    let result = unsafe { libc::dup3(fd.as_fd().as_raw_fd(), number, libc::O_CLOEXEC) };
    int(c_long::from(result)).map(drop)
}

/// Lets a descriptor that [`place`] has made survive execve(2).
pub(crate) fn keep_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD touches no memory and changes no ownership.
    int(c_long::from(unsafe {
        libc::fcntl(number, libc::F_SETFD, 0)
    }))
    .map(drop)
}

/// A standard descriptor: 0, 1 or 2.
pub(crate) fn standard(number: RawFd) -> BorrowedFd<'static> {
    assert!((0..=2).contains(&number));
    // SAFETY: the Rust runtime opens the standard descriptors that it finds closed, and nothing in
    // the agent closes them.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Ends the process at once, without running destructors: for a process that shares nothing with
/// its parent but open files.
pub(crate) fn exit(code: u8) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// clone3(2) of a single-threaded process, without CLONE_VM: like fork. Returns 0 in the child.
///
/// The child is a sibling of the caller (CLONE_PARENT), so that PID 1 waits for it, and starts in
/// `cgroup`, which saves the migration with its RCU grace period.
pub(crate) fn clone_sibling(
    namespaces: c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<pid_t> {
    let bits = |flags: c_int| u64::from(flags.cast_unsigned());
    // SAFETY: clone_args is plain integers, for which zero is valid and means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = bits(namespaces) | bits(libc::CLONE_PARENT);
    if let Some(cgroup) = cgroup {
        // CLONE_INTO_CGROUP of linux/sched.h; libc's constant does not fit its type everywhere.
        args.flags |= 0x2_0000_0000;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: without CLONE_VM the child gets a copy of the address space; `args` outlives the
    // call. The stage process has one thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    int(pid)
}

/// A child that waitpid(2) has collected: its pid and raw status.
pub(crate) struct Reaped {
    pub(crate) pid: pid_t,
    status: c_int,
}

impl Reaped {
    /// The exit code, or the signal that killed it.
    pub(crate) fn exit(&self) -> protocol::Exit {
        if libc::WIFSIGNALED(self.status) {
            protocol::Exit::Signal(libc::WTERMSIG(self.status))
        } else {
            protocol::Exit::Code(u8::try_from(libc::WEXITSTATUS(self.status)).unwrap_or(u8::MAX))
        }
    }
}

#[cfg(test)]
impl Reaped {
    /// A child that has exited.
    pub(crate) fn exited(pid: pid_t, code: u8) -> Reaped {
        let status = c_int::from(code) << 8;
        Reaped { pid, status }
    }
}

/// Collects one dead child, if there is one. Unlike nix, knows real-time signals.
pub(crate) fn reap() -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing during the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Ok(None),
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Some(Reaped { pid, status })),
    }
}

/// kill(2) with any signal number. Unlike nix, knows real-time signals.
pub(crate) fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    int(c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// pidfd_open(2): a descriptor that is readable once the process has ended.
pub(crate) fn pidfd_open(pid: pid_t) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// open_tree(2).
pub(crate) fn open_tree(dir: impl AsFd, path: &CStr, flags: u32) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::from_bits_retain(flags) | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// move_mount(2): attaches the mount `from` on top of `onto`, both by descriptor alone.
pub(crate) fn attach(from: impl AsFd, onto: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(from, c"", onto, c"", flags)?)
}

/// fsopen(2) and fsmount(2): the root of a mount of a file system without parameters, which is attached
/// nowhere and goes with the descriptor.
pub(crate) fn detached(kind: &CStr) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), flags, attributes)?)
}

/// The change that mount_setattr(2) makes: MOUNT_ATTR_* bits and one MS_* propagation type.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
}

impl From<Change> for MountAttributes {
    fn from(change: Change) -> MountAttributes {
        MountAttributes {
            set: change.set,
            clear: change.clear,
            propagation: 0,
        }
    }
}

/// mount_setattr(2) on the mount whose root is `mount`.
pub(crate) fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    change: MountAttributes,
) -> io::Result<()> {
    if change == MountAttributes::default() {
        return Ok(());
    }
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is valid for the size given, and the path is a static empty string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    int(result).map(drop)
}

/// Sets IFF_UP on the loopback interface of the current network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: no memory is involved. Any socket takes interface ioctls (netdevice(7)).
    let socket = own(c_long::from(unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: ifreq is integers and bytes, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = c_short_flags(libc::IFF_UP | libc::IFF_RUNNING);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    int(c_long::from(result)).map(drop)
}

fn c_short_flags(flags: c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap_or(0)
}

/// A terminal pair: unlocks the slave of `master` and opens it.
pub(crate) fn open_slave(master: impl AsFd) -> io::Result<OwnedFd> {
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(rustix::pty::ioctl_tiocgptpeer(master, flags)?)
}

/// Sets the size of a terminal, in characters.
pub(crate) fn set_window_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Makes `terminal` the controlling terminal of the calling session leader.
pub(crate) fn set_controlling_terminal(terminal: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}

/// Sets how long an attempt to connect a vsock socket may take (SO_VM_SOCKETS_CONNECT_TIMEOUT of linux/vm_sockets.h).
pub(crate) fn set_connect_timeout(socket: impl AsFd, limit: Duration) -> io::Result<()> {
    /// The number that takes a struct timeval, which has 64-bit fields here.
    const CONNECT_TIMEOUT: c_int = 6;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let limit = libc::timeval {
        tv_sec: limit.as_secs().try_into().map_err(invalid)?,
        tv_usec: limit.subsec_micros().into(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&limit)).map_err(invalid)?;
    // SAFETY: the structure outlives the call and its size is given.
    int(c_long::from(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            size,
        )
    }))
    .map(drop)
}

/// Bytes that wait in a pipe.
pub(crate) fn pipe_level(pipe: impl AsFd) -> io::Result<usize> {
    let level = rustix::io::ioctl_fionread(pipe)?;
    Ok(usize::try_from(level).unwrap_or(0))
}

/// How many bytes a reader of an empty pipe asks for, which the pipe's writer learns; 0 if none does. From
/// the first call on each reader that asks makes the writer's end ready once more
/// (guest-kernel/patches/59-pipes-on-demand.patch).
pub(crate) fn pipe_asked(writer: impl AsFd) -> io::Result<u32> {
    // include/linux/pipe_fs_i.h: _IOR('P', 0x80, unsigned int).
    const PIPE_IOC_ASKED: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'P', 0x80);
    // SAFETY: the kernel writes one u32, or nothing where it has no such call.
    let asked = unsafe { rustix::ioctl::Getter::<PIPE_IOC_ASKED, u32>::new() };
    // SAFETY: as above.
    Ok(unsafe { rustix::ioctl::ioctl(writer, asked) }?)
}

/// dup2(2) onto a standard descriptor (0, 1 or 2), which the Rust runtime keeps open but does not
/// own.
pub(crate) fn replace_stdio(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    let replaced = match number {
        0 => rustix::stdio::dup2_stdin(fd),
        1 => rustix::stdio::dup2_stdout(fd),
        _ => rustix::stdio::dup2_stderr(fd),
    };
    Ok(replaced?)
}

/// Marks every descriptor above the standard ones close-on-exec.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: no memory is involved; close-on-exec invalidates nothing in this process.
    int(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// setrlimit(2) by number, RLIM_INFINITY being u64::MAX.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` outlives the call.
    int(c_long::from(unsafe {
        libc::setrlimit(resource, &raw const limit)
    }))
    .map(drop)
}

/// adjtime(3): leads CLOCK_REALTIME by this many microseconds, forward where it is late.
pub(crate) fn lead_clock(microseconds: u64, late: bool) -> io::Result<()> {
    let offset = i64::try_from(microseconds).unwrap_or(i64::MAX);
    // SAFETY: all zero is a valid timex.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = if late { offset } else { -offset };
    // SAFETY: `timex` outlives the call.
    int(c_long::from(unsafe { libc::adjtimex(&raw mut timex) })).map(drop)
}

/// getrlimit(2) by number: soft and hard.
pub(crate) fn rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call, and all that the kernel writes to it is valid.
    int(c_long::from(unsafe {
        libc::getrlimit(resource, &raw mut limit)
    }))?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// The capability sets of the calling thread as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

/// capset(2).
pub(crate) fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let sets = thread::CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    Ok(thread::set_capabilities(None, sets)?)
}

/// The set of one capability. A number that no capability can have is the empty set, which the calls below refuse with
/// EINVAL.
fn only(capability: u8) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1_u64.checked_shl(capability.into()).unwrap_or(0))
}

/// Removes a capability from the bounding set. False when the kernel does not know it.
pub(crate) fn drop_bounding(capability: u8) -> io::Result<bool> {
    match thread::remove_capability_from_bounding_set(only(capability)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> io::Result<()> {
    Ok(thread::clear_ambient_capability_set()?)
}

/// Adds a capability to the ambient set.
pub(crate) fn raise_ambient(capability: u8) -> io::Result<()> {
    Ok(thread::configure_capability_in_ambient_set(
        only(capability),
        true,
    )?)
}

/// personality(2).
pub(crate) fn set_personality(persona: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    int(c_long::from(unsafe {
        libc::personality(libc::c_ulong::from(persona))
    }))
    .map(drop)
}

/// ioprio_set(2) for the calling process: class and level as in linux/ioprio.h.
pub(crate) fn set_io_priority(class: u16, level: u16) -> io::Result<()> {
    /// IOPRIO_WHO_PROCESS and IOPRIO_CLASS_SHIFT of linux/ioprio.h.
    const WHO_PROCESS: c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = (c_int::from(class) << CLASS_SHIFT) | c_int::from(level);
    // SAFETY: no memory is involved.
    int(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// Joins the session keyring of this name, or makes it, with these permissions (keyctl(2)).
pub(crate) fn join_session_keyring(name: &CStr, permissions: u32) -> io::Result<()> {
    // SAFETY: the name ends in NUL and outlives the call.
    let keyring = int(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )
    })?;
    // SAFETY: no memory is involved.
    int(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, keyring, permissions) })
        .map(drop)
}

/// struct sched_attr of linux/sched/types.h, first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SchedulerAttributes {
    /// Filled in by [`set_scheduler`].
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// sched_setattr(2) for the calling process.
pub(crate) fn set_scheduler(mut attributes: SchedulerAttributes) -> io::Result<()> {
    attributes.size = u32::try_from(size_of::<SchedulerAttributes>()).unwrap_or(0);
    // SAFETY: the structure says its own size and outlives the call.
    int(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// Gives every signal its default action and unblocks all, as a program expects at its start.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of this process. Failure (SIGKILL, SIGSTOP, those that the
        // C library reserves) leaves the default in place.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(io::Error::from)
}

/// execve(2). Returns only when it fails.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are NULL-terminated and, like the strings, outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Whether the effective user may execute `path` (faccessat(2) with AT_EACCESS).
pub(crate) fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    int(c_long::from(result)).map(drop)
}

/// One instruction of a classic BPF program, struct sock_filter of linux/filter.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FilterInstruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

impl FilterInstruction {
    /// From its memory layout read as a little-endian number.
    pub(crate) fn from_bits(bits: u64) -> FilterInstruction {
        let [c0, c1, jump_true, jump_false, k0, k1, k2, k3] = bits.to_le_bytes();
        FilterInstruction {
            code: u16::from_le_bytes([c0, c1]),
            jump_true,
            jump_false,
            operand: u32::from_le_bytes([k0, k1, k2, k3]),
        }
    }
}

/// seccomp(2) with SECCOMP_SET_MODE_FILTER. `flags` must not ask for a listener.
pub(crate) fn set_seccomp_filter(flags: u64, program: &[FilterInstruction]) -> io::Result<()> {
    /// struct sock_fprog of linux/filter.h.
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        instructions: *const FilterInstruction,
    }
    let length = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = Program {
        length,
        instructions: program.as_ptr(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads `length` instructions, which like the structure outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    match int(result)? {
        0 => Ok(()),
        // With TSYNC, a thread that cannot take the filter.
        thread => Err(io::Error::other(format!(
            "thread {thread} has another filter"
        ))),
    }
}

/// One eBPF instruction, struct bpf_insn of linux/bpf.h (`registers`: source << 4 | destination).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// Size of union bpf_attr as far as it is used here; the kernel takes the rest as zero.
const BPF_ATTR: usize = 72;

fn bpf(command: c_int, attr: &[u8; BPF_ATTR]) -> io::Result<c_long> {
    // SAFETY: `attr` is valid for the size given; the pointers inside of it are the callers' duty.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), BPF_ATTR) })
}

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE (BPF_PROG_LOAD).
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    /// BPF_PROG_LOAD and BPF_PROG_TYPE_CGROUP_DEVICE of linux/bpf.h.
    const PROG_LOAD: c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    let license = c"Apache-2.0";
    let count =
        u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = [0; BPF_ATTR];
    attr[0..4].copy_from_slice(&CGROUP_DEVICE.to_ne_bytes());
    attr[4..8].copy_from_slice(&count.to_ne_bytes());
    attr[8..16].copy_from_slice(&program.as_ptr().addr().to_ne_bytes());
    attr[16..24].copy_from_slice(&license.as_ptr().addr().to_ne_bytes());
    // The kernel reads `program` (count instructions) and `license` (NUL-terminated) only; both
    // outlive the call.
    own(bpf(PROG_LOAD, &attr)?)
}

/// Attaches a device program to a cgroup for good (BPF_PROG_ATTACH, BPF_CGROUP_DEVICE).
pub(crate) fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    /// BPF_PROG_ATTACH, BPF_CGROUP_DEVICE and BPF_F_ALLOW_MULTI of linux/bpf.h.
    const PROG_ATTACH: c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let mut attr = [0; BPF_ATTR];
    attr[0..4].copy_from_slice(&cgroup.as_fd().as_raw_fd().to_ne_bytes());
    attr[4..8].copy_from_slice(&program.as_fd().as_raw_fd().to_ne_bytes());
    attr[8..12].copy_from_slice(&CGROUP_DEVICE.to_ne_bytes());
    attr[12..16].copy_from_slice(&ALLOW_MULTI.to_ne_bytes());
    bpf(PROG_ATTACH, &attr).map(drop)
}
