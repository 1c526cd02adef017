"""Root filesystems that want out: symbolic links and `..` wherever a runtime follows a path of the container's.

On the host lie canaries, which nothing may read, change or add to. In the guest the outside is what the agent has open."""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from chiton import only_chiton


@pytest.fixture
def canary(scratch, request):
    """A directory of the host. It must be as it was in the end."""
    path = scratch / f"canary-{request.node.name}"
    (path / "dir").mkdir(parents=True)
    (path / "secret").write_text("the host's secret\n")

    def all_of_it():
        found = {}
        for directory, names, files in os.walk(path):
            for name in names + files:
                whole = os.path.join(directory, name)
                status = os.lstat(whole)
                found[whole] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found
    before = all_of_it()
    yield path
    assert all_of_it() == before
    shutil.rmtree(path)


def ran(container, *args, change=None):
    """Runs a program as a container of its own, to its end; what it prints."""
    made = container(*args, change=change)
    made.ends()
    return (made.bundle.path / "output").read_text()


def up(path):
    return "../" * 30 + str(path).lstrip("/")


def tmpfs(destination):
    return {"destination": destination, "type": "tmpfs", "source": "t", "options": ["size=64k"]}


def test_mount_points_through_links(container, rootfs, scratch, canary):
    """Links of every kind in a mount's destination stay inside; what is missing is made inside."""
    (rootfs / "t").mkdir()
    (rootfs / "t/real").mkdir()
    os.symlink("/t/real", rootfs / "t/absolute")
    os.symlink("real", rootfs / "t/relative")
    os.symlink(up(canary / "dir"), rootfs / "t/up")
    os.symlink(canary / "dir", rootfs / "t/out")
    os.symlink("/t/chain2", rootfs / "t/chain1")
    os.symlink("../t/absolute", rootfs / "t/chain2")
    source = scratch / "adversarial-source"
    source.write_text("bound\n")

    def change(config):
        config["mounts"] += [
            tmpfs("/t/absolute/a"), tmpfs("/t/relative/b"), tmpfs("/t/up/c"), tmpfs("/t/out"), tmpfs("/t/chain1/d"),
            tmpfs("/t/../../../t/real/e"), tmpfs("/../../../f"),
            {"destination": "/t/up/file", "type": "bind", "source": str(source), "options": ["bind", "ro"]},
            # Below another mount, and through what that one has replaced.
            tmpfs("/t/real/a/inner"), tmpfs("/t/absolute/a/inner/more"),
        ]
    out = ran(container, "sh", "-c", f"cut -d' ' -f5 /proc/self/mountinfo; cat /t/up/file; ls {canary}; ls -d /t/real/e /f", change=change)
    lines = out.splitlines()
    inside = str(canary / "dir")
    for target in ("/t/real/a", "/t/real/b", f"{inside}/c", inside, "/t/real/d", "/t/real/e", "/f", f"{inside}/file",
                   "/t/real/a/inner", "/t/real/a/inner/more"):
        assert target in lines, (target, out)
    assert "bound" in lines and "secret" not in lines
    source.unlink()


@pytest.mark.parametrize("name", ["loop", "into-proc"])
def test_links_that_lead_nowhere_are_errors(runtime, bundle, rootfs, name):
    os.symlink("loop", rootfs / "loop")
    os.symlink("/proc/self/fd/1/x", rootfs / "into-proc")
    made = bundle("true")
    made.config["mounts"].append(tmpfs(f"/{name}"))
    done = runtime("run", "--bundle", made.save().path, "nowhere")
    assert done.returncode == 1 and done.stderr.strip(), done
    runtime("delete", "--force", "nowhere")


@pytest.mark.parametrize("what", ["proc", "sys"])
@pytest.mark.parametrize("where", ["inside", "host"])
def test_proc_and_sys_are_not_mounted_through_links(runtime, bundle, rootfs, canary, what, where):
    """CVE-2019-16884, CVE-2019-19921: else the program's labels and masks would go to where no kernel looks."""
    shutil.rmtree(rootfs / what)
    (rootfs / "elsewhere").mkdir()
    os.symlink("/elsewhere" if where == "inside" else canary / "dir", rootfs / what)
    made = bundle("true")
    done = runtime("run", "--bundle", made.save().path, "linked")
    assert done.returncode == 1 and "must be mounted on ordinary directory" in done.stderr, done.stderr
    runtime("delete", "--force", "linked")


@only_chiton
def test_dev_is_a_link(container, rootfs, canary):
    """Its nodes are made inside, nothing on the host (where runc 1.1 makes its links)."""
    shutil.rmtree(rootfs / "dev")
    os.symlink(up(canary / "dir"), rootfs / "dev")

    def change(config):
        config["mounts"] = [mount for mount in config["mounts"] if not mount["destination"].startswith("/dev")]
        config["linux"]["devices"] = [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3},
                                      {"path": "/dev/fifo", "type": "p", "fileMode": 0o600}]
    out = ran(container, "sh", "-c", "echo x >/dev/null && readlink /dev && ls /dev/", change=change)
    assert {"null", "zero", "mine", "fifo"} <= set(out.split()), out


def test_nodes_over_links(container, rootfs, canary):
    """A link at a device's place is not followed (CVE-2025-31133 is that of a masked path's /dev/null)."""
    os.symlink(canary / "secret", rootfs / "node")

    def change(config):
        config["linux"]["devices"] = [{"path": "/node", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666}]
        config["linux"]["maskedPaths"].append("/etc/passwd")
        # In a tmpfs that the container's own files fill: a null that is none.
        config["mounts"] = [m for m in config["mounts"] if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
    shutil.rmtree(rootfs / "dev")
    (rootfs / "dev/pts").mkdir(parents=True)
    made = container("sh", "-c", "cat /etc/passwd | wc -c; head -c3 /node | od -An -tx1", change=change)
    made.ends()
    out = (made.bundle.path / "output").read_text()
    assert out.split() == ["0", "00", "00", "00"], out


def test_a_null_of_the_containers_own(container, rootfs, canary):
    """What hides a path is the kernel's null and not what the container has at /dev/null."""
    shutil.rmtree(rootfs / "dev")
    (rootfs / "dev/pts").mkdir(parents=True)
    os.symlink("/etc/hostname", rootfs / "dev/null")
    (rootfs / "etc/hostname").write_text("shown\n")
    (rootfs / "hidden").write_text("to be hidden\n")

    def change(config):
        config["mounts"] = [m for m in config["mounts"] if m["destination"] not in ("/dev", "/dev/shm", "/dev/mqueue")]
        config["linux"]["maskedPaths"].append("/hidden")
    out = ran(container, "sh", "-c", "cat /hidden", change=change)
    assert "hidden" not in out and "shown" not in out, out


def test_protected_paths_through_links(container, rootfs, canary):
    os.symlink("/proc/sys", rootfs / "sys-link")
    os.symlink(up("proc/keys"), rootfs / "keys-link")
    os.symlink(canary / "secret", rootfs / "host-link")
    os.symlink("loop", rootfs / "loop")

    def change(config):
        config["linux"]["maskedPaths"] = ["/keys-link", "/host-link", "/proc/timer_list"]
        config["linux"]["readonlyPaths"] = ["/sys-link", "/proc/bus", "/host-link/x"]
    out = ran(container, "sh", "-c", "wc -c </proc/keys; echo 1 >/proc/sys/vm/swappiness; exit 0", change=change)
    assert out.splitlines()[0] == "0" and "Read-only file system" in out, out


@pytest.mark.timeout(200)
def test_working_directories_that_lead_out(runtime, container, bundle, rootfs):
    """CVE-2024-21626: a working directory by way of a descriptor that the runtime has left open."""
    for number in range(3, 12):
        made = bundle("sh", "-c", "pwd -P; ls")
        made.config["process"]["cwd"] = f"/proc/self/fd/{number}"
        done = runtime("run", "--bundle", made.save().path, "out")
        runtime("delete", "--force", "out")
        assert done.returncode != 0, (number, done.stdout)
    inside = container("sleep", "1000")
    for number in range(3, 24, 2):
        done = inside.exec("sh", "-c", "pwd -P; ls; cat ../../../etc/hostname", options=("--cwd", f"/proc/self/fd/{number}"))
        # Only ever what the container has itself.
        assert done.returncode != 0 or done.stdout.splitlines()[0].startswith("/"), (number, done.stdout)
        assert "initramfs" not in done.stdout and "share" not in done.stdout


def test_files_that_engines_bind_over_links(container, rootfs, scratch, canary):
    """As with etc/resolv.conf -> /run/..., or out of the root."""
    (scratch / "resolv").write_text("nameserver 192.0.2.1\n")
    for name, target in (("resolv.conf", canary / "secret"), ("hosts", "/run/systemd/hosts"), ("hostname", up(canary / "new"))):
        (rootfs / "etc" / name).unlink(missing_ok=True)
        os.symlink(target, rootfs / "etc" / name)

    def change(config):
        config["mounts"] += [{"destination": f"/etc/{name}", "type": "bind", "source": str(scratch / "resolv"),
                              "options": ["bind", "ro", "rprivate"]} for name in ("resolv.conf", "hosts", "hostname")]
    out = ran(container, "sh", "-c", "cat /etc/resolv.conf /etc/hosts /etc/hostname", change=change)
    assert out == "nameserver 192.0.2.1\n" * 3, out
    assert not (canary / "new").exists()


# linux/fcntl.h, linux/fs.h
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextlib.contextmanager
def swapped(path, target, pause):
    """A directory and a link to `target` change places all the while."""
    link = path.parent / "link"
    os.symlink(target, link)
    stop = threading.Event()

    def swap():
        libc = ctypes.CDLL(None, use_errno=True)
        while not stop.is_set():
            if libc.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(link), RENAME_EXCHANGE) != 0:
                raise OSError(ctypes.get_errno(), "renameat2")
            time.sleep(pause)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        try:
            yield
        finally:
            stop.set()
        swapping.result()


@only_chiton
def test_what_the_host_has_at_the_end_of_links_is_not_seen(container, rootfs, canary):
    """Reads, writes and creations through links, and through a directory that is swapped for one while it is used."""
    os.symlink(canary, rootfs / "absolute")
    os.symlink(up(canary), rootfs / "climbing")
    (rootfs / "swap/dir").mkdir(parents=True)
    (rootfs / "swap/dir/secret").write_text("inside\n")
    (rootfs / "script.py").write_text("""
import json, os, time
seen = set()
def attempt(what):
    try:
        seen.add(what())
    except OSError as e:
        seen.add(e.strerror)
for path in ("/absolute", "/climbing", "/swap/dir"):
    end = time.monotonic() + 60
    for n in range(1000000 if path == "/swap/dir" else 1):
        # What is found of a name is kept for a second, and a link that is looked up anew is one again in three of four.
        if n > 300 and "inside\\n" in seen or time.monotonic() > end:
            break
        attempt(lambda: open(f"{path}/secret").read())
        attempt(lambda: open(f"{path}/made-{n}", "w").close())
        attempt(lambda: os.mkdir(f"{path}/dir-{n}"))
print(json.dumps(sorted(str(s) for s in seen)))
""")
    with swapped(rootfs / "swap/dir", canary, 0.002):
        out = ran(container, "python3", "/script.py")
    seen = json.loads(out.splitlines()[-1])
    assert "the host's secret\n" not in seen and "inside\n" in seen, seen


def test_a_root_that_changes_while_it_is_set_up(chiton, bundle, rootfs, canary):
    """Mount points are swapped for links to the host all the while: the container comes up or it does not; nothing leaves the root."""
    (rootfs / "race/point").mkdir(parents=True)
    with swapped(rootfs / "race/point", up(canary / "dir"), 0):
        for number in range(4):
            made = bundle("sh", "-c", "ls -A /race/point/ >/dev/null; exit 0")
            made.config["mounts"] += [tmpfs(f"/race/point/{n}") for n in range(10)]
            chiton("run", "--bundle", made.save().path, f"race-{number}")
            chiton("delete", "--force", f"race-{number}")
    listed = subprocess.run(["findmnt", "-rno", "TARGET"], capture_output=True, text=True, check=True).stdout
    assert str(canary) not in listed and str(rootfs / "race") not in listed


@only_chiton
def test_special_files_of_the_root_are_the_guests(container, rootfs):
    """Sockets, FIFOs and devices of the root filesystem do not lead to the host."""
    listener = socket.socket(socket.AF_UNIX)
    path = rootfs / "listening"
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(0.1)
    os.mkfifo(rootfs / "fifo")
    os.mknod(rootfs / "kvm", 0o20666, os.makedev(10, 232))
    os.mknod(rootfs / "loop", 0o60666, os.makedev(7, 0))
    (rootfs / "script.py").write_text("""
import json, os, socket
def attempt(what):
    try:
        what(); return "ok"
    except OSError as e:
        return e.strerror
print(json.dumps([attempt(lambda: socket.socket(socket.AF_UNIX).connect("/listening")),
    attempt(lambda: os.open("/fifo", os.O_WRONLY | os.O_NONBLOCK)), attempt(lambda: os.open("/kvm", os.O_RDWR)),
    attempt(lambda: os.open("/loop", os.O_RDWR))]))
""")
    out = ran(container, "python3", "/script.py")
    connected, fifo, kvm, loop = json.loads(out.splitlines()[-1])
    assert connected == "Connection refused" and fifo == "No such device or address", out
    assert "ok" not in (kvm, loop)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


@only_chiton
def test_hooks_in_the_guest_follow_no_link_out(container, rootfs, canary):
    """startContainer's path is one of the container."""
    os.symlink(canary / "secret", rootfs / "usr/local/bin/hook")
    (rootfs / "real-hook").write_text("#!/bin/sh\ncat >/hook-ran\n")
    (rootfs / "real-hook").chmod(0o755)
    os.symlink("/real-hook", rootfs / "usr/local/bin/good")

    def change(config):
        config["hooks"] = {"startContainer": [{"path": "/usr/local/bin/good"}]}
    ran(container, "true", change=change)
    assert json.loads((rootfs / "hook-ran").read_text())["status"] in ("created", "running", "creating")
