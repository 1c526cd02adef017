"""Access lists (POSIX ACLs) and what else files have beside mode and owner: the same inside as on the host (docs/volumes.md)."""

import errno
import os
import struct
import subprocess

import pytest

from chiton import only_chiton
from test_id_maps import SCRIPT, told, volume  # noqa: F401

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
OWNER, USER, GROUP, NAMED, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(text):
    """What linux/posix_acl_xattr.h makes of `u::6 u:1234:4 g::0 m::4 o::0`."""
    packed = struct.pack("<I", 2)
    for entry in text.split():
        kind, who, permissions = entry.split(":")
        tag = {"u": USER if who else OWNER, "g": NAMED if who else GROUP, "m": MASK, "o": OTHER}[kind]
        packed += struct.pack("<HHI", tag, int(permissions), int(who or 0xffffffff))
    return packed


def readable(packed):
    entries = struct.iter_unpack("<HHI", packed[4:])
    kinds = {OWNER: "u", USER: "u", GROUP: "g", NAMED: "g", MASK: "m", OTHER: "o"}
    return " ".join(f"{kinds[tag]}:{who if tag in (USER, NAMED) else ''}:{permissions}" for tag, permissions, who in entries)


def bind(source, *options, to="/srv"):
    return {"destination": to, "type": "bind", "source": str(source), "options": ["bind", *options]}


def listed(path, name=ACCESS):
    try:
        return readable(os.getxattr(path, name))
    except OSError as e:
        return errno.errorcode[e.errno]


HELPERS = SCRIPT.split("def make(", 1)[0] + """
def read(path):
    return tried(lambda: open(path).read())
def write(path):
    return tried(lambda: open(path, "a").write("x"))
def of(path, name="access"):
    return tried(lambda: os.getxattr(path, "system.posix_acl_" + name).hex())
def set_list(path, value, name="access"):
    return tried(os.setxattr, path, "system.posix_acl_" + name, value)
def mode(path):
    return oct(os.stat(path).st_mode & 0o7777)
LISTS = {name: bytes.fromhex(value) for name, value in LISTS.items()}
"""
ENFORCED = """
out["granted"] = [as_user(uid, lambda: read("/srv/granted")) for uid in (1234, 1235)]
out["denied"] = [as_user(uid, lambda: read("/srv/denied")) for uid in (1234, 1235)]
out["a group"] = [as_user(uid, lambda: (read("/srv/of-a-group"), write("/srv/of-a-group"))) for uid in (4321, 4322)]
# The mode shows the mask, not what the group may.
out["masked"] = as_user(50, lambda: read("/srv/masked"))
out["searched"] = [as_user(uid, lambda: read("/srv/closed/file")) for uid in (1234, 1235)]
out["listed"] = sorted(name for name in os.listxattr("/srv/granted"))
# What an owner sets holds at once, also for those who have just looked.
out["before"] = as_user(1234, lambda: read("/srv/own"))
out["set"] = as_user(1000, lambda: set_list("/srv/own", LISTS["own"]))
out["after"] = [as_user(1234, lambda: read("/srv/own")), mode("/srv/own")]
out["not theirs"] = as_user(1234, lambda: set_list("/srv/own", LISTS["own"]))
out["chmod"] = [os.chmod("/srv/own", 0o600), as_user(1234, lambda: read("/srv/own")), of("/srv/own") == LISTS["masked out"].hex()]
out["again"] = [os.chmod("/srv/own", 0o640), as_user(1234, lambda: read("/srv/own"))]
out["removed"] = [os.removexattr("/srv/own", "system.posix_acl_access"), as_user(1234, lambda: read("/srv/own")), of("/srv/own"), mode("/srv/own")]
out["no list"] = [set_list("/srv/own", b"odd"), set_list("/srv/own", LISTS["own"], "default")]
out["bits"] = []
for uid in (0, 1000):
    os.chown("/srv/bits", 1000, 50); os.chmod("/srv/bits", 0o2755)
    out["bits"] += [as_user(uid, lambda: set_list("/srv/bits", LISTS["bits"])), mode("/srv/bits")]
os.chmod("/srv/bits", 0o4777)
out["written"] = [as_user(1234, lambda: write("/srv/bits")), mode("/srv/bits")]
# What is made in a directory with a default list, and in one without.
out["made"] = {}
for umask in (0o022, 0o077, 0):
    for place in ("inherits", "plain"):
        here = f"/srv/{place}/{umask:o}"
        def made():
            os.umask(umask)
            os.mkdir(here)
            os.close(os.open(f"{here}/file", os.O_CREAT | os.O_RDWR, 0o666))
            os.close(os.open(f"{here}/narrow", os.O_CREAT | os.O_RDWR, 0o604))
            os.mknod(f"{here}/node", 0o666)
            os.mkfifo(f"{here}/fifo")
            socket.socket(socket.AF_UNIX).bind(f"{here}/socket")
            fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o666)
            os.link(f"/proc/self/fd/{fd}", f"{here}/unnamed", src_dir_fd=fd)
            os.mkdir(f"{here}/dir", 0o755)
            return {name or ".": mode(f"{here}/{name}")[2:] for name in ("", *sorted(os.listdir(here)))}
        out["made"][f"{place} {umask:o}"] = as_user(1000, lambda: tried(made))
print(json.dumps(out), flush=True)
"""


@pytest.mark.parametrize("volume", [None, "tmpfs"], indirect=True, ids=["ext4", "tmpfs"])
def test_access_lists(container, volume, id_maps, on_a_root):  # noqa: F811
    def made(name, owner, mode, lists):
        (volume / name).write_text("text")
        os.chown(volume / name, owner, 50)
        (volume / name).chmod(mode)
        if lists:
            os.setxattr(volume / name, ACCESS, acl(lists))
    made("granted", 0, 0o600, "u::6 u:1234:4 g::0 m::4 o::0")
    made("denied", 0, 0o644, "u::6 u:1234:0 g::4 m::4 o::4")
    made("of-a-group", 0, 0o600, "u::6 g::0 g:4321:4 m::6 o::0")
    made("masked", 0, 0o660, "u::6 u:7:6 g::0 m::6 o::0")
    made("own", 1000, 0o600, None)
    made("bits", 1000, 0o755, None)
    for name in ("closed", "inherits", "plain"):
        (volume / name).mkdir()
        os.chown(volume / name, 1000, 1000)
    (volume / "closed").chmod(0o700)
    (volume / "closed/file").write_text("text")
    os.setxattr(volume / "closed", ACCESS, acl("u::7 u:1234:1 g::0 m::1 o::0"))
    inherited = "u::7 u:1234:6 g::5 m::7 o::1"
    os.setxattr(volume / "inherits", DEFAULT, acl(inherited))
    lists = {"own": "u::6 u:1234:4 g::0 m::4 o::0", "masked out": "u::6 u:1234:4 g::0 m::0 o::0", "bits": "u::7 u:1234:6 g::5 m::7 o::5"}

    def change(config):
        packed = {name: acl(text).hex() for name, text in lists.items()}
        config["process"]["args"][-1] = f"LISTS = {packed!r}\n" + HELPERS + ENFORCED
        config["mounts"].append(bind(volume))
    found = told(container("python3", "-c", "", change=on_a_root(id_maps, change)))
    plain = {"22": ["644", "604", "755", "755"], "77": ["600", "600", "700", "700"], "0": ["666", "604", "777", "755"]}
    with_a_list = ["660", "600", "771", "751"]
    expected = {}
    for umask, (file, narrow, own, directory) in plain.items():
        names = {name: file for name in ("fifo", "file", "node", "unnamed")}
        # A socket is made with what the umask leaves.
        bound = 0o777 & ~int(umask, 8)
        expected[f"plain {umask}"] = {".": own, "dir": directory, "narrow": narrow, "socket": oct(bound)[2:]} | names
        names = {name: with_a_list[0] for name in ("fifo", "file", "node", "unnamed")}
        expected[f"inherits {umask}"] = {".": with_a_list[2], "dir": with_a_list[3], "narrow": with_a_list[1], "socket": oct(bound & 0o771)[2:]} | names
    assert found.pop("made") == expected
    assert found == {
        "granted": ["text", "EACCES"], "denied": ["EACCES", "text"], "a group": [["text", "EACCES"], ["EACCES", "EACCES"]],
        "masked": "EACCES", "searched": ["text", "EACCES"], "listed": [ACCESS],
        "before": "EACCES", "set": None, "after": ["text", "0o640"], "not theirs": "EPERM", "chmod": [None, "EACCES", True],
        "again": [None, "text"], "removed": [None, "EACCES", "ENODATA", "0o640"], "no list": ["EINVAL", "EACCES"],
        "bits": [None, "0o2775", None, "0o775"], "written": [1, "0o777"],
    }
    # The host has the same.
    assert listed(volume / "bits") == "u::7 u:1234:6 g::5 m::7 o::7"
    assert listed(volume / "own") == "ENODATA"
    assert listed(volume / "inherits/77/file") == "u::6 u:1234:6 g::5 m::6 o::0"
    assert listed(volume / "inherits/77/dir", DEFAULT) == inherited
    assert listed(volume / "plain/77/file") == "ENODATA"


MAPPED = """
out["seen"] = of("/srv/file") and [as_user(uid, lambda: read("/srv/file")) for uid in (7, 8)]
out["entries"] = of("/srv/file")
out["set"] = set_list("/srv/made", LISTS["made"])
print(json.dumps(out), flush=True)
"""


def lists_of_mapped_ids(container, volume, change, inside, named, beyond, unmapped):  # noqa: F811
    """What a list says of `named`, who is `inside` in the container, and of somebody who is not there."""
    for name in ("file", "made"):
        (volume / name).write_text("text")
    both = " ".join(f"u:{who}:4" for who in sorted((named, beyond)))
    os.setxattr(volume / "file", ACCESS, acl(f"u::6 {both} g::0 m::4 o::0"))

    def all_changes(config):
        lists = {"made": acl(f"u::6 u:{inside}:4 g::0 m::4 o::0").hex()}
        text = MAPPED.replace("(7, 8)", f"({inside}, {inside + 1})")
        config["process"]["args"][-1] = f"LISTS = {lists!r}\n" + HELPERS + text
        change(config)
    found = told(container("python3", "-c", "", change=all_changes))
    assert found["seen"] == ["text", "EACCES"] and found["set"] is None
    assert readable(bytes.fromhex(found["entries"])) == f"u::6 {unmapped}u:{inside}:4 g::0 m::4 o::0"
    assert listed(volume / "made") == f"u::6 u:{named}:4 g::0 m::4 o::0"


def test_lists_in_a_user_namespace(container, volume):  # noqa: F811
    mapping = [{"containerID": 0, "hostID": 0, "size": 1000}, {"containerID": 1000, "hostID": 100000, "size": 2000}]

    def change(config):
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=mapping, gidMappings=mapping)
        config["mounts"].append(bind(volume))
    lists_of_mapped_ids(container, volume, change, 1007, 100007, 5000, "u:4294967295:4 ")


@only_chiton  # Debian's runc has no id-mapped mounts
def test_lists_on_a_mount_with_mapped_ids(container, volume):  # noqa: F811
    mapping = [{"containerID": 0, "hostID": 100000, "size": 2000}]

    def change(config):
        config["mounts"].append(bind(volume, "idmap") | {"uidMappings": mapping, "gidMappings": mapping})
    lists_of_mapped_ids(container, volume, change, 100007, 7, 5000, "")


def test_an_entry_of_nobody_leaves_the_others(container, volume, on_a_root):  # noqa: F811
    """One whom the container cannot have: the list holds for all others."""
    (volume / "file").write_text("text")
    os.setxattr(volume / "file", ACCESS, acl("u::6 u:1234:4 u:4294967290:4 g::0 m::4 o::0"))

    def change(config):
        config["process"]["args"][-1] = "LISTS = {}\n" + HELPERS + """
out["read"] = [as_user(uid, lambda: read("/srv/file")) for uid in (1234, 1235)]
print(json.dumps(out))
"""
        config["mounts"].append(bind(volume))
    assert told(container("python3", "-c", "", change=on_a_root("shifted", change))) == {"read": ["text", "EACCES"]}


TRUSTED = """
import ctypes, subprocess
os.chdir("/srv")
for name in ("lower", "upper", "work", "merged", "lower/dir"):
    os.mkdir(name)
for name in ("lower/file", "lower/gone", "lower/dir/a"):
    open(name, "w").write(name)
libc = ctypes.CDLL(None, use_errno=True)
layers = b"lowerdir=lower,upperdir=upper,workdir=work"
mounted = lambda: libc.mount(b"overlay", b"merged", b"overlay", 0, layers)
out["mounted"] = mounted()
open("merged/file", "a").write("+")
os.unlink("merged/gone")
subprocess.run(["mv", "merged/dir", "merged/there"], check=True)
os.mkdir("merged/dir")
out["unmounted"] = libc.umount(b"merged")
out["again"] = mounted()
out["content"] = [open("merged/file").read(), sorted(os.listdir("merged")), os.listdir("merged/dir"), os.listdir("merged/there")]
libc.umount(b"merged")
os.setxattr("lower/file", "trusted.mine", b"value")
out["seen"] = [os.getxattr("lower/file", "trusted.mine").decode(), os.listxattr("lower/file")]
# Without the capability: libcap's, of the effective set.
class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
Data = ctypes.c_uint32 * 6
header, data = Header(0x20080522, 0), Data()
libc.capget(ctypes.byref(header), data)
data[0] &= ~(1 << 21)
assert libc.capset(ctypes.byref(header), data) == 0
out["unseen"] = [tried(lambda: os.getxattr("lower/file", "trusted.mine")), os.listxattr("lower/file"),
                 tried(os.setxattr, "lower/file", "trusted.mine", b"x"), tried(os.removexattr, "lower/file", "trusted.mine")]
print(json.dumps(out), flush=True)
"""


def test_trusted_attributes(container, volume, id_maps, on_a_root):  # noqa: F811
    """An overlay in the container keeps its layers on a volume, which it needs trusted attributes for."""
    def change(config):
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
        config["process"]["args"][-1] = "LISTS = {}\n" + HELPERS + TRUSTED
        config["mounts"].append(bind(volume))
    found = told(container("python3", "-c", "", change=on_a_root(id_maps, change)))
    assert found == {"mounted": 0, "unmounted": 0, "again": 0, "content": ["lower/file+", ["dir", "file", "there"], [], ["a"]],
                     "seen": ["value", ["trusted.mine"]], "unseen": ["ENODATA", [], "EPERM", "EPERM"]}


@only_chiton
def test_trusted_attributes_on_the_host(container, volume):  # noqa: F811
    """They have another name there, which the container cannot use; the host's own are not seen."""
    (volume / "file").write_text("text")
    os.setxattr(volume / "file", "trusted.hosts", b"x")

    def change(config):
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
        config["process"]["args"][-1] = "LISTS = {}\n" + HELPERS + """
os.setxattr("/srv/file", "trusted.mine", b"value")
out["names"] = os.listxattr("/srv/file")
out["forged"] = tried(os.setxattr, "/srv/file", "user.chiton.trusted.mine", b"x")
print(json.dumps(out))
"""
        config["mounts"].append(bind(volume))
    assert told(container("python3", "-c", "", change=change)) == {"names": ["trusted.mine"], "forged": "ENOTSUP"}
    assert sorted(os.listxattr(volume / "file")) == ["trusted.hosts", "user.chiton.trusted.mine"]


FLAGS = """
import fcntl
os.chdir("/srv")
def flags(name):
    return struct.unpack("I", fcntl.ioctl(os.open(name, os.O_RDONLY), 0x80086601, bytes(8))[:4])[0]
def set_flags(name, value):
    return tried(lambda: fcntl.ioctl(os.open(name, os.O_RDONLY), 0x40086602, struct.pack("Q", value)) and None)
NODUMP, IMMUTABLE = 0x40, 0x10
for name in ("file", "dir"):
    before = flags(name)
    out[name] = [set_flags(name, before | NODUMP), flags(name) ^ before, as_user(1000, lambda: set_flags(name, before)), set_flags(name, before | IMMUTABLE)]
with open("file", "r+") as f:
    found = bytearray(fcntl.ioctl(f, 0x801c581f, bytes(28)))
    out["attributes"] = found[0] & 0x80
    found[0] &= ~0x80
    fcntl.ioctl(f, 0x401c5820, bytes(found))
    out["cleared"] = flags("file") & NODUMP
    f.truncate(1 << 20); os.pwrite(f.fileno(), b"x" * 4096, 1 << 19); os.fsync(f.fileno())
    def extents(count):
        asked = bytearray(struct.pack("<QQIIII", 0, 2**64 - 1, 1, 0, count, 0) + bytes(56 * count))
        fcntl.ioctl(f, 0xc020660b, asked)
        number = struct.unpack_from("<I", asked, 20)[0]
        return number, [struct.unpack_from("<Q", asked, 32 + 56 * n)[0] for n in range(min(number, count))]
    out["extents"] = [extents(0)[0], extents(9)]
    for n in range(150):
        os.pwrite(f.fileno(), b"x", (1 << 21) + n * 8192)
    os.fsync(f.fileno())
    out["many"] = [extents(0)[0], extents(200)[0], extents(100)[0]]
    out["terminal"] = tried(lambda: fcntl.ioctl(f, 0x5401, bytes(64)))
out["the log"] = [tried(lambda: open("log", "w")), tried(lambda: open("log", "a").write("two"))]
out["fixed"] = [tried(lambda: open("fixed", "a")), tried(os.unlink, "fixed"), bool(flags("fixed") & IMMUTABLE)]
print(json.dumps(out), flush=True)
"""


def test_flags_of_files(container, volume, id_maps, on_a_root):  # noqa: F811
    (volume / "file").write_text("x" * 4096)
    (volume / "dir").mkdir()
    (volume / "log").write_text("one")
    (volume / "fixed").write_text("text")
    for change, name in (("+a", "log"), ("+i", "fixed")):
        subprocess.run(["chattr", change, volume / name], check=True)

    def change(config):
        config["process"]["args"][-1] = "LISTS = {}\n" + HELPERS + FLAGS
        config["mounts"].append(bind(volume))
    try:
        found = told(container("python3", "-c", "", change=on_a_root(id_maps, change)))
    finally:
        subprocess.run(["chattr", "-ai", volume / "log", volume / "fixed"], check=True)
    of_a_file = [None, 0x40, "EPERM", "EPERM"]
    assert found == {"file": of_a_file, "dir": of_a_file, "attributes": 0x80, "cleared": 0, "extents": [2, [2, [0, 1 << 19]]],
                     "many": [152, 152, 100], "terminal": "ENOTTY", "the log": ["EPERM", 3], "fixed": ["EPERM", "EPERM", True]}
    assert (volume / "log").read_text() == "onetwo"


@only_chiton
def test_no_capability_makes_a_file_of_the_host_immutable(container, volume):  # noqa: F811
    """The host's kernel asks its own processes for the capability, which no machine has."""
    (volume / "file").write_text("text")

    def change(config):
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_LINUX_IMMUTABLE")
        config["process"]["args"] = ["chattr", "+i", "/srv/file"]
        config["mounts"].append(bind(volume))
    made = container("true", change=change)
    made.ends()
    assert "Operation not permitted" in (made.bundle.path / "output").read_text()
    (volume / "file").unlink()


UNSIZED = """
import mmap
def whole(path):
    with open(path, "rb") as f:
        return f.read().decode()
for path in PATHS:
    out[path] = [whole(path), os.stat(path).st_size]
with open(PATHS[0], "rb") as f:
    out["pieces"] = [os.pread(f.fileno(), 3, 0).decode(), os.pread(f.fileno(), 3, 2).decode()]
with open(PATHS[1], "rb") as f:
    out["mapped"] = [tried(lambda: mmap.mmap(f.fileno(), 10, flags, prot=mmap.PROT_READ) and None) for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE)]
out["by cat"] = subprocess.run(["cat", PATHS[0]], capture_output=True, text=True).stdout
out["copied"] = subprocess.run(["cp", PATHS[0], "/tmp/copy"]).returncode or open("/tmp/copy").read()
# Each read is what is there now.
with open("/group/pids.max", "r+b", buffering=0) as f:
    out["changes"] = []
    for limit in (b"50", b"max"):
        f.seek(0); f.write(limit); f.seek(0)
        out["changes"].append([f.read(100).decode(), whole("/group/pids.max")])
print(json.dumps(out), flush=True)
"""


def test_files_without_sizes(container, volume):  # noqa: F811
    """They are read to their end, and each time."""
    group = "/sys/fs/cgroup/chiton-unsized"
    os.mkdir(group)
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as f:
        f.write("+pids")
    sources = ["/sys/fs/cgroup/cgroup.controllers", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/tracing/available_tracers"]
    paths = ["/host/cgroup/cgroup.controllers", "/host/enabled", "/host/tracing/available_tracers"]

    def change(config):
        config["process"]["args"][-1] = "LISTS = {}\nimport subprocess\n" + HELPERS + UNSIZED.replace("PATHS", repr(paths))
        config["mounts"] += [bind("/sys/fs/cgroup", "ro", to="/host/cgroup"), bind(sources[1], "ro", to="/host/enabled"),
                             bind("/sys/kernel/tracing", "ro", to="/host/tracing"), bind(group, to="/group"),
                             {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
    try:
        made = container("python3", "-c", "", change=change)
        found = told(made)
        made.delete()
    finally:
        os.rmdir(group)
    for source, path in zip(sources, paths, strict=True):
        with open(source) as f:
            assert found.pop(path) == [f.read(), os.stat(source).st_size], source
    with open(sources[0]) as f:
        content = f.read()
    assert found == {"pieces": [content[:3], content[2:5]], "mapped": ["ENODEV", "ENODEV"], "by cat": content, "copied": content,
                     "changes": [["50\n"] * 2, ["max\n"] * 2]}


MAPPING = """
import mmap, time
def mapped(name):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4096)
    return fd, mmap.mmap(fd, 4096)
def end(fd, pages):
    pages.close(); os.close(fd); os.sync(); time.sleep(1.2)
for name, change in (("time", lambda path: os.utime(path, ns=(10**18, 10**18))), ("mode", lambda path: os.chmod(path, 0o4711))):
    fd, pages = mapped(f"/srv/{name}")
    pages[0:2] = b"ab"
    change(f"/srv/{name}")
    end(fd, pages)
out["kept"] = [os.stat("/srv/time").st_mtime_ns, mode("/srv/mode")]
fd, pages = mapped("/srv/time")
os.utime("/srv/time", ns=(10**18, 10**18))
pages[0:2] = b"cd"
end(fd, pages)
out["changed"] = os.stat("/srv/time").st_mtime_ns > 10**18
print(json.dumps(out), flush=True)
"""


def test_what_is_set_outlives_what_a_mapping_has_written(container, volume):  # noqa: F811
    def change(config):
        config["process"]["args"][-1] = "LISTS = {}\n" + HELPERS + MAPPING
        config["mounts"].append(bind(volume))
    assert told(container("python3", "-c", "", change=change)) == {"kept": [10**18, "0o4711"], "changed": True}
    assert (volume / "time").read_text()[:2] == "cd"
