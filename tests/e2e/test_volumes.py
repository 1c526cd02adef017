"""Volumes: what docs/volumes.md promises of files that the host and the container share."""

import ctypes
import json
import os
import pathlib
import resource
import threading
import time

import pytest

from chiton import only_chiton, wait_for
from tracing import Calls

# asm/unistd_64.h
OPENAT, PREADV2, STATX = 257, 327, 332

# linux/prctl.h, linux/capability.h
PR_CAPBSET_DROP, CAP_SYS_RESOURCE = 24, 24
PRCTL = ctypes.CDLL(None).prctl

# How late the guest may see what the host has changed, with some time for a slow machine to look.
BOUND = 1.0 + 4.0


@pytest.fixture
def volume(scratch, request):
    path = scratch / f"volume-{request.node.name}"
    path.mkdir()
    path.chmod(0o777)
    return path


def bound(volume, *options):
    def change(config):
        config["mounts"].append({"destination": "/data", "type": "bind", "source": str(volume),
                                 "options": ["rbind", "rprivate", *options]})
    return change


def script(container, rootfs, text, change):
    """Runs a Python script that prints JSON as a container of its own; what it prints."""
    (rootfs / "script.py").write_text("import json, os\n" + text)
    made = container("python3", "/script.py", change=change)
    made.ends(200)
    output = (made.bundle.path / "output").read_text()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise AssertionError(output) from None


def test_changes_show_on_the_other_side(container, rootfs, volume):
    """The guest looks at what it knows already; the host changes it: content, attributes, names. And the other way round."""
    (volume / "file").write_text("old")
    (volume / "moved").write_text("moved")
    (volume / "gone").write_text("gone")
    (rootfs / "script.py").write_text("""
import json, os, time
def known():
    s = os.stat("/data/file")
    return {"content": open("/data/file").read(), "mode": oct(s.st_mode & 0o777), "owner": [s.st_uid, s.st_gid],
            "names": sorted(os.listdir("/data")), "there": [os.path.exists(f"/data/{n}") for n in ("moved", "here", "gone", "new")]}
before = known()
open("/data/ready", "w").close()
while os.path.exists("/data/ready"):
    time.sleep(0.02)
begin = time.monotonic()
wanted = {"content": "newer", "mode": "0o640", "owner": [7, 8], "names": ["file", "here", "new"], "there": [False, True, False, True]}
while (seen := known()) != wanted and time.monotonic() < begin + 20:
    time.sleep(0.02)
took = time.monotonic() - begin
fd = os.open("/data/back", os.O_RDWR | os.O_CREAT)
os.write(fd, b"from the guest"); os.chmod("/data/back", 0o600); os.rename("/data/back", "/data/there")
print(json.dumps({"before": before, "seen": seen == wanted and "all" or seen, "took": took}), flush=True)
time.sleep(1000)
""")
    made = container("python3", "/script.py", change=bound(volume))
    wait_for(lambda: (volume / "ready").exists())
    (volume / "file").write_text("newer")
    (volume / "file").chmod(0o640)
    os.chown(volume / "file", 7, 8)
    os.rename(volume / "moved", volume / "here")
    os.unlink(volume / "gone")
    (volume / "new").write_text("new")
    os.unlink(volume / "ready")
    wait_for(lambda: (made.bundle.path / "output").read_text())
    found = json.loads((made.bundle.path / "output").read_text())
    assert found["before"]["content"] == "old" and found["seen"] == "all" and found["took"] < BOUND, found
    # At once, with the file still open in the guest.
    assert (volume / "there").read_text() == "from the guest" and (volume / "there").stat().st_mode & 0o777 == 0o600


def test_files_that_were_open_before(container, rootfs):
    """Files of a lower layer, which is another file than the one that is written: whoever opens one again gets what is there now. And no one
    has to ask for a file that nobody has changed."""
    names = ["bash.bashrc", "debian_version", "deluser.conf", "host.conf", "issue", "issue.net", "login.defs", "profile"]
    found = rootfs / "etc"
    old = {name: (found / name).read_text() for name in names}
    mark = rootfs / "mark"
    (rootfs / "script.py").write_text("""
import glob, json, os, time
os.chdir("/etc")
def read(name):
    with open(name) as f:
        return f.read()
def wait(mark):
    os.rename("/mark", "/" + mark)
    while not os.path.exists("/mark"):
        time.sleep(0.02)
def until(name, wanted):
    end = time.monotonic() + 20
    while (seen := read(name)) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    return seen
out = {name: read(name) for name in NAMES}
reader = open("issue")
with open("debian_version", "a") as f:
    f.write("written\\n")
out["written"] = read("debian_version")
os.truncate("host.conf", 3)
out["truncated"] = read("host.conf")
with open("issue", "r+") as f:
    f.write("over"); f.flush()
    out["beside a writer"] = read("issue")
    reader.close()
out["after the first reader"] = read("issue")
with open("new", "w") as f:
    f.write("new")
os.rename("new", "issue.net")
out["replaced"] = read("issue.net")
os.unlink("login.defs")
read("profile")
wait("changed")
out["changed"] = until("profile", "by the host")
out["shorter"] = until("bash.bashrc", "x")
wait("counted")
begin = time.monotonic()
for _ in range(1000):
    read("deluser.conf")
out["took"] = time.monotonic() - begin
wait("done")
print(json.dumps(out), flush=True)
time.sleep(1000)
""".replace("NAMES", repr(names)))
    mark.touch()
    made = container("python3", "/script.py")
    seconds = iter(("changed", "counted", "done"))

    def reached():
        reached = rootfs / next(seconds)
        wait_for(reached.exists, 60)
        reached.unlink()

    reached()
    (found / "profile").write_text("by the host")
    (found / "bash.bashrc").write_text("x")
    mark.touch()
    reached()
    with Calls([]).counted() as calls:
        mark.touch()
        reached()
    threads = {int(task.name) for task in pathlib.Path(f"/proc/{made.pid}/task").iterdir()} - {made.pid}
    served = sum(count for (thread, number), count in calls[None].items() if thread in threads and number in (OPENAT, PREADV2, STATX))
    open_files = [os.readlink(link) for link in pathlib.Path(f"/proc/{made.pid}/fd").iterdir()]
    mark.touch()
    wait_for(lambda: (made.bundle.path / "output").read_text())
    seen = json.loads((made.bundle.path / "output").read_text())
    took = seen.pop("took")
    assert seen == old | {"written": old["debian_version"] + "written\n", "truncated": old["host.conf"][:3], "beside a writer": "over" + old["issue"][4:],
                          "after the first reader": "over" + old["issue"][4:], "replaced": "new", "changed": "by the host", "shorter": "x"}
    if made.runtime.name == "chiton":
        # Attributes are asked for once a second; and some of the script's own, and of the wait for it.
        assert served < 200 + 10 * took, (served, took)
        assert not [name for name in open_files if "login.defs" in name], "what is deleted stays on the host's disk"


def test_owners_and_read_only_variants(container, rootfs, volume, scratch):
    """Files arrive with the ids that made them; a single file and a read-only volume."""
    single = scratch / "single-volume"
    single.write_text("one")

    def change(config):
        bound(volume)(config)
        config["mounts"] += [
            {"destination": "/ro", "type": "bind", "source": str(volume), "options": ["rbind", "ro", "rprivate"]},
            {"destination": "/single", "type": "bind", "source": str(single), "options": ["bind", "rprivate"]},
        ]
    found = script(container, rootfs, """
for uid, gid in ((0, 0), (1000, 2000), (65534, 65534), (4294967294, 7)):
    pid = os.fork()
    if pid == 0:
        os.setgroups([]); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
        open(f"/data/{uid}", "w").close(); os.mkdir(f"/data/d{uid}"); os.symlink("x", f"/data/l{uid}"); os.mkfifo(f"/data/f{uid}")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
def attempt(what):
    try:
        what(); return "ok"
    except OSError as e:
        return e.strerror
open("/single", "a").write(" more")
print(json.dumps([attempt(lambda: open("/ro/x", "w")), attempt(lambda: os.chmod("/ro/0", 0o777)), attempt(lambda: os.rename("/ro/0", "/ro/y"))]))
""", change)
    assert found == ["Read-only file system"] * 3
    for uid, gid in ((0, 0), (1000, 2000), (65534, 65534), (4294967294, 7)):
        for name in (f"{uid}", f"d{uid}", f"l{uid}", f"f{uid}"):
            status = os.lstat(volume / name)
            assert (status.st_uid, status.st_gid) == (uid, gid), name
    assert single.read_text() == "one more"


def test_what_databases_do(container, rootfs, volume):
    """fsync of files and directories, O_DIRECT, O_SYNC, shared mappings, fallocate, both kinds of locks, atomic replacement."""
    found = script(container, rootfs, """
import ctypes, fcntl, mmap
out = {}
fd = os.open("/data/db", os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(fd, 0, 1 << 20)
out["allocated"] = os.fstat(fd).st_blocks * 512 >= 1 << 20
page = mmap.mmap(-1, 8192); page.write(b"d" * 8192)
direct = os.open("/data/db", os.O_RDWR | os.O_DIRECT)
out["direct"] = os.pwritev(direct, [page], 8192)
back = mmap.mmap(-1, 8192); os.preadv(direct, [back], 8192)
out["direct read"] = back[:] == b"d" * 8192 and os.pread(fd, 3, 8192) == b"ddd"
sync = os.open("/data/wal", os.O_WRONLY | os.O_CREAT | os.O_DSYNC | os.O_APPEND)
for n in range(20):
    os.write(sync, b"record %02d\\n" % n)
view = mmap.mmap(fd, 1 << 20)
view[4096:4100] = b"page"; view.flush()
out["mapped"] = os.pread(fd, 4, 4096) == b"page"
os.pwrite(fd, b"PAGE", 4096)
out["mapping sees writes"] = view[4096:4100] == b"PAGE"
os.fsync(fd); os.fdatasync(fd)
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint]
out["punched"] = libc.fallocate(fd, 3, 65536, 65536), os.pread(fd, 2, 65536) == bytes(2)   # KEEP_SIZE | PUNCH_HOLE
out["sync_file_range"] = libc.sync_file_range(fd, 0, 0, 7)
with open("/data/new", "w") as f:
    f.write("manifest 2"); f.flush(); os.fsync(f.fileno())
open("/data/manifest", "w").write("manifest 1")
os.rename("/data/new", "/data/manifest")
d = os.open("/data", os.O_RDONLY | os.O_DIRECTORY); os.fsync(d)
locks = []
for lock in (fcntl.flock, fcntl.lockf):
    lock(fd, fcntl.LOCK_EX)
    pid = os.fork()
    if pid == 0:
        other = os.open("/data/db", os.O_RDWR)
        try:
            lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(7)
        os._exit(1)
    locks.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    lock(fd, fcntl.LOCK_UN)
out["locks"] = locks
print(json.dumps(out))
""", bound(volume))
    assert found == {"allocated": True, "direct": 8192, "direct read": True, "mapped": True, "mapping sees writes": True,
                     "punched": [0, True], "sync_file_range": 0, "locks": [7, 7]}
    content = (volume / "db").read_bytes()
    assert content[4096:4100] == b"PAGE" and content[8192:16384] == b"d" * 8192 and len(content) == 1 << 20
    assert len((volume / "wal").read_text().splitlines()) == 20 and (volume / "manifest").read_text() == "manifest 2"


def test_an_overlay_of_the_containers_own(container, rootfs, volume):
    """Its lower layer on the volume, what is changed in memory."""
    (volume / "lower").mkdir()
    (volume / "lower/file").write_text("below\n")
    (volume / "lower/removed").write_text("x")

    def change(config):
        bound(volume)(config)
        config["mounts"].append({"destination": "/memory", "type": "tmpfs", "source": "t"})
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind] = [*config["process"]["capabilities"][kind], "CAP_SYS_ADMIN"]
    found = script(container, rootfs, """
import subprocess
for name in ("upper", "work", "merged"):
    os.mkdir(f"/memory/{name}")
subprocess.run(["mount", "-t", "overlay", "overlay", "-o", "lowerdir=/data/lower,upperdir=/memory/upper,workdir=/memory/work", "/memory/merged"], check=True)
open("/memory/merged/file", "a").write("above\\n")
open("/memory/merged/new", "w").close()
os.unlink("/memory/merged/removed")
print(json.dumps([open("/memory/merged/file").read(), sorted(os.listdir("/memory/merged"))]))
""", change)
    assert found == ["below\nabove\n", ["file", "new"]]
    assert (volume / "lower/file").read_text() == "below\n" and sorted(os.listdir(volume / "lower")) == ["file", "removed"]


# What gives privileges to whoever executes a file, tried in two directories; what became of it in words.
PRIVILEGES = """
import struct
def attempt(what):
    try:
        what(); return "ok"
    except OSError as e:
        return e.strerror
def tried(where):
    os.close(os.open(where + "/file", os.O_CREAT | os.O_RDWR, 0o755))
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    out = [attempt(lambda: os.chmod(where + "/file", mode)) for mode in (0o4755, 0o2755)]
    out.append(attempt(lambda: os.setxattr(where + "/file", "security.capability", capability)))
    os.umask(0)
    out.append(attempt(lambda: os.close(os.open(where + "/made", os.O_CREAT | os.O_RDWR, 0o4755))))
    out.append(attempt(lambda: os.mknod(where + "/node", 0o104755)))
    # What gives nobody any.
    os.chmod(where + "/file", 0o1777)
    os.mkdir(where + "/shared"); os.chmod(where + "/shared", 0o2775)
    os.mkdir(where + "/shared/inner")
    os.rename(where + "/given", where + "/moved"); os.link(where + "/moved", where + "/linked")
    return out
print(json.dumps([tried(where) for where in ("/own", "/data")]))
"""


def privileges(directory):
    """The host's files that have any, by name."""
    files = [path for path in directory.rglob("*") if not path.is_dir()]
    return sorted(path.name for path in files if path.stat().st_mode & 0o6000 or "security.capability" in os.listxattr(path))


def test_privileges_of_files_on_volumes(container, rootfs, volume):
    """As with runc they are real on the host, if nothing else is said."""
    for directory in (rootfs / "own", volume):
        directory.mkdir(exist_ok=True)
        (directory / "given").touch()
    found = script(container, rootfs, PRIVILEGES, bound(volume))
    assert found == [["ok"] * 5] * 2
    for directory in (rootfs / "own", volume):
        assert privileges(directory) == ["file", "made", "node"]


@only_chiton
def test_no_privileges_for_files_on_volumes(container, rootfs, volume):
    """With the annotation the root filesystem alone can have such files. What the host has made itself stays."""
    for directory in (rootfs / "own", volume):
        directory.mkdir(exist_ok=True)
        (directory / "given").touch()
        (directory / "given").chmod(0o4755)

    def change(config):
        bound(volume)(config)
        config["annotations"] = {"dev.chiton.volumes.privileges": "deny"}
    found = script(container, rootfs, PRIVILEGES, change)
    assert found == [["ok"] * 5, ["Operation not permitted"] * 5]
    assert privileges(rootfs / "own") == ["file", "linked", "made", "moved", "node"]
    assert privileges(volume) == ["linked", "moved"]
    assert sorted(os.listdir(volume)) == ["file", "linked", "moved", "shared"]
    assert (volume / "file").stat().st_mode & 0o7777 == 0o1777
    assert (volume / "shared/inner").stat().st_mode & 0o7777 == 0o2777, "directories hand their group down"


@only_chiton
@pytest.mark.timeout(400)
def test_more_files_than_descriptors(container, rootfs, volume):
    """The guest knows them all; the machine process holds a bounded number open, and finds the others again."""
    count, limit = 5000, 16384
    for number in range(count):
        if number % 1000 == 0:
            (volume / f"{number // 1000}").mkdir()
        with open(volume / f"{number // 1000}/{number}", "w") as f:
            f.write(str(number))
    most = 0
    stop = threading.Event()
    (rootfs / "script.py").write_text(f"""
import os, time
while not os.path.exists("/data/go"):
    time.sleep(0.1)
seen = sum(os.stat(f"/data/{{n // 1000}}/{{n}}").st_size > 0 for n in range({count}))
right = all(open(f"/data/{{n // 1000}}/{{n}}").read() == str(n) for n in range(0, {count}, 97))
print(seen, right, flush=True)
time.sleep(1000)
""")

    def few():
        """Whoever may not raise the limit makes a machine with no more."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        PRCTL(PR_CAPBSET_DROP, CAP_SYS_RESOURCE)

    made = container("python3", "/script.py", change=bound(volume), preexec_fn=few)

    def watch():
        nonlocal most
        while not stop.is_set():
            # The number of descriptors since Linux 6.2. Who lists them takes the processor from the machine.
            most = max(most, os.stat(f"/proc/{made.pid}/fd").st_size)
            time.sleep(0.1)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        (volume / "go").touch()
        wait_for(lambda: (made.bundle.path / "output").read_text(), 300)
    finally:
        stop.set()
        watcher.join()
    assert (made.bundle.path / "output").read_text() == f"{count} True\n"
    with open(f"/proc/{made.pid}/limits") as limits:
        assert limit == next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))
    # An eighth of the limit for what is only known, half as much for what was open, and what else there is.
    assert 1000 < most < limit // 8 + limit // 16 + 200, (most, limit)
