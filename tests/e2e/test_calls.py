"""The filters of system calls: each row of the table is needed, and a call that is in none ends the machine."""

import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import termios
import time

import pytest

from chiton import GRAB, alive, joining, only_chiton, wait_for, watchers, without
from network import Namespace
from terminals import ConsoleSocket
from test_devices import loop  # noqa: F401
from test_localhost import dial
from test_network import connect, fill, fill_peer, joins
from tracing import Calls

pytestmark = only_chiton

TABLE = pathlib.Path(__file__).parents[2] / "runtime/system-calls.md"
UNISTD = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
LIBC = ctypes.CDLL(None)
TGKILL = 234
CLOCK = pathlib.Path("/sys/devices/system/clocksource/clocksource0")

# linux/kvm.h, linux/if_tun.h, asm-generic/mman-common.h
VALUES = {"AF_INET": socket.AF_INET, "FIONBIO": termios.FIONBIO, "F_DUPFD_CLOEXEC": fcntl.F_DUPFD_CLOEXEC, "F_GETFL": fcntl.F_GETFL,
          "F_SETFL": fcntl.F_SETFL, "FS_IOC_FIEMAP": 0xc020660b, "FS_IOC_FSGETXATTR": 0x801c581f, "FS_IOC_FSSETXATTR": 0x401c5820,
          "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_SETFLAGS": 0x40086602, "KVM_IOEVENTFD": 0x4040ae79, "KVM_IRQ_LINE": 0x4008ae61, "KVM_KVMCLOCK_CTRL": 0xaead, "KVM_RUN": 0xae80,
          "MADV_DONTNEED": 4, "MADV_POPULATE_READ": 22, "MADV_POPULATE_WRITE": 23, "TCGETS": 0x5401,
          "TIOCGWINSZ": termios.TIOCGWINSZ, "TUNGETIFF": 0x800454d2, "TUNSETIFF": 0x400454ca, "TUNSETOFFLOAD": 0x400454d0, "TUNSETVNETHDRSZ": 0x400454d8}


def rows():
    """The table: (call, thread, (argument's number, value) or None)."""
    found = []
    for line in TABLE.read_text().splitlines():
        if line.startswith("|"):
            call, threads, condition, _ = (cell.strip() for cell in line.strip("|").split("|"))
            match condition.split():
                case [number, "=", name]:
                    condition = int(number), VALUES.get(name)
                case _:
                    condition = None
            found += [(call, thread, condition) for thread in threads.split(", ")]
    return found[2:]


def numbers():
    lines = UNISTD.read_text().splitlines()
    return {words[1].removeprefix("__NR_"): int(words[2]) for words in map(str.split, lines) if len(words) == 3 and words[1].startswith("__NR_")}


class Watched:
    """The calls that machines have made behind their filters, as rows of the table."""

    def __init__(self):
        self.table, self.numbers = rows(), numbers()
        self.calls = Calls({(call, condition[0]) for call, _, condition in self.table if condition})
        self.seen = set()

    @contextlib.contextmanager
    def counting(self, kinds):
        """Counts what threads call meanwhile. `kinds`, what each is by its id, may be filled in meanwhile."""
        with self.calls.counted() as found:
            yield
        for call, thread, condition in self.table:
            source, value = (None, self.numbers[call]) if not condition else ((call, condition[0]), condition[1])
            if any((task, value) in found[source] for task, kind in kinds.items() if kind == thread):
                self.seen.add((call, thread, condition))

    @contextlib.contextmanager
    def life(self, container, *args, **kwargs):
        """Makes a container, starts it and counts what its machine calls until its end. What the main thread calls before its filter
        is set does not count; other threads make few calls before theirs, and none that this would take for one of the table."""
        kinds = {}
        with self.counting(kinds):
            made = container(*args, verb=("create", *kwargs.pop("options", ())), **kwargs)
            for task in pathlib.Path(f"/proc/{made.pid}/task").iterdir():
                if int(task.name) != made.pid:
                    kind = (task / "comm").read_text().strip().rstrip("0123456789")
                    kinds[int(task.name)] = "guest" if kind in ("vcpu", "fs") else kind
        assert "guest" in kinds.values(), kinds
        with self.counting(kinds | {made.pid: "main"}):
            made.verb("start")
            try:
                yield made
                made.ends()
            except AssertionError as e:
                log = made.runtime.root / made.name / "log"
                raise AssertionError((made.bundle.path / "output").read_text() + log.read_text()) from e


@pytest.fixture(scope="module")
def watched():
    return Watched()


FILES = """
import ctypes, fcntl, mmap, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
open("/ram/file", "w").close(); open("/layers/file", "w").close()
os.chdir("/volume")
os.makedirs("a/b/c")
data = os.urandom(1 << 20)
with open("file", "wb") as f:
    f.write(data * 4); f.flush(); os.fsync(f.fileno()); os.fdatasync(f.fileno())
with open("file", "rb") as f:
    assert f.read() == data * 4
one, two = os.open("file", os.O_RDWR), os.open("copy", os.O_RDWR | os.O_CREAT)
os.copy_file_range(one, two, 1 << 20)
os.posix_fallocate(two, 0, 1 << 22)
os.lseek(two, 0, os.SEEK_HOLE)
os.ftruncate(two, 100)
os.link("copy", "link"); os.symlink("link", "soft"); os.readlink("soft"); os.rename("link", "moved"); os.unlink("moved")
os.mkfifo("fifo"); os.mknod("plain"); os.rmdir("a/b/c")
os.chmod("file", 0o640); os.chown("file", 5, 6); os.utime("file", (1, 2)); os.truncate("file", 1 << 21)
os.setxattr("file", "user.x", b"y"); os.getxattr("file", "user.x"); os.listxattr("file"); os.removexattr("file", "user.x")
flags, attributes, extents = bytearray(8), bytearray(28), bytearray(32)
extents[8:16] = b"\\xff" * 8
fcntl.ioctl(one, 0x80086601, flags); fcntl.ioctl(one, 0x40086602, bytes(flags))
fcntl.ioctl(one, 0x801c581f, attributes); fcntl.ioctl(one, 0x401c5820, bytes(attributes))
fcntl.ioctl(one, 0xc020660b, extents)
os.umask(0o027); open("masked", "w").close()
os.statvfs("."); os.listdir("."); os.sync(); libc.syncfs(two)
os.mkdir("group"); os.chown("group", 0, 7); os.chmod("group", 0o2775); os.mkdir("group/below")
if not os.fork():
    os.chmod("/volume", 0o777); os.setgid(1000); os.setuid(1000)
    with open("mine", "w") as f: f.write("x")
    os._exit(0)
os.wait()
with open("/big", "rb") as f:
    whole = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    sum(whole[::4096])
    ours, theirs = socket.socketpair()
    out = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    os.writev(out, [memoryview(whole)[4096:8192]])
    def work(n):
        for k in range(40):
            with open(f"a/{n}-{k}", "w") as g: g.write("x" * 5000)
            os.unlink(f"a/{n}-{k}")
    threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    open("/volume/cut", "w").close()
    while os.path.exists("/volume/cut"): pass
    print(whole[-4096:-4090], flush=True)
print("done", flush=True)
import signal
signal.pause()
"""


@pytest.mark.timeout(300)
def test_files_and_verbs(watched, container, rootfs, scratch, request):
    volume, ram, layers = (scratch / f"calls-{name}" for name in ("volume", "ram", "layers"))
    for path in (volume, ram, layers, *(scratch / f"calls-{name}" for name in ("lower", "upper", "work"))):
        path.mkdir()
    # A file system that does not tell when a file was made.
    subprocess.run(["mount", "-t", "ramfs", "ramfs", ram], check=True)
    # One that is told of each close.
    options = ",".join(f"{name}dir={scratch}/calls-{name}" for name in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, layers], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", ram, layers], check=True))
    with open(rootfs / "big", "wb") as big:
        big.truncate(8 << 20)
    (rootfs / "files.py").write_text(FILES)

    def change(config):
        config["root"]["readonly"] = True
        config["process"]["capabilities"] = {kind: ["CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD"]
                                             for kind in ("bounding", "effective", "permitted")}
        config["mounts"].append({"destination": "/volume", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]})
        config["mounts"].append({"destination": "/ram", "type": "bind", "source": str(ram), "options": ["rbind", "rw"]})
        config["mounts"].append({"destination": "/layers", "type": "bind", "source": str(layers), "options": ["bind", "rw"]})
        config["annotations"] = {"dev.chiton.vcpus": "2"}

    with watched.life(container, "python3", "/files.py", change=change) as made:
        output = made.bundle.path / "output"
        wait_for(lambda: (volume / "cut").exists(), 120)
        with open(rootfs / "big", "r+b") as big:
            big.truncate(4 << 20)
        (volume / "cut").unlink()
        wait_for(lambda: "done" in output.read_text(), 60)
        for verb in ("state", "ps", "pause", "resume"):
            made.verb(verb)
        # Which the guest's clock follows.
        time.clock_settime(time.CLOCK_REALTIME, time.time())
        made.runtime.ok("events", "--stats", made.name)
        made.runtime.ok("update", "--memory", str(400 << 20), made.name)
        assert made.exec("cat", input="x" * (1 << 20), stdin=None).stdout == "x" * (1 << 20)
        made.output("sh", "-c", "echo x > /volume/late; cat /etc/hostname")
        # SIGSYS that is no violation is nobody's.
        for task in os.listdir(f"/proc/{made.pid}/task"):
            assert LIBC.syscall(TGKILL, made.pid, int(task), signal.SIGSYS) == 0
        os.kill(made.pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(made.pid, signal.SIGCONT)
        assert made.output("echo", "lives") == "lives\n"
        # What does not fit into small pieces of memory, on both sides.
        made.runtime.ok("exec", "--env", "X=" + "x" * 100_000, "--env", "Y=" + "y" * 100_000, made.name, "sh", "-c", "find / -xdev | wc -l")
        made.verb("kill", "KILL")
    assert output.read_text().splitlines()[-1] == "done", output.read_text()


# Reads and writes a disk, and takes more memory than there is: in a child, so that the container lives.
DISK = """
import os
disk = os.open("/dev/disk", os.O_RDWR | os.O_DIRECT)
import mmap
page = mmap.mmap(-1, 1 << 16)
os.preadv(disk, [page], 0); os.pwritev(disk, [page], 0); os.fsync(disk)
import threading
threads = [threading.Thread(target=lambda: [os.preadv(disk, [mmap.mmap(-1, 4096)], 4096 * n) for n in range(300)]) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print("done", flush=True)
if not os.fork():
    %s
os.wait()
import time
while not os.path.exists("/end"): time.sleep(0.1)
os._exit(5)
"""


@pytest.mark.timeout(200)
def test_disks_and_a_lack_of_memory(watched, container, rootfs, loop):  # noqa: F811
    _, major, minor = loop()
    (rootfs / "disk.py").write_text(DISK % GRAB)

    def change(config):
        config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
        config["linux"]["resources"]["devices"].append({"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"})
        config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
        # Not the first process of a pid namespace, which no signal of its own ends.
        without(config, "pid")

    before = (CLOCK / "current_clocksource").read_text()
    # One that the vDSO does not read.
    (CLOCK / "current_clocksource").write_text("acpi_pm")
    try:
        with watched.life(container, "python3", "/disk.py", change=change) as made:
            wait_for(lambda: (made.bundle.path / "oom").exists(), 60)
            for task in os.listdir(f"/proc/{made.pid}/task"):
                LIBC.syscall(TGKILL, made.pid, int(task), signal.SIGSYS)
            made.output("touch", "/end")
        # One that is ended by it.
        with watched.life(container, "python3", "-c", GRAB, change=change):
            pass
    finally:
        (CLOCK / "current_clocksource").write_text(before)

SINK = """
import socket
server = socket.create_server(("10.5.0.1", 99))
print(flush=True)
one, _ = server.accept()
while one.recv(1 << 16): pass
"""
SENDFILE = """
import mmap, socket
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
out = socket.create_connection(("10.5.0.1", 99), 20)
out.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
with open("/big", "rb") as f:
    whole = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    sum(whole[::4096])
    out.send(memoryview(whole)[:1 << 15], MSG_ZEROCOPY)
"""


@pytest.mark.timeout(200)
def test_networks_and_terminals(watched, container, rootfs, scratch):
    """A network that comes before the start, a name server in it, and a terminal that changes its size."""
    inside, peer, console = Namespace(), Namespace(), ConsoleSocket()
    resolv = scratch / "calls-resolv"
    resolv.write_text("nameserver 127.0.0.11\n")
    connect(peer, "peer0", inside.name, "eth0")
    fill_peer(peer)
    fill(inside.ip)
    server = subprocess.Popen(["ip", "netns", "exec", inside.name, "python3", "-c", """
import socket, threading
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.11", 53))
tcp = socket.create_server(("127.0.0.11", 53))
print(flush=True)
def serve():
    while True:
        one, _ = tcp.accept(); one.sendall(one.recv(100)); one.close()
threading.Thread(target=serve, daemon=True).start()
while True:
    data, other = udp.recvfrom(4096); udp.sendto(data, other)
"""], stdout=subprocess.PIPE)
    server.stdout.readline()

    def change(config):
        joins(inside.path)(config)
        config["process"]["terminal"] = True
        config["root"]["readonly"] = True
        config["mounts"].append({"destination": "/etc/resolv.conf", "type": "bind", "source": str(resolv), "options": ["bind"]})

    try:
        (rootfs / "big").write_bytes(bytes(8 << 20))
        options = ("--console-socket", console.path)
        with watched.life(container, "sleep", "1000", change=change, options=options) as made:
            console.terminal().resize(20, 30)
            made.output("ping", "-c1", "-w20", "10.5.0.1")
            made.output("python3", "-c", """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(20); udp.connect(("127.0.0.11", 53)); udp.send(b"question"); udp.recv(100)
tcp = socket.create_connection(("127.0.0.11", 53), 20); tcp.sendall(b"question"); assert tcp.recv(100) == b"question"
""")
            # Somebody on the host who finds nobody there.
            with dial(inside, 99) as connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
            # Mapped pages of a file as a packet of the network, and by a stream.
            listener = subprocess.Popen(["ip", "netns", "exec", peer.name, "python3", "-c", SINK], stdout=subprocess.PIPE)
            listener.stdout.readline()
            made.output("python3", "-c", SENDFILE)
            listener.communicate(timeout=60)
            made.output("head", "-c", "8", stdin=os.eventfd(1))
            made.exec("true", options=("--detach", "--tty", *options))
            made.verb("kill", "KILL")
    finally:
        server.kill()
        server.communicate()
        console.close()
        inside.delete()
        peer.delete()
        resolv.unlink()


@pytest.mark.timeout(100)
def test_stubs(watched, container):
    """One passes on sizes and signals and ends by one, the other by a code, while the vDSO does not read the clock."""
    console, made = ConsoleSocket(), container("sleep", "1000")
    before = (CLOCK / "current_clocksource").read_text()
    file = made.bundle.path / "exec-pid"

    def stub(*args):
        assert made.exec(*args, options=("--detach", "--tty", "--console-socket", console.path, "--pid-file", file)).returncode == 0
        return int(file.read_text()), console.terminal()

    try:
        (killed, terminal), (ends, other) = stub("sleep", "1000"), stub("sh", "-c", "read x; exit 3")
        (CLOCK / "current_clocksource").write_text("acpi_pm")
        with watched.counting({killed: "stub", ends: "stub"}):
            # It goes on waiting.
            os.kill(ends, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(ends, signal.SIGCONT)
            terminal.resize(20, 30)
            os.kill(killed, signal.SIGTERM)
            other.send("x\n")
            wait_for(lambda: not alive(killed) and not alive(ends))
    finally:
        (CLOCK / "current_clocksource").write_text(before)
        console.close()


@pytest.mark.timeout(100)
def test_a_watcher(watched, container):
    """What it does when an interface comes, while the vDSO does not read the clock."""
    inner, peer = Namespace(), Namespace()
    before = (CLOCK / "current_clocksource").read_text()
    try:
        connect(peer, "peer0", inner.name, "eth0")
        fill(inner.ip)
        made = container("sleep", "1000", change=joins(inner.path))
        [watcher] = watchers(made)
        (CLOCK / "current_clocksource").write_text("acpi_pm")
        with watched.counting({watcher: "watch"}):
            os.kill(watcher, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(watcher, signal.SIGCONT)
            connect(peer, "peer1", inner.name, "eth1")
            fill(inner.ip, "eth1", 6)
            wait_for(lambda: "10.6.0.2" in made.output("ip", "addr"))
            made.delete()
            wait_for(lambda: not pathlib.Path(f"/proc/{watcher}").exists())
    finally:
        (CLOCK / "current_clocksource").write_text(before)
        inner.delete()
        peer.delete()


@pytest.mark.timeout(200)
def test_a_member_whose_memory_runs_out(watched, container):
    def change(config):
        config["linux"]["resources"]["memory"] = {"limit": 64 << 20}

    pod = container("sleep", "1000")
    with watched.counting({pod.pid: "main"}):
        member = container("python3", "-c", GRAB, change=joining(pod.pid, "network", "ipc", "uts", change=change), verb=("create",))
    with watched.counting({member.pid: "stub"}):
        member.verb("start")
        member.ends(60)


# Which of these an allocation takes, and in which thread, depends on where the kernel maps memory: one thread has to show each.
MEMORY = {"brk", "madvise", "mmap", "mprotect", "mremap", "munmap", "sched_getaffinity"}

ELSEWHERE = {
    # A violation in such a thread: test_attack.
    ("exit_group", "guest", None), ("exit_group", "blk", None),
    # The end of its verb is what a stub hears of first, before anybody can look.
    ("close", "stub", None),
    # What the C library of Debian 12 does by newfstatat.
    ("fstat", "main", None),
    # A stop in the moment in which a pause waits for a vCPU.
    ("restart_syscall", "main", None),
    # A lock that another thread holds in that moment.
    ("futex", "blk", None),
}


def test_each_row_is_needed(runtime, watched):  # noqa: ARG001
    """By the machines of the tests above."""
    shown = {(call, condition) for call, _, condition in watched.seen if call in MEMORY}
    unused = [row for row in watched.table if row not in watched.seen | ELSEWHERE and (row[0], row[2]) not in shown]
    assert not unused, "\n".join(map(str, unused))
