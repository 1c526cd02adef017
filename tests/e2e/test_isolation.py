"""What of the host a machine process could reach if a guest took it over, and what the processes of a guest can take from each other."""

import ctypes
import errno
import os
import pathlib
import resource
import signal
import stat
import subprocess

import pytest

from chiton import alive, only_chiton, wait_for, watchers
from network import Namespace
from test_network import connect, fill, joins

pytestmark = only_chiton


def ways_out(pid):
    """The descriptors of a process from which `..` leads to this host's root, or that are a mount of this host: (number, path)."""
    # Identifiers of mounts, by proc_pid_mountinfo(5) and proc_pid_fdinfo(5).
    ours = {line.split()[0] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()}
    root = os.stat("/")
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{name}"
        try:
            if not stat.S_ISDIR(os.stat(link).st_mode):
                continue
        except FileNotFoundError:  # the one that the list was read from, in a process that looks at itself
            continue
        mount = next(line.split()[1] for line in pathlib.Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()
                     if line.startswith("mnt_id:"))
        directory = os.open(link, os.O_PATH)
        try:
            above = os.stat("../" * 64, dir_fd=directory)
        finally:
            os.close(directory)
        if mount in ours or os.path.samestat(above, root):
            found.append((int(name), os.readlink(link)))
    return found


def plain(_made):
    return {}


def with_a_directory_as_input(made):
    return {"stdin": os.open(made, os.O_RDONLY | os.O_DIRECTORY)}


@pytest.mark.parametrize("given", [plain, with_a_directory_as_input], ids=lambda given: given.__name__)
def test_no_descriptor_leads_out_of_the_jail(container, scratch, given):
    """A container with a bind mount and a volume that follows the host, after a start, an exec and a kill."""
    source = scratch / f"source-{given.__name__}"
    source.mkdir()

    def change(config):
        config["mounts"] += [
            {"destination": "/volume", "type": "bind", "source": str(source), "options": ["rbind", "rslave"]},
            {"destination": "/again", "type": "bind", "source": str(source), "options": ["bind", "ro"]},
        ]
    made = container("sleep", "1000", change=change, **given(source))
    assert made.output("echo", "there") == "there\n"
    # That the check finds one at all: this process has its own current directory.
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert own in [number for number, _ in ways_out(os.getpid())]
    finally:
        os.close(own)
    assert ways_out(made.pid) == []
    root = os.readlink(f"/proc/{made.pid}/root"), os.readlink(f"/proc/{made.pid}/cwd")
    assert root == ("/", "/")
    assert not os.path.samestat(os.stat(f"/proc/{made.pid}/cwd"), os.stat("/"))
    made.delete()
    source.rmdir()


def cookies(pid):
    """The core scheduling cookies of a process's threads (linux/prctl.h: PR_SCHED_CORE, PR_SCHED_CORE_GET)."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        cookie = ctypes.c_ulong()
        if libc.prctl(62, 0, ctypes.c_ulong(int(thread)), 0, ctypes.byref(cookie)):
            raise OSError(ctypes.get_errno(), "PR_SCHED_CORE_GET")
        found.add(cookie.value)
    return found


def test_cores_are_shared_with_nobody_where_that_is_asked(container, run):
    """Each machine has a cookie of its own, or there is no machine."""
    def asked(value):
        def change(config):
            config["annotations"] = {"dev.chiton.core-scheduling": value}
        return change
    try:
        cookies(os.getpid())
    except OSError as error:
        why = {errno.ENODEV: "more than one thread", errno.EINVAL: "CONFIG_SCHED_CORE"}[error.errno]
        refused = run("true", change=asked("on"))
        assert refused.returncode != 0 and "annotations[dev.chiton.core-scheduling]" in refused.stderr and why in refused.stderr, refused
        assert run("true", change=asked("off")).returncode == 0
        return
    made = [container("sleep", "1000", change=change) for change in (asked("on"), asked("on"), asked("off"))]
    found = [cookies(each.pid) for each in made]
    assert all(len(each) == 1 for each in found) and len(set.union(*found)) == 3 and found[2] == {0}, found


def few_descriptors(limit):
    """What a caller with this limit that cannot raise it does before it executes the runtime."""
    def prepare():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        if ctypes.CDLL(None).prctl(24, 24):  # PR_CAPBSET_DROP, CAP_SYS_RESOURCE
            raise OSError("CAP_SYS_RESOURCE")
    return prepare


def test_no_guest_takes_all_descriptors(runtime, container, rootfs, bundle):
    """Of 1024 that cannot be made more, files get a part. The guest can open no other then, but the machine answers on."""
    (rootfs / "script.py").write_text("""
import errno, os, signal, time
held = []
signal.signal(signal.SIGUSR1, lambda *_: [os.close(fd) for fd in held])
try:
    while len(held) < 3000:
        name = f"/tmp/file-{len(held)}"
        held.append(os.open(name, os.O_CREAT | os.O_RDWR))
except OSError as e:
    print(len(held), errno.errorcode[e.errno], flush=True)
signal.pause()
print("given up", flush=True)
time.sleep(1000)
""")
    made = container("python3", "/script.py", preexec_fn=few_descriptors(1024))
    wait_for(lambda: (made.bundle.path / "output").read_text(), 60)
    output = made.bundle.path / "output"
    count, error = output.read_text().split()
    assert error == "ENFILE" and 256 - 64 < int(count) <= 256
    used = len(os.listdir(f"/proc/{made.pid}/fd"))
    assert used < 1024 - 256 - 23 * 4, used
    refused = made.exec("true")
    assert refused.returncode == 255 and "too many open files in system" in refused.stderr, refused
    for verb in ("pause", "resume", "ps"):
        runtime.ok(verb, made.name)
    runtime.ok("kill", made.name, "USR1")
    wait_for(lambda: "given up" in output.read_text())
    assert made.output("echo", "there") == "there\n"
    # With fewer there is no machine.
    its = bundle("true").save()
    refused = runtime("run", "--bundle", its.path, "few", preexec_fn=few_descriptors(1000))
    assert refused.returncode != 0 and "RLIMIT_NOFILE" in refused.stderr and "1024" in refused.stderr, refused


def test_a_stub_has_nothing(container):
    """The process that stands for an exec, seen from outside, and another of the same container."""
    made = container("sleep", "1000")
    pids = []
    for number in range(2):
        pid_file = made.bundle.path / f"stub-{number}"
        made.runtime.ok("exec", "--detach", "--pid-file", pid_file, made.name, "sleep", "1000", stdout=subprocess.DEVNULL)
        pids.append(int(pid_file.read_text()))
    for pid in pids:
        proc = pathlib.Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        own = str(0x78000000 + pid)
        assert status["Uid"].split() == status["Gid"].split() == [own] * 4 and status["Groups"].split() == []
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0} and status["NoNewPrivs"].split() == ["1"]
        assert os.listdir(proc / "root") == [] and os.readlink(proc / "cwd") == "/"
        with pytest.raises(OSError):
            (proc / "root/file").touch()
        limits = {line[:25].strip(): line[25:].split()[:2] for line in (proc / "limits").read_text().splitlines()}
        for name in ("Max file size", "Max core file size", "Max processes", "Max locked memory", "Max msgqueue size"):
            assert limits[name] == ["0", "0"], name
        assert limits["Max open files"] == ["2", "2"]
        kinds = [os.readlink(link) for link in (proc / "fd").iterdir()]
        assert len(kinds) == 5 and not [kind for kind in kinds if not kind.startswith(("/dev/null", "socket:", "anon_inode:[signalfd]"))], kinds
    os.kill(pids[0], signal.SIGTERM)
    wait_for(lambda: not alive(pids[0]))
    os.kill(pids[1], signal.SIGKILL)
    wait_for(lambda: made.output("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").count("sleep 1000") == 1)


def test_a_watcher_has_its_network_alone(container):
    """The process that has a machine follow its network, seen from outside."""
    peer, inner = Namespace(), Namespace()
    try:
        connect(peer, "peer0", inner.name, "eth0")
        fill(inner.ip)
        made = container("sleep", "1000", change=joins(inner.path))
        [pid] = watchers(made)
        proc = pathlib.Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        own = str(0x78000000 + pid)
        assert status["Uid"].split() == status["Gid"].split() == [own] * 4 and status["Groups"].split() == []
        assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 1 << 12, 1 << 12, 0]
        assert status["NoNewPrivs"].split() == ["1"] and status["Seccomp"].split() == ["2"]
        assert [str(path.relative_to(proc / "root")) for path in (proc / "root").rglob("*")] == ["dev", "dev/net", "dev/net/tun"]
        with pytest.raises(OSError):
            (proc / "root/file").touch()
        limits = {line[:25].strip(): line[25:].split()[:2] for line in (proc / "limits").read_text().splitlines()}
        for name in ("Max file size", "Max core file size", "Max processes", "Max locked memory", "Max msgqueue size"):
            assert limits[name] == ["0", "0"], name
        kinds = [os.readlink(link) for link in (proc / "fd").iterdir()]
        assert len(kinds) == 7 and not [kind for kind in kinds if not kind.startswith(("/dev/null", "socket:")) and not kind.endswith("/net/tcp")], kinds
        assert os.readlink(proc / "ns/net") == os.readlink(f"/proc/{made.pid}/ns/net")
        made.delete()
        wait_for(lambda: not alive(pid))
    finally:
        inner.delete()
        peer.delete()


# Asks for connections to the host as fast as it can, without waiting for the answer to one, and prints what it gets. It has no
# privileges. What lies in the queue when the host begins to expect a stream is looked at before the agent's own connection.
THIEF = """
import select, socket, sys
print("begun", flush=True)
first, last = int(sys.argv[1]), int(sys.argv[2])
while True:
    tried, answers = {}, select.poll()
    for port in range(first, last):
        thief = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        thief.setblocking(False)
        thief.connect_ex((socket.VMADDR_CID_HOST, port))
        tried[thief.fileno()] = thief, port
        answers.register(thief, select.POLLOUT)
    while tried and (answered := answers.poll(100)):
        for number, _ in answered:
            answers.unregister(number)
            thief, port = tried.pop(number)
            if thief.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                print("connected to", port, flush=True)
            thief.close()
"""


def test_no_process_of_the_guest_gets_the_streams_of_another(container, rootfs):
    """A thief asks for every port that a counter would come to, while processes are executed."""
    (rootfs / "thief.py").write_text(THIEF)

    def change(config):
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["process"]["capabilities"] = {}
    made = container("python3", "/thief.py", "1025", "1090", change=change)
    output = made.bundle.path / "output"
    wait_for(lambda: "begun" in output.read_text(), 60)
    for number in range(12):
        text = f"meant for process {number}\n"
        done = made.exec("cat", input=text, stdin=None, options=("--user", "0"))
        assert (done.returncode, done.stdout, done.stderr) == (0, text, ""), output.read_text()
    assert output.read_text() == "begun\n"
