"""What a host runs short of, and what of it stands still: nothing hangs beyond a limit, nothing is left, and `delete` works."""

import ctypes
import os
import pathlib
import re
import resource
import signal
import subprocess
import time

import pytest

from chiton import alive, only_chiton, wait_for
from test_requests import Talk

MIB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
TGKILL = 234


@pytest.fixture
def parent():
    """A cgroup for containers, with controllers."""
    path = pathlib.Path("/sys/fs/cgroup/chiton-faults")
    pathlib.Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+pids +memory")
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def disk(scratch):
    """A file system on a device of memory: the device's directory in configfs, and where it is mounted."""
    mounted, configfs = scratch / "faulty", pathlib.Path("/sys/kernel/config")
    mounted.mkdir()
    subprocess.run(["modprobe", "-a", "configfs", "ext4"], check=False)
    subprocess.run(["modprobe", "null_blk", "nr_devices=0"], check=True)
    if not (configfs / "nullb").exists():
        subprocess.run(["mount", "-t", "configfs", "configfs", configfs], check=True)
    device = configfs / "nullb/faulty"
    device.mkdir()
    for name, value in (("size", 64), ("memory_backed", 1), ("power", 1)):
        (device / name).write_text(str(value))
    node = f"/dev/{device.name}"
    subprocess.run(["mkfs.ext4", "-q", node], check=True)
    subprocess.run(["mount", node, mounted], check=True)
    yield device, mounted
    subprocess.run(["umount", mounted], check=True)
    mounted.rmdir()
    device.rmdir()


def within(parent):
    def change(config):
        config["linux"]["cgroupsPath"] = f"/{parent.name}/inner"
    return change


def created(chiton, bundle, change=None, **kwargs):
    """A create, with its output in a file: a machine would keep a pipe open."""
    made = bundle("sleep", "1000")
    if change:
        change(made.config)
    made.save()
    with open(made.path / "output", "w+") as output:
        done = chiton("create", "--bundle", made.path, "short", stdout=output, stderr=output, **kwargs)
        output.seek(0)
        return done.returncode, output.read().splitlines()


def test_no_room_for_processes(chiton, bundle, parent):
    """At each number of tasks that is too small for a machine."""
    for most in (0, 1, 2, 5):
        (parent / "pids.max").write_text(str(most))
        code, lines = created(chiton, bundle, within(parent))
        assert code == 1 and len(lines) == 1 and "resource temporarily unavailable" in lines[0], (most, lines)
        assert chiton.ok("list", "-q") == "" and not (parent / "inner").exists()
    (parent / "pids.max").write_text("max")
    code, lines = created(chiton, bundle, within(parent))
    assert code == 0, lines
    chiton.ok("delete", "--force", "short")


def test_no_memory(chiton, bundle, parent):
    """Less than a guest needs to start: the host's kernel kills the machine process."""
    for most in (2 * MIB, 24 * MIB):
        (parent / "memory.max").write_text(str(most))
        code, lines = created(chiton, bundle, within(parent))
        assert code == 1 and len(lines) == 1 and "SIGKILL" in lines[0], (most, lines)
        assert chiton.ok("list", "-q") == "" and not (parent / "inner").exists()


def test_no_descriptors(chiton, bundle):
    """Fewer than a create needs, at each of its steps until there are enough."""
    for most in range(3, 40):
        def limit(most=most):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        code, lines = created(chiton, bundle, preexec_fn=limit)
        if code == 0:
            break
        # The dynamic loader has its own words.
        assert lines, most
        assert not chiton.root.exists() or not list(chiton.root.iterdir()), (most, lines)
    assert 4 < most < 39
    chiton.ok("delete", "--force", "short")


@only_chiton
def test_a_disk_that_loses_data(container, disk):
    """A read that fails on the host fails in the guest, with the same error, and the container goes on."""
    device, mounted = disk
    (mounted / "data").write_bytes(os.urandom(8 * MIB))
    (mounted / "other").write_text("there")
    os.sync()
    extents = subprocess.run(["filefrag", "-v", "-b512", mounted / "data"], check=True, capture_output=True, text=True).stdout
    first = int(re.search(r"^ *0: +0\.\. *\d+: +(\d+)\.\.", extents, re.MULTILINE)[1])
    (device / "badblocks").write_text(f"+{first}-{first + 2047}")
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")

    def change(config):
        config["mounts"].append({"destination": "/volume", "type": "bind", "source": str(mounted), "options": ["bind"]})
    made = container("sleep", "1000", change=change)
    read = made.exec("cat", "/volume/data", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert read.returncode == 1 and "Input/output error" in read.stderr, read
    assert made.output("cat", "/volume/other") == "there"
    made.delete()


@only_chiton
@pytest.mark.timeout(200)
def test_a_file_system_that_stands_still(container, disk):
    """A write that the host does not finish holds up neither other requests nor the verbs; what cannot be killed is said to be so."""
    _, mounted = disk

    def change(config):
        config["mounts"].append({"destination": "/volume", "type": "bind", "source": str(mounted), "options": ["bind"]})
    made = container("sh", "-c", "touch /ready; while sleep 0.1; do echo tick; done", change=change)
    subprocess.run(["fsfreeze", "-f", mounted], check=True)
    try:
        writer = made.runtime.popen("exec", made.name, "sh", "-c", "echo x > /volume/new", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Until a worker is stuck.
        wait_for(lambda: any("D (disk sleep)" in (task / "status").read_text() for task in pathlib.Path(f"/proc/{made.pid}/task").iterdir()))
        assert made.output("cat", "/etc/hostname")
        made.verb("ps")
        # What waits for the host cannot be frozen. The others are not left frozen.
        begin, output = time.monotonic(), made.bundle.path / "output"
        done = made.runtime("pause", made.name)
        assert time.monotonic() - begin < 40 and done.returncode == 1 and "did not answer within" in done.stderr, done
        size = output.stat().st_size
        wait_for(lambda: output.stat().st_size > size)
        assert made.status == "running"
        begin = time.monotonic()
        done = made.runtime("delete", "--force", made.name)
        assert time.monotonic() - begin < 40
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "did not" in done.stderr, done
    finally:
        subprocess.run(["fsfreeze", "-u", mounted], check=True)
    writer.wait(60)
    wait_for(lambda: not alive(made.pid))
    made.delete()


WRITERS = """
def write(name):
    if os.fork() == 0:
        while True:
            with open(f"/volume/{name}", "ab") as f:
                f.write(b"x" * 5000)
turn()
for name in "abcd":
    write(name)
time.sleep(1)
turn()
begin = last = time.monotonic()
gap = 0
while last < begin + 3:
    time.sleep(0.002)
    now = time.monotonic()
    gap, last = max(gap, now - last), now
turn(gap=gap)
sizes = [os.stat(f"/volume/{name}").st_size for name in "abcd"]
while any(os.stat(f"/volume/{name}").st_size <= size for name, size in zip("abcd", sizes)):
    time.sleep(0.1)
open("/there", "w").close()
turn(gone_on=os.path.exists("/there"))
"""


@only_chiton
@pytest.mark.timeout(200)
@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_goes_on_while_its_writers_hang(container, disk, vcpus):
    """The threads of its vCPUs serve what it writes, and are relieved when that takes long, all of them at once. Its clock goes on."""
    _, mounted = disk
    mount = {"destination": "/volume", "type": "bind", "source": str(mounted), "options": ["bind"]}

    def change(config):
        config["annotations"] = {"dev.chiton.vcpus": str(vcpus)}
    talk = Talk(container, WRITERS, mount, change=change)
    talk.told()
    talk.next()
    threads = pathlib.Path(f"/proc/{talk.made.pid}/task")

    def hanging():
        return [(task / "comm").read_text().strip() for task in threads.iterdir() if "D (disk sleep)" in (task / "status").read_text()]
    subprocess.run(["fsfreeze", "-f", mounted], check=True)
    try:
        wait_for(lambda: len(hanging()) == 4)
        gap = talk.next()["gap"]
        print(f"{vcpus} vCPUs, {hanging()} hang: {gap * 1000:.1f} ms at most between two ticks of 2 ms")
        # Far from what a guest that stands still shows, and far from what a slow lab does.
        assert gap < 1, gap
        talk.made.verb("ps")
    finally:
        subprocess.run(["fsfreeze", "-u", mounted], check=True)
    assert talk.next() == {"gone_on": True}
    assert not hanging()


@only_chiton
def test_a_clock_that_jumps(container):
    """No verb reckons with the time of day."""
    made = container("sh", "-c", "while sleep 0.1; do echo tick; done")
    output = made.bundle.path / "output"
    begin, before = time.monotonic(), time.time()
    try:
        for jump in (86400 * 400, -86400 * 400, 3600):
            time.clock_settime(time.CLOCK_REALTIME, before + jump)
            made.verb("pause")
            made.verb("resume")
            assert made.output("echo", "there") == "there\n"
            size = output.stat().st_size
            wait_for(lambda size=size: output.stat().st_size > size)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, before + time.monotonic() - begin)
    made.verb("kill", "KILL")
    made.ends()


@only_chiton
@pytest.mark.parametrize("kind", ["main", "vcpu", "fs"])
def test_a_thread_that_is_shot(container, kind):
    """SIGKILL to one thread ends all of them."""
    made = container("sleep", "1000")
    names = {int(task.name): (task / "comm").read_text().strip() for task in pathlib.Path(f"/proc/{made.pid}/task").iterdir()}
    thread = next(number for number, name in names.items() if (number == made.pid if kind == "main" else name.startswith(kind)))
    assert LIBC.syscall(TGKILL, made.pid, thread, signal.SIGKILL) == 0
    wait_for(lambda: not alive(made.pid))
    assert made.status == "stopped"
    made.verb("delete")
    assert made.status is None
