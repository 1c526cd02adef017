"""What a host runs short of, and what of it stands still: nothing hangs beyond a limit, nothing is left, and `delete` works."""

import ctypes
import os
import pathlib
import resource
import signal
import subprocess
import time

import pytest

from chiton import alive, only_chiton, wait_for

pytestmark = only_chiton

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
    """A file system on a file: (the file, where it is mounted, a function that mounts it again, with nothing in the cache)."""
    image, mounted = scratch / "faulty-image", scratch / "faulty"
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    mounted.mkdir()
    subprocess.run(["modprobe", "-a", "loop", "ext4"], check=False)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)

    def mount():
        if os.path.ismount(mounted):
            subprocess.run(["umount", mounted], check=True)
        subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    mount()
    yield image, mounted, mount
    subprocess.run(["umount", mounted], check=True)
    mounted.rmdir()
    image.unlink()


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
        assert code == 1 and len(lines) == 1 and "Resource temporarily unavailable" in lines[0], (most, lines)
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
    """Fewer than a machine needs, at several steps."""
    for most in (4, 8, 16, 64):
        def limit(most=most):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        code, lines = created(chiton, bundle, preexec_fn=limit)
        assert code != 0 and len(lines) <= 2 and lines, (most, lines)
        assert chiton.ok("list", "-q") == ""


def test_a_disk_that_loses_data(container, disk):
    """A read that fails on the host fails in the guest, with the same error, and the container goes on."""
    image, mounted, mount = disk
    (mounted / "data").write_bytes(os.urandom(32 * MIB))
    os.sync()
    mount()
    # More of the data is lost than can be kept, and what the file system has to find its way at the beginning is not.
    os.truncate(image, 16 * MIB)
    try:
        def change(config):
            config["mounts"].append({"destination": "/volume", "type": "bind", "source": str(mounted), "options": ["bind"]})
        made = container("sleep", "1000", change=change)
        read = made.exec("sh", "-c", "cat /volume/data >/dev/null")
        assert read.returncode == 1 and "Input/output error" in read.stderr, read
        assert made.output("echo", "there") == "there\n"
        made.delete()
    finally:
        os.truncate(image, 64 * MIB)


@pytest.mark.timeout(200)
def test_a_file_system_that_stands_still(container, disk):
    """A write that the host does not finish holds up neither other requests nor the verbs; what cannot be killed is said to be so."""
    _, mounted, _ = disk

    def change(config):
        config["mounts"].append({"destination": "/volume", "type": "bind", "source": str(mounted), "options": ["bind"]})
    made = container("sh", "-c", "touch /ready; while sleep 0.1; do echo tick; done", change=change)
    subprocess.run(["fsfreeze", "-f", mounted], check=True)
    try:
        writer = made.runtime.popen("exec", made.name, "sh", "-c", "echo x > /volume/new", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Until a worker is stuck.
        wait_for(lambda: any("D (disk sleep)" in (task / "status").read_text() for task in pathlib.Path(f"/proc/{made.pid}/task").iterdir()))
        assert made.output("cat", "/etc/hostname")
        for verb in ("pause", "resume", "ps", "state"):
            made.verb(verb)
        begin = time.monotonic()
        done = made.runtime("delete", "--force", made.name)
        assert time.monotonic() - begin < 40
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "did not" in done.stderr, done
    finally:
        subprocess.run(["fsfreeze", "-u", mounted], check=True)
    writer.wait(60)
    wait_for(lambda: not alive(made.pid))
    made.delete()


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
    wait_for(lambda: made.status == "stopped")


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
