"""Files have the same owners in the guest and on the host, whether the machine process's ids are shifted or not (docs/security.md)."""

import json
import os
import stat
import struct
import subprocess

import pytest

from chiton import id_maps as maps_of
from chiton import only_chiton

USERS = (0, 1000, 65534)
# security.capability for CAP_NET_RAW, permitted and effective (linux/capability.h).
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

SCRIPT = """
import errno, json, os, socket, stat, struct, sys
out = {}

def as_user(uid, function):
    \"\"\"What a function gives in a process of this user.\"\"\"
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said = function()
        except OSError as e:
            said = errno.errorcode[e.errno]
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said)

def tried(function, *arguments):
    try:
        return function(*arguments)
    except OSError as e:
        return errno.errorcode[e.errno]

def make(uid):
    os.umask(0o022)
    here = f"/srv/of-{uid}"
    os.mkdir(here)
    with open(f"{here}/file", "w") as f:
        f.write(str(uid))
    os.symlink("file", f"{here}/link")
    os.mkfifo(f"{here}/fifo")
    socket.socket(socket.AF_UNIX).bind(f"{here}/socket")
    os.close(os.open(here, os.O_TMPFILE | os.O_RDWR, 0o600))
    return [list(owner(f"{here}/{name}")) for name in (".", "file", "link", "fifo", "socket")]

def owner(path):
    found = os.lstat(path)
    return found.st_uid, found.st_gid

out["made"] = [as_user(uid, lambda: make(uid)) for uid in (0, 1000, 65534)]
out["there"] = [owner("/srv/there"), owner("/srv/inherits/there")]
os.chown("/srv/there", 1234, 5678)
out["given"] = owner("/srv/there")
out["not theirs to give"] = as_user(1000, lambda: tried(os.chown, "/srv/of-1000/file", 0, 0))
# Who may what: the owner, one who is in the group, another.
out["private"] = [as_user(uid, lambda: tried(lambda: open("/srv/private").read())) for uid in (7, 8, 9)]
out["sticky"] = [as_user(uid, lambda: tried(os.unlink, "/srv/sticky/file")) for uid in (8, 7)]
out["another's"] = as_user(1000, lambda: tried(os.chmod, "/srv/private", 0o777))
# A bit that gives privileges ends with a write.
out["set-id"] = [as_user(9, lambda: tried(lambda: open("/srv/set-id", "a").write("x"))), oct(os.stat("/srv/set-id").st_mode)]
as_user(1000, lambda: os.chmod("/srv/of-1000/file", 0o4711))
out["set by its owner"] = oct(os.stat("/srv/of-1000/file").st_mode)
capability = bytes.fromhex("CAPABILITY")
os.setxattr("/srv/of-0/file", "security.capability", capability)
out["capability"] = os.getxattr("/srv/of-0/file", "security.capability").hex()
os.setxattr("/srv/of-1000/file", "user.name", b"value")
os.mknod("/srv/whiteout", stat.S_IFCHR, 0)
out["linked"] = tried(os.link, "/srv/of-65534/file", "/srv/linked")
print(json.dumps(out), flush=True)
"""


@pytest.fixture
def volume(scratch, request):
    """A directory of its own file system."""
    path = scratch / "volume-of-ids"
    path.mkdir()
    kind = getattr(request, "param", None)
    if kind:
        subprocess.run(["mount", "-t", kind, "none", path], check=True)
    path.chmod(0o777)
    yield path
    if kind:
        subprocess.run(["umount", path], check=True)
    subprocess.run(["rm", "-rf", path], check=True)


def told(made):
    made.ends(200)
    output = (made.bundle.path / "output").read_text()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise AssertionError(output) from None


def prepared(volume):
    """Files of several owners, with all that decides who may what."""
    def made(name, owner, mode, text="text"):
        (volume / name).write_text(text)
        os.chown(volume / name, owner, owner)
        (volume / name).chmod(mode)
    made("there", 77, 0o644)
    made("private", 7, 0o600)
    os.chown(volume / "private", 7, 8)
    (volume / "private").chmod(0o640)
    (volume / "sticky").mkdir()
    (volume / "sticky").chmod(0o1777)
    made("sticky/file", 7, 0o666)
    made("set-id", 1000, 0o6777)
    (volume / "inherits").mkdir()
    os.chown(volume / "inherits", 70, 71)
    (volume / "inherits").chmod(0o2777)
    made("inherits/there", 78, 0o644)


@pytest.mark.parametrize("volume", [None, "tmpfs"], indirect=True, ids=["ext4", "tmpfs"])
def test_files_keep_their_owners(container, volume, id_maps, on_a_root):
    """What it shows is the same with each sort of id maps, and with runc."""
    prepared(volume)

    def change(config):
        config["process"]["args"][-1] = SCRIPT.replace("CAPABILITY", CAPABILITY.hex())
        config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(volume)})
    made = container("python3", "-c", "", change=on_a_root(id_maps, change))
    found = told(made)
    owners = lambda path: [path.lstat().st_uid, path.lstat().st_gid]  # noqa: E731
    for uid, seen in zip(USERS, found.pop("made"), strict=True):
        here = volume / f"of-{uid}"
        assert seen == [[uid, uid]] * 5
        assert [owners(here / name) for name in (".", "file", "link", "fifo", "socket")] == seen
        assert sorted(os.listdir(here)) == ["fifo", "file", "link", "socket"]
        assert (here / "file").read_text() == str(uid)
    assert owners(volume / "there") == [1234, 5678] and owners(volume / "linked") == [65534, 65534]
    assert os.getxattr(volume / "of-0/file", "security.capability") == CAPABILITY
    assert os.getxattr(volume / "of-1000/file", "user.name") == b"value"
    whiteout = (volume / "whiteout").lstat()
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0 and owners(volume / "whiteout") == [0, 0]
    assert found == {
        "there": [[77, 77], [78, 78]], "given": [1234, 5678], "not theirs to give": "EPERM",
        "private": ["text", "text", "EACCES"], "sticky": ["EPERM", None], "another's": "EPERM",
        "set-id": [1, "0o100777"], "set by its owner": "0o104711", "capability": CAPABILITY.hex(), "linked": None,
    }


@only_chiton
def test_ids_beyond_what_can_be_shifted(container, volume, id_maps, on_a_root):
    """Those of the upper half: they are as others where ids are not shifted, and an error where they are."""
    high = (1 << 31) + 5
    (volume / "there").write_text("text")
    os.chown(volume / "there", high, high)
    (volume / "mine").write_text("text")

    def change(config):
        config["process"]["args"][-1] = SCRIPT.split("out[", 1)[0] + f"""
out["make"] = as_user({high}, lambda: tried(os.mkdir, "/srv/made"))
out["give"] = tried(os.chown, "/srv/mine", {high}, {high})
out["there"] = owner("/srv/there")
out["read"] = tried(lambda: open("/srv/there").read())
print(json.dumps(out))
"""
        config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(volume)})
    made = container("python3", "-c", "", change=on_a_root(id_maps, change))
    expected = {"shifted": {"make": "EOVERFLOW", "give": "EINVAL", "there": [65534, 65534], "read": "text"},
                "identity": {"make": None, "give": None, "there": [high, high], "read": "text"}}
    assert told(made) == expected[id_maps]
    assert (volume / "made").exists() == (id_maps == "identity")


@only_chiton
def test_shares_with_maps_of_their_own(container, volume, on_a_root):
    """The two maps come one after the other."""
    for name, owner in (("root", 0), ("user", 1000), ("beyond", 5000)):
        (volume / name).write_text(name)
        os.chown(volume / name, owner, owner)
    mapping = [{"containerID": 0, "hostID": 100000, "size": 2000}]

    def change(config):
        config["process"]["args"][-1] = SCRIPT.split("out[", 1)[0] + """
out["seen"] = [owner(f"/srv/{name}") for name in ("root", "user", "beyond")]
out["made"] = as_user(100007, lambda: tried(os.mkdir, "/srv/made"))
out["not of the map"] = as_user(7, lambda: tried(os.mkdir, "/srv/other"))
out["given"] = tried(os.chown, "/srv/user", 100008, 100009)
out["plain"] = owner("/opt/user")
print(json.dumps(out))
"""
        config["mounts"] += [{"destination": "/srv", "type": "bind", "source": str(volume), "options": ["rbind", "ridmap"],
                              "uidMappings": mapping, "gidMappings": mapping},
                             {"destination": "/opt", "type": "bind", "source": str(volume)}]
    made = container("python3", "-c", "", change=on_a_root("shifted", change), verb=("create",))
    assert maps_of(made.pid) == "shifted"
    made.verb("start")
    assert told(made) == {"seen": [[100000, 100000], [101000, 101000], [65534, 65534]], "made": None, "not of the map": "EOVERFLOW",
                          "given": None, "plain": [8, 9]}
    assert (volume / "made").stat().st_uid == 7 and (volume / "user").stat().st_gid == 9


@only_chiton
def test_a_user_namespace(container, volume, on_a_root):
    """A container's own user namespace is the guest's: its ids outside are what is shifted."""
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    (volume / "theirs").write_text("text")
    os.chown(volume / "theirs", 100000, 100000)

    def change(config):
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=mapping, gidMappings=mapping)
        config["process"]["args"][-1] = SCRIPT.split("out[", 1)[0] + """
out["seen"] = owner("/srv/theirs")
os.mkdir("/srv/made")
os.chown("/srv/theirs", 3, 4)
print(json.dumps(out))
"""
        config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(volume)})
    made = container("python3", "-c", "", change=on_a_root("shifted", change), verb=("create",))
    assert maps_of(made.pid) == "shifted"
    made.verb("start")
    assert told(made) == {"seen": [0, 0]}
    owners = [(found.st_uid, found.st_gid) for found in ((volume / name).stat() for name in ("theirs", "made"))]
    assert owners == [(100003, 100004), (100000, 100000)]


def overlay(volume):
    for name in ("lower", "upper", "work"):
        (volume / name).mkdir()
    return {"destination": "/opt", "type": "overlay", "source": "overlay",
            "options": [f"lowerdir={volume}/lower", f"upperdir={volume}/upper", f"workdir={volume}/work"]}


def bind(*options, source=None):
    return lambda volume: {"destination": "/opt", "type": "bind", "source": source or str(volume), "options": list(options)}


def mapped_below(volume):
    mapping = [{"containerID": 0, "hostID": 100000, "size": 2000}]
    return bind("rbind", "idmap")(volume) | {"uidMappings": mapping, "gidMappings": mapping}


@only_chiton
@pytest.mark.parametrize("volume", [None, "tmpfs"], indirect=True, ids=["ext4", "tmpfs"])
@pytest.mark.parametrize("other, expected", [
    (bind(), "shifted"), (bind("rbind"), "shifted"), (bind("bind", source="/sys/kernel"), "identity"),
    (bind("rbind", "rslave"), "identity"), (mapped_below, "identity"), (overlay, "identity")],
    ids=["bind", "rbind", "sysfs", "rslave", "idmap", "overlay"])
def test_all_shares_or_none(container, volume, other, expected, on_a_root):
    """One that cannot be id-mapped decides for all, and files keep their owners."""
    (volume / "there").write_text("text")
    os.chown(volume / "there", 77, 78)

    def change(config):
        config["mounts"] += [{"destination": "/srv", "type": "bind", "source": str(volume)}, other(volume)]
    made = container("sleep", "1000", change=on_a_root("shifted", change))
    assert maps_of(made.pid) == expected
    assert made.output("stat", "-c", "%u:%g", "/srv/there") == "77:78\n"
    made.output("sh", "-c", "mkdir /srv/made && chown 1000:1001 /srv/made")
    found = (volume / "made").stat()
    assert (found.st_uid, found.st_gid) == (1000, 1001)
    done = made.runtime("audit", made.name)
    assert done.returncode == 0 and (f"{'ok  ' if expected == 'shifted' else 'note'} ids: shares are") in done.stdout, done.stdout
    made.delete()


@only_chiton
def test_below_a_bind(container, volume, on_a_root):
    """What is mounted below the source counts as well."""
    (volume / "below").mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", volume / "below"], check=True)
    try:
        for options, expected in ((["bind"], "shifted"), (["rbind"], "identity")):
            def change(config, options=options):
                config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(volume), "options": options})
            made = container("sleep", "1000", change=on_a_root("shifted", change))
            assert maps_of(made.pid) == expected
            made.delete()
    finally:
        subprocess.run(["umount", volume / "below"], check=True)
