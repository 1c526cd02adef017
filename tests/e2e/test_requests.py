"""What the guest need not ask the file server for: nothing is asked for that is not needed, and all means what it means to runc."""

import json
import os
import pathlib
import stat
import time

import pytest

from chiton import only_chiton, wait_for
from test_access import bind
from test_id_maps import volume  # noqa: F401
from tracing import Calls

# How late the guest may see what the host has changed, with some time for a slow machine to look.
BOUND = 1.0 + 4.0

HELPERS = """
import json, mmap, os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def turn(**told):
    print(json.dumps(told), flush=True)
    signal.sigwait({signal.SIGUSR1})
def tried(do, *args):
    try:
        return do(*args)
    except OSError as e:
        return e.strerror
def as_user(user, do, *args):
    back, there = os.pipe()
    if os.fork() == 0:
        if user:
            os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
        os.write(there, json.dumps(tried(do, *args)).encode())
        os._exit(0)
    os.close(there); os.wait()
    with open(back) as f:
        return json.load(f)
"""


class Talk:
    """A container of a Python script that takes turns with the host: each `turn` in it is one of `told` here."""

    def __init__(self, container, text, *mounts, change=lambda _: None):
        def changed(config):
            config["mounts"] += mounts
            change(config)
        self.made = container("python3", "-c", HELPERS + text, change=changed)
        self.heard = 0

    @property
    def output(self):
        return (self.made.bundle.path / "output").read_text()

    def told(self):
        """What the script tells next. It goes on when the host says so."""
        def complete():
            return self.output.count("\n") > self.heard or self.made.status == "stopped"
        wait_for(complete, 100)
        self.heard += 1
        try:
            return json.loads(self.output.splitlines()[self.heard - 1])
        except (IndexError, json.JSONDecodeError):
            raise AssertionError(self.output) from None

    def go_on(self):
        self.made.verb("kill", "USR1")

    def next(self):
        self.go_on()
        return self.told()


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # VFS_CAP_REVISION_2, CAP_NET_BIND_SERVICE

WRITES = """
CAPABILITY = bytes.fromhex(HEX)
files = {name: os.open(f"/srv/{name}", os.O_RDWR) for name in sorted(os.listdir("/srv"))}
def write(name):
    user = int(name.split("-")[1])
    return as_user(user, os.write, files[name], b"x")
for n in range(2):
    first = [write(name) for name in files]
turn(first=first)
for name in files:
    for where in ("here", "again"):
        if name.startswith(where):
            os.setxattr(f"/srv/{name}" if where == "here" else f"/again/{name}", "security.capability", CAPABILITY)
turn()
turn(written=[write(name) for name in files])
"""


def test_writes_take_privileges_away(container, volume):  # noqa: F811
    """Whoever has given them, by whichever way, after the guest has found that there are none."""
    names = [f"{where}-{user}" for where in ("again", "bits", "here", "host") for user in (0, 1000)]
    for name in names:
        (volume / name).write_text("text")
        (volume / name).chmod(0o666)
    # Kept apart from the first, as it keeps access times otherwise.
    talk = Talk(container, f"HEX = '{CAPABILITY.hex()}'\n" + WRITES, bind(volume), bind(volume, "noatime", to="/again"))
    assert talk.told() == {"first": [1] * len(names)}
    talk.next()
    for user in (0, 1000):
        os.setxattr(volume / f"host-{user}", "security.capability", CAPABILITY)
        (volume / f"bits-{user}").chmod(0o6777)

    def capable():
        return [name for name in names if "security.capability" in os.listxattr(volume / name)]
    assert capable() == [name for name in names if not name.startswith("bits")]
    assert talk.next() == {"written": [1] * len(names)}
    assert capable() == []
    assert (volume / "bits-1000").stat().st_mode == stat.S_IFREG | 0o777


CLOSE = """
fd = os.open("/srv/mapped", os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, 8192)
pages = mmap.mmap(fd, 8192)
pages[0:4], pages[4096:4100] = b"here", b"next"
os.close(fd)
turn()
"""


def test_a_close_writes_what_a_mapping_has_changed(container, volume):  # noqa: F811
    Talk(container, CLOSE, bind(volume)).told()
    content = (volume / "mapped").read_bytes()
    assert (content[:4], content[4096:4100]) == (b"here", b"next")


SPACE = """
with open("/srv/large", "wb") as f:
    f.write(bytes(32 << 20))
fd = os.open("/srv/open", os.O_RDWR | os.O_CREAT)
os.write(fd, bytes(32 << 20))
turn()
os.unlink("/srv/large")
turn()
os.unlink("/srv/open"); os.close(fd)
turn()
"""


@pytest.mark.parametrize("volume", ["tmpfs"], indirect=True)
def test_what_is_deleted_takes_no_space(container, volume):  # noqa: F811
    """Though the container asks for nothing else."""
    def free():
        found = os.statvfs(volume)
        return found.f_bfree * found.f_bsize
    whole = free()
    talk = Talk(container, SPACE, bind(volume))
    talk.told()
    assert whole - free() >= 64 << 20
    talk.next()
    wait_for(lambda: whole - free() < 33 << 20, 3)
    talk.next()
    wait_for(lambda: whole - free() < 1 << 20, 3)


DIRECTORY = """
def seen(path):
    s = os.stat(path)
    return [s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_uid, s.st_gid]
def create():
    with open("/srv/dir/new", "x"):
        pass
def remove():
    os.unlink("/srv/dir/new")
for do in (create, lambda: os.mkdir("/srv/dir/below"), lambda: os.rename("/srv/dir/new", "/srv/dir/below/new"),
           lambda: os.link("/srv/dir/below/new", "/srv/dir/new"), remove, lambda: os.symlink("x", "/srv/dir/soft"),
           lambda: os.unlink("/srv/dir/below/new"), lambda: os.rmdir("/srv/dir/below")):
    seen("/srv/dir")
    do()
    turn(seen=seen("/srv/dir"))
def until(wanted):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [tried(create), tried(remove)]
        if (found == [None, None]) == wanted:
            return time.monotonic()
        time.sleep(0.02)
def allowed():
    print(json.dumps({"allowed": until(True) is not None}), flush=True)
    return until(False) is not None
turn(denied=as_user(1000, allowed))
"""


def test_a_directory_whose_entries_change(container, volume):  # noqa: F811
    """What the guest knows of the directory itself is what it is, and its permissions are the host's within a second, while the guest
    uses it all the time."""
    (volume / "dir").mkdir()
    talk = Talk(container, DIRECTORY, bind(volume))
    for _ in range(8):
        told, s = talk.told(), (volume / "dir").stat()
        assert told == {"seen": [s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_uid, s.st_gid]}
        talk.go_on()
    (volume / "dir").chmod(0o777)
    assert talk.told() == {"allowed": True}
    (volume / "dir").chmod(0o755)
    begin = time.monotonic()
    assert talk.told() == {"denied": True} and time.monotonic() - begin < BOUND


EXCLUSIVE = """
def create(path, *flags):
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, *flags)
    os.write(fd, b"made"); os.close(fd)
    return "made"
places = ("open", "closed", "sticky", "read-only")
names = ("file", "dir", "soft", "later", "private", "free")
out = {}
def all_of(user):
    for place in places:
        for name in names:
            out[f"{user} {place}/{name}"] = tried(create, f"/srv/{place}/{name}", 0o640)
    return out
known = [os.path.exists(f"/srv/{place}/{name}") for place in places for name in names]
turn()
out = {**as_user(1000, all_of, 1000), **all_of(0)}
s = os.stat("/srv/open/free")
turn(out=out, content=open("/srv/open/free").read(), found=[oct(s.st_mode), s.st_uid, os.listdir("/srv/open").count("free")],
     long=tried(create, "/srv/open/" + "x" * 256), again=tried(create, "/srv/open/free"), below=tried(create, "/srv/open/file/x"),
     slash=tried(create, "/srv/open/x/"))
won = 0
for n in range(300):
    won += tried(create, f"/srv/open/race{n}") == "made"
turn(won=won)
"""


def test_exclusive_creation(container, volume):  # noqa: F811
    places = {"open": 0o777, "closed": 0o755, "sticky": 0o1777, "read-only": 0o777}
    for name, mode in places.items():
        place = volume / name
        place.mkdir()
        (place / "file").write_text("there")
        (place / "dir").mkdir()
        (place / "soft").symlink_to("nowhere")
        (place / "private").write_text("private")
        (place / "private").chmod(0)
        place.chmod(mode)
    talk = Talk(container, EXCLUSIVE, bind(volume), bind(volume / "read-only", "ro", to="/srv/read-only"))
    talk.told()
    for name in places:
        # The guest has just found that there is none.
        (volume / name / "later").write_text("later")
    told = talk.next()
    expected = {name: "File exists" for name in told["out"]}
    # The other user comes first.
    expected |= {f"{user} read-only/free": "Read-only file system" for user in (0, 1000)}
    expected |= {"1000 closed/free": "Permission denied", "0 closed/free": "made", "1000 open/free": "made", "1000 sticky/free": "made"}
    assert len(expected) == 48 and told.pop("out") == expected
    assert told == {"content": "made", "found": ["0o100640", 1000, 1], "long": "File name too long", "again": "File exists",
                    "below": "Not a directory", "slash": "Is a directory"}
    talk.go_on()
    won = 0
    for n in range(300):
        try:
            os.close(os.open(volume / "open" / f"race{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            won += 1
        except FileExistsError:
            pass
    assert talk.told()["won"] + won == 300


LISTINGS = """
def names():
    return sorted(os.listdir("/srv/dir"))
def until(wanted):
    begin = time.monotonic()
    while (seen := names()) != wanted and time.monotonic() < begin + 20:
        time.sleep(0.02)
    return [seen, time.monotonic() - begin]
turn(first=[names(), names()])
turn(added=until(["a", "b"]))
turn(removed=until(["b"]))
turn(same_time=until(["b", "c"]))
own = []
with os.scandir("/srv/dir") as open_before:
    open("/srv/dir/d", "x").close(); own.append(names())
    os.rename("/srv/dir/d", "/srv/dir/e"); own.append(names())
    os.mkdir("/srv/dir/f"); own.append(names())
    os.unlink("/srv/dir/e"); os.rmdir("/srv/dir/f"); own.append(names())
turn(own=own)
for n in range(900):
    open(f"/srv/many/{n:060}", "x").close()
first = os.listdir("/srv/many"), os.listdir("/srv/many")
with os.scandir("/srv/many") as half:
    taken = [next(half).name for n in range(300)]
    for name in taken:
        os.unlink(f"/srv/many/{name}")
    taken += [entry.name for entry in half]
turn(many=[len(set(each)) for each in (*first, taken, os.listdir("/srv/many"))])
"""


def test_listings(container, volume):  # noqa: F811
    """A listing is no older than a second, whatever the time of the directory says, and knows what the container itself has changed."""
    for name in ("dir", "many"):
        (volume / name).mkdir()
    (volume / "dir/a").write_text("")
    talk = Talk(container, LISTINGS, bind(volume))
    assert talk.told() == {"first": [["a"]] * 2}
    talk.go_on()
    (volume / "dir/b").write_text("")

    def seen(what, wanted):
        found, took = talk.told()[what]
        assert found == wanted and took < BOUND, (found, took)
    seen("added", ["a", "b"])
    talk.go_on()
    (volume / "dir/a").unlink()
    seen("removed", ["b"])
    talk.go_on()
    before = (volume / "dir").stat()
    (volume / "dir/c").write_text("")
    os.utime(volume / "dir", ns=(before.st_atime_ns, before.st_mtime_ns))
    seen("same_time", ["b", "c"])
    assert talk.next() == {"own": [["b", "c", "d"], ["b", "c", "e"], ["b", "c", "e", "f"], ["b", "c"]]}
    assert talk.next() == {"many": [900, 900, 900, 600]}


COUNTED = """
names = [f"/srv/{n}" for n in range(100)]
for name in names:
    with open(name, "x") as f:
        f.write("text")
def create_and_remove():
    for name in names:
        fd = os.open(name + "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, b"text"); os.write(fd, b"text"); os.close(fd)
        os.unlink(name + "new")
def look_again():
    for name in names:
        os.stat(name)
def listed():
    for n in range(10):
        os.listdir("/srv")
create_and_remove(); listed(); look_again()
turn()
create_and_remove()
turn()
look_again(); time.sleep(1.5)
turn()
look_again()
turn()
time.sleep(1.5)
turn()
listed()
turn()
"""


@only_chiton
@pytest.mark.parametrize("volume", ["tmpfs"], indirect=True)
def test_what_is_asked_for(container, volume):  # noqa: F811
    """Counted in the calls that the server's threads make on the host for 100 files."""
    talk = Talk(container, COUNTED, bind(volume))
    talk.told()
    calls = Calls([])
    tasks = [task for task in pathlib.Path(f"/proc/{talk.made.pid}/task").iterdir()]
    workers = {int(task.name) for task in tasks if (task / "comm").read_text().strip().rstrip("0123456789") in ("vcpu", "fs")}
    numbers = {"close": 3, "fcntl": 72, "getdents64": 217, "openat": 257, "unlinkat": 263, "getxattr": 191, "pwritev2": 328, "statx": 332}

    def counted():
        with calls.counted() as found:
            talk.next()
        total = {name: 0 for name in numbers}
        for (thread, number), count in found[None].items():
            for name in numbers:
                if thread in workers and numbers[name] == number:
                    total[name] += count
        return total
    made = counted()
    # The file, and its O_PATH descriptor: nothing is looked up. Nothing asks for capabilities, nothing is flushed.
    assert (made["unlinkat"], made["pwritev2"]) == (100, 200), made
    assert made["openat"] < 205 and made["statx"] < 110 and made["getxattr"] < 5 and made["fcntl"] < 5, made
    talk.next()
    again = counted()
    assert 100 <= again["statx"] < 110 and again["openat"] < 5 and again["close"] < 5, again
    talk.next()
    listings = counted()
    assert listings["openat"] >= 10 and listings["getdents64"] < 10, listings
