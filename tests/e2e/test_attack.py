"""Code that has taken a machine process over: system calls are executed in its threads, and each of these must be denied.

What an attempt does is harmless where it succeeds: calls with nothing to act on, reads, or what is undone at once. A call that gets so
far that the kernel complains of its arguments has not been denied."""

import contextlib
import functools
import os
import pathlib
import signal
import socket
import stat
import struct
import subprocess

import pytest

import chiton
import inject
from chiton import alive, only_chiton, wait_for

pytestmark = only_chiton

DENIED = {"SIGSYS", "EPERM", "EACCES", "ENOSYS"}
# A namespace denies a name by there being nothing of that name, and one may be in the way of creation.
ABSENT = {"ENOENT", "ENOTDIR", "ELOOP", "EROFS", "ECONNREFUSED"}
THREADS = ("main", "vcpu0", "fs0")

# include/uapi/linux and asm-generic
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
PRIVATE_ANONYMOUS = 0x22
STREAM, DATAGRAM, RAW, SEQUENCE = 1, 2, 3, 5
FAMILIES = {
    "AF_UNIX": (1, DATAGRAM), "AF_INET raw": (2, RAW, 1), "AF_INET6": (10, DATAGRAM), "AF_KEY": (15, RAW, 2), "AF_NETLINK route": (16, RAW, 0),
    "AF_NETLINK xfrm": (16, RAW, 6), "AF_NETLINK audit": (16, RAW, 9), "AF_NETLINK netfilter": (16, RAW, 12), "AF_PACKET": (17, RAW),
    "AF_RDS": (21, SEQUENCE), "AF_CAN": (29, RAW, 1), "AF_TIPC": (30, SEQUENCE), "AF_ALG": (38, SEQUENCE), "AF_VSOCK": (40, STREAM),
    "AF_SMC": (43, STREAM), "AF_XDP": (44, RAW),
}
KVM_CREATE_VM, KVM_CREATE_DEVICE, KVM_DEVICE_VFIO_TEST = 0xae01, 0xc00caee0, struct.pack("III", 4, 0, 1)
TIOCSTI, TIOCLINUX, SIOCGIFINDEX = 0x5412, 0x541c, 0x8933
PTRACE_SEIZE = 0x4206
KEYCTL_GET_KEYRING_ID, KEYCTL_DESCRIBE, SPEC_PROCESS, SPEC_SESSION, SPEC_USER = 0, 6, -2, -3, -4
PERF_SOFTWARE_DUMMY = struct.pack("IIQQ", 1, 128, 9, 0) + bytes(104)
FAN_REPORT_FID = 0x200
USER_MODE_ONLY = 1
SYSLOG_SIZE, RLIMIT_CORE, RLIMIT_NOFILE, PR_SET_DUMPABLE = 10, 4, 7, 4
ABSTRACT = "an abstract socket of the host"
# Calls whose result is a descriptor, and those that undo others.
OPENING = {"openat", "openat2", "socket", "open_tree", "fsopen", "pidfd_open", "pidfd_getfd", "open_by_handle_at", "io_uring_setup", "userfaultfd",
           "perf_event_open", "memfd_create", "memfd_secret", "fanotify_init", "inotify_init1", "mq_open", "bpf"}
UNDOING = {"shmget": ("shmctl", 0), "msgget": ("msgctl", 0), "semget": ("semctl", 0, 0)}


def file_system(canary, device):
    """Attempts on the host's files: (name, call, arguments)."""
    return [
        ("the host's passwords", "openat", AT_FDCWD, b"/etc/shadow\0", os.O_RDONLY),
        ("a file of the host", "openat", AT_FDCWD, os.fsencode(canary) + b"\0", os.O_RDONLY),
        ("the same from above", "openat", AT_FDCWD, b"../" * 40 + os.fsencode(canary)[1:] + b"\0", os.O_RDONLY),
        ("core_pattern", "openat", AT_FDCWD, b"/proc/sys/kernel/core_pattern\0", os.O_WRONLY),
        ("the root of PID 1", "openat", AT_FDCWD, b"/proc/1/root/etc/shadow\0", os.O_RDONLY),
        ("a namespace of PID 1", "openat", AT_FDCWD, b"/proc/1/ns/mnt\0", os.O_RDONLY),
        ("the host's cgroups", "openat", AT_FDCWD, b"/sys/fs/cgroup/cgroup.procs\0", os.O_WRONLY),
        ("a file in the root", "openat", AT_FDCWD, b"/attack\0", os.O_WRONLY | os.O_CREAT, 0o4755),
        ("a device in the root", "mknodat", AT_FDCWD, b"/attack\0", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
        ("a device on a share", "mknodat", AT_FDCWD, device + b"\0", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
        ("mount", "mount", 0, b"/\0", 0, 0x44000, 0),  # MS_REC | MS_PRIVATE, which it is
        ("open_tree", "open_tree", AT_FDCWD, b"/\0", 1),
        ("move_mount", "move_mount", -1, b"\0", -1, b"\0", 4),
        ("fsopen", "fsopen", b"tmpfs\0", 0),
        ("mount_setattr", "mount_setattr", AT_FDCWD, b"/\0", 0, bytes(32), 32),
        ("pivot_root", "pivot_root", b"/\0", b"/\0"),
        ("chroot", "chroot", b"/\0"),
    ]


def processes(victim):
    """Attempts on other processes, credentials and namespaces."""
    signal_info = struct.pack("iii", 0, 0, -1) + bytes(116)
    clone_args = struct.pack("QQQQQ", NEWUSER, 0, 0, 0, signal.SIGCHLD) + bytes(48)
    return [
        ("kill PID 1", "kill", 1, 0),
        ("kill a process of root", "kill", victim, 0),
        ("tgkill a process of root", "tgkill", victim, victim, 0),
        ("tkill a process of root", "tkill", victim, 0),
        ("rt_sigqueueinfo", "rt_sigqueueinfo", victim, 0, signal_info),
        ("pidfd_open", "pidfd_open", victim, 0),
        ("prlimit64 of another", "prlimit64", victim, RLIMIT_NOFILE, 0, bytes(16)),
        ("prlimit64 upwards", "prlimit64", 0, RLIMIT_CORE, struct.pack("QQ", 1, 1), 0),
        ("setpriority", "setpriority", 0, victim, 0),
        ("setpriority upwards", "setpriority", 0, 0, -5),
        ("sched_setscheduler of another", "sched_setscheduler", victim, 0, bytes(4)),
        ("sched_setscheduler upwards", "sched_setscheduler", 0, 1, struct.pack("i", 1)),
        ("ptrace", "ptrace", PTRACE_SEIZE, victim, 0, 0),
        ("kcmp", "kcmp", victim, 1, 0, 0, 0),
        ("move_pages", "move_pages", victim, 0, 0, 0, 0, 0),
        ("migrate_pages", "migrate_pages", victim, 1, bytes(8), bytes(8)),
        ("fork", "fork"),
        ("vfork", "vfork"),
        ("clone", "clone", signal.SIGCHLD, 0),
        ("clone into a user namespace", "clone", NEWUSER | signal.SIGCHLD, 0),
        ("clone3 into a user namespace", "clone3", clone_args, len(clone_args)),
        ("execve", "execve", 0, 0, 0),
        ("execveat", "execveat", -1, b"\0", 0, 0, AT_EMPTY_PATH),
        ("unshare users", "unshare", NEWUSER),
        ("unshare mounts", "unshare", NEWNS),
        ("unshare names", "unshare", NEWUTS | NEWIPC),
        ("unshare the network", "unshare", NEWNET),
        ("setns", "setns", -1, 0),
        ("setuid", "setresuid", -1, -1, -1),
        ("setgid", "setresgid", -1, -1, -1),
        ("setgroups", "setgroups", 0, 0),
        ("personality", "personality", 0xffffffff),
        ("prctl(PR_SET_DUMPABLE)", "prctl", PR_SET_DUMPABLE, 0, 0, 0, 0),
    ]


def surface():
    """Attempts on parts of the kernel that a machine has no use for."""
    return [
        *((f"socket {name}", "socket", *arguments) for name, arguments in FAMILIES.items()),
        ("socketpair", "socketpair", 1, STREAM, 0, 0),
        ("io_uring_setup", "io_uring_setup", 1, bytes(120)),
        ("userfaultfd", "userfaultfd", USER_MODE_ONLY),
        ("bpf", "bpf", 0, bytes(72), 72),
        ("perf_event_open", "perf_event_open", PERF_SOFTWARE_DUMMY, 0, -1, -1, 0),
        ("memfd_create", "memfd_create", b"attack\0", 0),
        ("memfd_secret", "memfd_secret", 0),
        ("mmap for writing and execution", "mmap", 0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, PRIVATE_ANONYMOUS, -1, 0),
        ("mlock", "mlock", bytes(16), 16),
        ("shmget", "shmget", 0, 4096, 0o1600),
        ("msgget", "msgget", 0, 0o1600),
        ("semget", "semget", 0, 1, 0o1600),
        ("mq_open", "mq_open", b"attack\0", os.O_RDONLY, 0, 0),
        ("keyctl on the session's keys", "keyctl", KEYCTL_GET_KEYRING_ID, SPEC_SESSION, 0),
        ("keyctl on the user's keys", "keyctl", KEYCTL_DESCRIBE, SPEC_USER, 0, 0),
        ("add_key", "add_key", b"user\0", b"attack\0", b"x", 1, SPEC_PROCESS),
        ("request_key", "request_key", b"user\0", b"attack\0", 0, 0),
        ("fanotify_init", "fanotify_init", FAN_REPORT_FID, 0),
        ("inotify_init1", "inotify_init1", 0),
        ("quotactl", "quotactl", 0x80000100, 0, 0, 0),  # Q_SYNC
        ("swapon", "swapon", b"/attack\0", 0),
        ("acct", "acct", 0),
        ("modify_ldt", "modify_ldt", 0, bytes(16), 16),
        ("iopl", "iopl", 3),
        ("ioperm", "ioperm", 0x80, 1, 1),
        ("syslog", "syslog", SYSLOG_SIZE, 0, 0),
        ("reboot", "reboot", 0, 0, 0, 0),
        ("kexec_load", "kexec_load", 0, 0, 0, -1),
        ("init_module", "init_module", 0, 0, 0),
        ("finit_module", "finit_module", -1, b"\0", 0),
        ("delete_module", "delete_module", b"attack\0", os.O_NONBLOCK),
        ("settimeofday", "settimeofday", 0, 0),
        ("adjtimex", "adjtimex", bytes(208)),
        ("sethostname", "sethostname", b"\0", -1),
        ("ioctl TIOCSTI", "ioctl", 0, TIOCSTI, b"x"),
        ("ioctl TIOCLINUX", "ioctl", 0, TIOCLINUX, b"\2"),
        ("ioctl SIOCGIFINDEX", "ioctl", 0, SIOCGIFINDEX, bytes(40)),
    ]


def calls(rows):
    """Attempts of one call each, as functions of a thread."""
    return [(what, lambda thread, call=call, arguments=arguments: attempt(thread, call, *arguments)) for what, call, *arguments in rows]


def attempt(thread, call, *arguments):
    """What came of a call, undone if it can be."""
    result = inject.outcome(lambda: thread.call(call, *arguments))
    if isinstance(result, int):
        if call in OPENING:
            undo(thread, "close", result)
        elif call == "mmap":
            undo(thread, "munmap", result, 4096)
        elif call in UNDOING:
            how, *more = UNDOING[call]
            undo(thread, how, result, *more)
    return result


def undo(thread, call, *arguments):
    """Undoes what an attempt has done. That this may be denied is not the attempt's outcome."""
    inject.outcome(lambda: thread.call(call, *arguments))


@contextlib.contextmanager
def opened(thread, call, *arguments):
    number = thread.call(call, *arguments)
    try:
        yield number
    finally:
        undo(thread, "close", number)


def in_two_steps(victim, listener):
    """Attempts whose second call needs what the first one has made: name, function of a thread."""
    def execute_what_was_written(thread):
        page = thread.call("mmap", 0, 4096, PROT_READ | PROT_WRITE, PRIVATE_ANONYMOUS, -1, 0)
        try:
            return thread.call("mprotect", page, 4096, PROT_READ | PROT_EXEC)
        finally:
            undo(thread, "munmap", page, 4096)

    def take_a_descriptor(thread):
        with opened(thread, "pidfd_open", victim, 0) as pidfd, opened(thread, "pidfd_getfd", pidfd, 0, 0):
            return "taken"

    def enter_namespaces(thread):
        with opened(thread, "pidfd_open", 1, 0) as pidfd:
            return thread.call("setns", pidfd, NEWUTS)

    def memory(call, thread):
        stack = next(line for line in pathlib.Path(f"/proc/{victim}/maps").read_text().splitlines() if line.endswith("[stack]"))
        its, ours = int(stack.split("-")[0], 16), thread.scratch + 4096
        return thread.call(call, victim, struct.pack("QQ", ours, 16), 1, struct.pack("QQ", its, 16), 1, 0)

    def signal_by_pidfd(thread):
        with opened(thread, "pidfd_open", victim, 0) as pidfd:
            return thread.call("pidfd_send_signal", pidfd, 0, 0, 0)

    def connect(thread):
        with opened(thread, "socket", socket.AF_UNIX, socket.SOCK_STREAM, 0) as number:
            address = struct.pack("H", socket.AF_UNIX) + b"\0" + listener.encode()
            return thread.call("connect", number, address, len(address))

    def open_by_handle(thread):
        with opened(thread, "openat", AT_FDCWD, b"/\0", os.O_RDONLY | os.O_DIRECTORY) as root:
            handle = struct.pack("Ii", 128, 0) + bytes(128)
            thread.call("name_to_handle_at", root, path := bytes(16), handle, bytes(4), AT_EMPTY_PATH)
            handle = thread.read(len(handle), len(path))
            with opened(thread, "open_by_handle_at", root, handle, os.O_RDONLY):
                return "opened"

    return [("mprotect for execution", execute_what_was_written), ("pidfd_getfd", take_a_descriptor), ("setns by pidfd", enter_namespaces),
            ("process_vm_readv", functools.partial(memory, "process_vm_readv")),
            ("process_vm_writev", functools.partial(memory, "process_vm_writev")), ("pidfd_send_signal", signal_by_pidfd), (ABSTRACT, connect), ("open_by_handle_at", open_by_handle)]


def from_descriptors(pid, canary):
    """Attempts by what the process has open: name, function of a thread."""
    out = os.fsencode(canary)
    paths = {"the host's file": out, "up to the host's file": b"../" * 40 + out[1:], "up to core_pattern": b"../" * 40 + b"proc/sys/kernel/core_pattern",
             "the root of PID 1": b"../1/root" + out, "one up, the root of PID 1": b"../../1/root" + out, "core_pattern": b"../../sys/kernel/core_pattern"}
    made = []
    for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        link = f"/proc/{pid}/fd/{number}"
        if stat.S_ISDIR(os.stat(link).st_mode):
            made += calls([(f"descriptor {number}, {what}", "openat", number, path + b"\0", os.O_RDONLY) for what, path in paths.items()])
        target = os.readlink(link)
        if target == "/dev/kvm":
            made.append(("KVM_CREATE_VM", lambda thread, number=number: attempt_vm(thread, number)))
        if target.endswith(":kvm-vm"):
            made.append(("KVM_CREATE_DEVICE", lambda thread, number=number: thread.call("ioctl", number, KVM_CREATE_DEVICE, KVM_DEVICE_VFIO_TEST)))
    return made


def attempt_vm(thread, kvm):
    with opened(thread, "ioctl", kvm, KVM_CREATE_VM, 0):
        return "created"


@pytest.fixture
def attacked(container, scratch, id_maps, on_a_root):
    """A machine that has a bind mount, with each sort of id maps."""
    source = scratch / "attacked"
    source.mkdir()

    def change(config):
        config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(source), "options": ["rbind"]})
    made = container("sleep", "1000", change=on_a_root(id_maps, change))
    made.output("ls", "/srv")  # there are workers now
    assert chiton.id_maps(made.pid) == id_maps
    yield made
    source.rmdir()


def thread_of(made, name):
    return inject.stopped(made.pid, pathlib.Path(f"/proc/{made.pid}/comm").read_text().strip() if name == "main" else name)


@pytest.fixture
def canary(scratch):
    path = scratch / "canary-of-the-attack"
    path.write_text("the host's\n")
    yield path
    assert path.read_text() == "the host's\n"
    path.unlink()


@pytest.mark.parametrize("name", THREADS)
def test_a_taken_machine_process_is_denied(attacked, canary, name):
    """All attempts from one thread, and the machine goes on as if nothing had been."""
    victim = subprocess.Popen(["sleep", "1000"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0the-hosts")
    listener.listen()
    share = next(entry for entry in sorted(os.listdir(f"/proc/{attacked.pid}/root")) if entry != "mnt")
    by_name = calls(file_system(canary, os.fsencode(f"/{share}/attack"))) + from_descriptors(attacked.pid, canary)
    others = calls(processes(victim.pid) + surface()) + in_two_steps(victim.pid, "the-hosts")
    outcomes = {}
    try:
        with thread_of(attacked, name) as thread:
            for what, function in by_name + others:
                assert what not in outcomes
                outcomes[what] = inject.outcome(lambda: function(thread))  # noqa: B023
    finally:
        victim.kill()
        victim.wait()
        listener.close()
    names = {ABSTRACT, *(what for what, _ in by_name)}
    allowed = {what: result for what, result in outcomes.items() if result not in (DENIED | ABSENT if what in names else DENIED)}
    print(f"{len(outcomes)} attempts from {name}; not denied: {len(allowed)}", *(f"  {what}: {result}" for what, result in allowed.items()), sep="\n")
    assert attacked.output("echo", "there") == "there\n"
    assert not allowed


def received(thread, made, descriptor):
    """Has the main thread take a descriptor as from a client of control.sock; its number there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(made.runtime.root / made.name / "control.sock"))
        socket.send_fds(client, [b"x"], [descriptor])
        sockets = [int(name) for name in os.listdir(f"/proc/{made.pid}/fd") if os.readlink(f"/proc/{made.pid}/fd/{name}").startswith("socket:")]
        accepted = [inject.outcome(lambda: thread.call("accept4", number, 0, 0, 0)) for number in sockets]  # noqa: B023
        connection = next(number for number in accepted if isinstance(number, int))
        # struct msghdr, iovec and cmsghdr, which lie one after the other.
        vector, control, data = (thread.scratch + offset for offset in (64, 80, 112))
        message = struct.pack("QQQQQQQ", 0, 0, vector, 1, control, 32, 0)
        assert thread.call("recvmsg", connection, message, 0, struct.pack("QQ", data, 1), bytes(32), bytes(1)) == 1
        undo(thread, "close", connection)
        return struct.unpack("i", thread.read(4, 80 + 16))[0]


def test_what_a_directory_of_the_host_is_worth(attacked, id_maps, scratch):
    """A fault of the jail has left one open. Landlock guards opening, making and removing alone. For the rest the process has the capabilities
    of its user namespace, which count for files whose owners mean something there."""
    public = scratch / "public"
    (public / "private").mkdir(parents=True)
    (public / "private").chmod(0o700)
    file = public / "file"
    file.write_text("the host's\n")
    file.chmod(0o600)
    os.setxattr(file, "user.name", b"value")
    before = file.stat()
    directory = os.open(public, os.O_PATH | os.O_DIRECTORY)
    date = struct.pack("QQQQ", 1, 0, 0, (1 << 30) - 2)  # of the last access; UTIME_OMIT
    try:
        with thread_of(attacked, "main") as thread:
            number = received(thread, attacked, directory)
        with thread_of(attacked, "fs0") as thread:
            outcomes = {what: attempt(thread, call, number, *arguments) for what, call, *arguments in [
                ("read", "openat", b"file\0", os.O_RDONLY), ("write", "openat", b"file\0", os.O_WRONLY),
                ("replace", "openat", b"file\0", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0), ("make", "mkdirat", b"made\0", 0o700),
                ("remove", "unlinkat", b"file\0", 0), ("look", "statx", b"file\0", 0, 0, bytes(256)),
                ("look behind", "statx", b"private/\0", 0, 0, bytes(256)), ("look into", "statx", b"private/.\0", 0, 0, bytes(256)),
                ("give away", "fchownat", b"file\0", 0, 0, 0), ("allow", "fchmodat", b"file\0", 0o600), ("date", "utimensat", b"file\0", date, 0)]}
            # Attributes are named by paths alone.
            assert thread.call("fchdir", number) == 0
            outcomes["attribute"] = attempt(thread, "getxattr", b"file\0", b"user.name\0", bytes(16), 16)
            undo(thread, "close", number)
    finally:
        os.close(directory)
    print(outcomes)
    after = file.stat()
    assert file.read_text() == "the host's\n" and (after.st_uid, after.st_mode, after.st_mtime) == (before.st_uid, before.st_mode, before.st_mtime)
    file.unlink()
    (public / "private").rmdir()
    public.rmdir()
    assert {outcomes.pop(what) for what in ("read", "write", "replace", "make", "remove")} == {"EACCES"}
    assert outcomes == {
        "shifted": {"look": 0, "look behind": 0, "look into": "EACCES", "give away": "EPERM", "allow": "EPERM", "date": "EPERM", "attribute": "EACCES"},
        "identity": {"look": 0, "look behind": 0, "look into": 0, "give away": 0, "allow": 0, "date": 0, "attribute": 5},
    }[id_maps]


@pytest.mark.parametrize("name", THREADS)
def test_a_violation_ends_the_machine(attacked, name):
    """Where no tracer keeps it from the process; the log names the thread and the call."""
    with thread_of(attacked, name) as thread:
        assert inject.outcome(lambda: thread.call("personality", 0xffffffff, pass_on_trap=True)) == "SIGSYS"
    wait_for(lambda: not alive(attacked.pid))
    assert attacked.status == "stopped"
    log = (attacked.runtime.root / attacked.name / "log").read_text()
    assert any(name in line and "personality" in line for line in log.splitlines()), log
