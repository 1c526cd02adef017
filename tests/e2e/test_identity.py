"""A file of the host that a container has at two places is one file: as with runc, by whichever place it is reached."""

import contextlib
import json
import subprocess

import pytest

from chiton import only_chiton, ran, wait_for

# How late the guest may see what the host has changed, with some time for a slow machine to look.
BOUND = 1.0 + 4.0

# `here` can be written, `there` is the same directory.
SCRIPT = """
import ctypes, errno, fcntl, json, mmap, os, socket, struct, time
here, there, both = ARGUMENTS

def same(name=""):
    one, other = os.stat(here + name), os.stat(there + name)
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)

def fails(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

libc = ctypes.CDLL(None, use_errno=True)
def watch(path, mask):
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0 and libc.inotify_add_watch(fd, path.encode(), mask) >= 0
    return fd
def events(fd):
    try:
        return [struct.unpack_from("iI", os.read(fd, 4096))[1]]
    except BlockingIOError:
        return []

# What is mounted below is there when it is entered.
told = {"directories": same("/.")}
# Known before it is written: by the place that cannot be written, if one cannot.
read = os.open(there + "/known", os.O_RDONLY)
told["known"] = os.read(read, 9).decode()
told["refused"] = fails(os.open, there + "/known", os.O_WRONLY) if not both else fails(os.open, there + "/none", os.O_RDONLY)
write = os.open(here + "/known", os.O_RDWR)
told["files"] = same("/known")

fcntl.flock(write, fcntl.LOCK_EX)
told["flock"] = fails(fcntl.flock, read, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.flock(write, fcntl.LOCK_UN)
told["unlocked"] = fails(fcntl.flock, read, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.lockf(write, fcntl.LOCK_EX)
if not (child := os.fork()):
    fd = os.open(there + "/known", os.O_RDONLY)
    os._exit(fails(fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN")
told["lockf"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

one = mmap.mmap(write, 4096, mmap.MAP_SHARED)
other = mmap.mmap(read, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
one[:5] = b"first"
told["mapped"] = other[:5].decode()
os.pwrite(write, b"second", 100)
told["written"] = [other[100:106].decode(), os.pread(read, 6, 100).decode()]
if both:
    back = mmap.mmap(os.open(there + "/known", os.O_RDWR), 4096, mmap.MAP_SHARED)
    back[200:205] = b"third"
    told["back"] = one[200:205].decode()

MODIFY, CREATE = 2, 0x100
file, directory = watch(there + "/known", MODIFY), watch(there, CREATE)
os.write(write, b"x")
os.close(os.open(here + "/new", os.O_CREAT | os.O_WRONLY))
told["events"] = [events(file), events(directory)]

server = socket.socket(socket.AF_UNIX)
server.bind(here + "/socket")
server.listen()
client = socket.socket(socket.AF_UNIX)
told["socket"] = fails(client.connect, there + "/socket")

told["before"] = [os.path.exists(there + "/" + name) for name in ("new", "renamed", "gone")]
os.rename(here + "/new", here + "/renamed")
os.unlink(here + "/gone")
told["after"] = [os.path.exists(there + "/" + name) for name in ("new", "renamed", "gone")]
os.mkdir(here + "/made")
told["made"] = same("/made")
os.truncate(here + "/renamed", 77)
os.chmod(here + "/renamed", 0o612)
stat = os.stat(there + "/renamed")
told["attributes"] = [stat.st_size, oct(stat.st_mode & 0o777)]
if both:
    os.rename(there + "/renamed", there + "/back")
    told["other way"] = [os.path.exists(here + "/renamed"), os.path.exists(here + "/back")]
MORE
# The host changes something.
os.close(os.open(here + "/ready", os.O_CREAT | os.O_WRONLY))
while os.path.exists(there + "/ready"):
    time.sleep(0.02)
begin = time.monotonic()
def seen(place):
    return os.path.exists(place + "/from the host") and open(place + "/changed").read() == "changed"
while not (seen(here) and seen(there)) and time.monotonic() < begin + 20:
    time.sleep(0.02)
told["host"] = time.monotonic() - begin
print(json.dumps(told), flush=True)
"""


def bind(source, destination, *options):
    return {"destination": destination, "type": "bind", "source": str(source), "options": list(options)}


# What is bound, in this order, and whether both can be written. With a directory below, it is that which is compared.
CASES = {
    "twice": ([("", "/a", "bind"), ("", "/b", "bind")], "/a", "/b", True),
    "read-only first": ([("", "/a", "bind", "ro"), ("", "/b", "bind")], "/b", "/a", False),
    "read-only last": ([("", "/a", "bind"), ("", "/b", "bind", "ro")], "/a", "/b", False),
    "and its subdirectory": ([("", "/a", "bind"), ("sub", "/b", "bind")], "/a/sub", "/b", True),
    "subdirectory first": ([("sub", "/b", "bind"), ("", "/a", "bind")], "/a/sub", "/b", True),
    "subdirectory of a read-only one": ([("", "/a", "rbind", "ro"), ("sub", "/b", "bind")], "/b", "/a/sub", False),
    "read-only subdirectory": ([("sub", "/b", "bind", "ro"), ("", "/a", "bind")], "/a/sub", "/b", False),
}

# A name is changed between the directory and what is bound of it.
ACROSS = """
open("/a/x", "w").close()
os.rename("/a/x", "/a/sub/y")
os.link("/a/sub/y", "/a/z")
told["across"] = [os.path.exists("/b/y"), os.stat("/b/y").st_nlink]
os.rename("/b/y", "/b/w")
told["back again"] = os.path.exists("/a/sub/w")
"""


@pytest.fixture
def volume(scratch, request):
    path = scratch / f"volume-{request.node.name}"
    path.mkdir()
    return path


def check(container, rootfs, directory, mounts, here, there, both, more=""):
    """Lets a container look at a directory that it has at two places."""
    for name in ("known", "gone", "changed"):
        (directory / name).write_text(name)
    with open(directory / "known", "a") as known:
        known.truncate(4096)
    script = SCRIPT.replace("ARGUMENTS", repr((here, there, both))).replace("MORE", more)
    (rootfs / "script.py").write_text(script)
    made = container("python3", "/script.py", change=lambda config: config["mounts"].extend(mounts))
    output = made.bundle.path / "output"
    ready = directory / "ready"
    wait_for(lambda: ready.exists() or made.status == "stopped", 100)
    assert ready.exists(), output.read_text()
    (directory / "changed").write_text("changed")
    (directory / "from the host").touch()
    ready.unlink()
    made.ends(100)
    told = json.loads(output.read_text().splitlines()[-1])
    assert told.pop("host") < BOUND
    expected = {
        "directories": True, "known": "known\0\0\0\0", "refused": "ENOENT" if both else "EROFS", "files": True,
        "flock": "EAGAIN", "unlocked": None, "lockf": 1,
        "mapped": "first", "written": ["second", "second"], "events": [[2], [0x100]], "socket": None,
        "before": [True, False, True], "after": [False, True, False], "made": True, "attributes": [77, "0o612"],
    }
    if both:
        expected |= {"back": "third", "other way": [False, True]}
    if more:
        expected |= {"across": [True, 2], "back again": True}
    assert told == expected


@pytest.mark.parametrize("case", CASES)
def test_a_directory_at_two_places(container, rootfs, volume, case):
    mounts, here, there, both = CASES[case]
    (volume / "sub").mkdir()
    below = any(source == "sub" for source, *_ in mounts)
    mounts = [bind(volume / source, *rest) for source, *rest in mounts]
    more = ACROSS if below and both else ""
    check(container, rootfs, volume / "sub" if below else volume, mounts, here, there, both, more)


# `here` is in a directory, `there` the same file by itself.
FILE = """
import fcntl, json, mmap, os
one, other = os.stat("/a/file"), os.stat("/f")
told = {"same": (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)}
read, write = os.open("/f", os.O_RDONLY), os.open("/a/file", os.O_RDWR)
fcntl.flock(write, fcntl.LOCK_EX)
try:
    fcntl.flock(read, fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError:
    told["locked"] = True
here = mmap.mmap(write, 4096, mmap.MAP_SHARED)
there = mmap.mmap(read, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
here[:4] = b"here"
told["mapped"] = there[:4].decode()
try:
    os.pwrite(os.open("/f", os.O_WRONLY), b"by f", 100)
    told["written"] = here[100:104].decode()
except OSError as error:
    told["written"] = error.strerror
os.truncate("/a/file", 8192)
told["size"] = os.stat("/f").st_size
os.rename("/a/file", "/a/moved")
os.unlink("/a/moved")
told["unlinked"] = [os.stat("/f").st_nlink, open("/f").read(4)]
os.sync()
print(json.dumps(told))
"""


@pytest.mark.parametrize("options", ["rw", "ro"])
@pytest.mark.parametrize("first", ["file", "directory"])
def test_a_file_and_its_directory(container, rootfs, volume, options, first):
    (volume / "file").write_bytes(bytes(4096))
    mounts = [bind(volume / "file", "/f", "bind", options), bind(volume, "/a", "bind")]
    if first == "directory":
        mounts.reverse()
    assert ran(container, rootfs, FILE, lambda config: config["mounts"].extend(mounts)) == {
        "same": True, "locked": True, "mapped": "here", "size": 8192, "unlinked": [0, "here"],
        "written": "by f" if options == "rw" else "Read-only file system",
    }


@contextlib.contextmanager
def mounted(place):
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "identity", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", ["bind", "rbind"])
def test_where_something_is_mounted_below(container, rootfs, volume, kind):
    """Without what is mounted below it is one directory at both places; with it, what is mounted there is."""
    with mounted(volume / "below"):
        (volume / "below" / "in").touch()
        mounts = [bind(volume, "/a", kind), bind(volume, "/b", kind)]
        below = "/below" if kind == "rbind" else ""
        directory = volume / "below" if kind == "rbind" else volume
        check(container, rootfs, directory, mounts, "/a" + below, "/b" + below, True)


# Read by a place that cannot be written, so that it is mapped; then written by its other name.
MAPPED = """
import errno, json, mmap, os
read = mmap.mmap(os.open("/r/big", os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_READ)
told = {"before": read[:6].decode()}
file = os.open("/w/big", os.O_RDWR)
told["same"] = os.stat("/w/big").st_ino == os.stat("/r/big").st_ino
os.pwrite(file, b"second", 0)
os.pwrite(file, b"third", len(read) - 2)
told["written"] = [read[:6].decode(), os.pread(file, 6, 0).decode(), read[-2:].decode(), os.stat("/r/big").st_size - len(read)]
try:
    mmap.mmap(file, 4096, mmap.MAP_SHARED)
except OSError as error:
    told["mapping"] = errno.errorcode[error.errno]
mine = mmap.mmap(file, 4096, mmap.MAP_PRIVATE)
mine[:4] = b"mine"
seen = mmap.mmap(file, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
told["private"] = seen[:6].decode()
os.ftruncate(file, 5 << 20)
told["size"] = os.stat("/r/big").st_size
print(json.dumps(told))
"""


@only_chiton
def test_a_mapped_file_that_can_be_written_elsewhere(container, rootfs, volume):
    for name in ("r", "w"):
        (volume / name).mkdir()
    (volume / "r/big").write_bytes(b"first!" + bytes(6 << 20))
    (volume / "w/big").hardlink_to(volume / "r/big")
    mounts = [bind(volume / "r", "/r", "bind", "ro"), bind(volume / "w", "/w", "bind")]
    assert ran(container, rootfs, MAPPED, lambda config: config["mounts"].extend(mounts)) == {
        "before": "first!", "same": True, "written": ["second", "second", "th", 3], "mapping": "ENODEV",
        "private": "second", "size": 5 << 20,
    }
    assert (volume / "r/big").read_bytes()[:6] == b"second"
