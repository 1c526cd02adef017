"""Several containers in one machine, by the plain command line: a namespace path of a container makes another one a member of its machine."""

import json
import os
import pathlib
import signal
import subprocess

import pytest

from chiton import NAMESPACES, SHARED, alive, ended, joining, only_chiton, processes, subreaper, wait_for
from test_privileged import ATTEMPT, privileged


@pytest.fixture
def member(container):
    """Makes containers that join namespaces of another one, those of a pod unless said otherwise."""
    def member(other, *args, kinds=SHARED, change=None, **kwargs):
        return container(*args, change=joining(other.pid, *kinds, change=change), **kwargs)
    return member


def machines(runtime, *containers):
    """How many of these containers' processes are virtual machines."""
    return sum(1 for each in containers if any(name.startswith("vcpu") for name in threads(each.pid)))


def threads(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [(task / "comm").read_text().strip() for task in tasks]


def namespaces(of):
    return {kind: of.output("readlink", f"/proc/self/ns/{name}").strip() for kind, name in NAMESPACES.items()}


def test_a_pod(runtime, container, member):
    pod = container("sleep", "1000")
    first = member(pod, "sleep", "1000")
    second = member(pod, "sleep", "1000")
    if runtime.name == "chiton":
        assert machines(runtime, pod, first, second) == 1
        assert len(threads(first.pid)) == len(threads(second.pid)) == 1
    for each in (pod, first, second):
        assert each.status == "running" and runtime.state(each.name)["pid"] == each.pid
    own = [namespaces(each) for each in (pod, first, second)]
    for kind in SHARED:
        assert len({each[kind] for each in own}) == 1, kind
    assert len({each["pid"] for each in own}) == 3
    # One network: who listens in one is reached in another, and by no other way than that.
    server = "import socket; s = socket.create_server(('127.0.0.1', 80)); c, _ = s.accept(); c.sendall(b'hello')"
    first.exec("python3", "-c", server, options=["--detach"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = "import socket, time\nfor _ in range(100):\n try: print(socket.create_connection(('127.0.0.1', 80)).recv(9)); break\n except OSError: time.sleep(.1)"
    assert second.output("python3", "-c", client) == "b'hello'\n"
    # One set of System V objects, and one name.
    first.output("ipcmk", "--shmem", "4096")
    assert second.output("ipcs", "--shmems").count("4096") == 1
    assert first.output("hostname") == pod.output("hostname") == "chiton\n"
    for each in (second, first, pod):
        each.delete()
        assert not alive(each.pid)


def test_processes_of_a_pod(runtime, container, member):
    """shareProcessNamespace: all see each other, and the first is the init of all."""
    pod = container("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    one = member(pod, "sleep", "1234", kinds=(*SHARED, "pid"))
    assert "sleep 1234" in pod.output("ps", "ax").replace("sh -c", "")
    assert "trap" in one.output("ps", "ax")
    # A target's processes alone, as for a debugger: everything else is its own.
    debugger = member(one, "sleep", "1000", kinds=("pid",)) if runtime.name == "runc" else None
    if debugger:
        assert "sleep 1234" in debugger.output("ps", "ax")
    leader = one.output("sh", "-c", "sleep 777 > /dev/null 2>&1 & echo $!").strip()
    assert leader in one.output("ps", "ax", "-o", "pid")
    one.verb("kill", "KILL")
    one.ends()
    one.verb("delete")
    # What its init leaves behind ends with it, as there is no namespace that does.
    wait_for(lambda: "sleep 777" not in pod.output("ps", "ax"))


def test_exit_codes_and_signals(runtime, container, member, bundle):
    with subreaper():
        pod = container("sleep", "1000")
        seven = member(pod, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
        wait_for(lambda: "ready" in (seven.bundle.path / "output").read_text())
        os.kill(seven.pid, signal.SIGTERM)
        assert ended(seven.pid) == 7
        assert seven.status == "stopped"
        killed = member(pod, "sleep", "1000")
        killed.verb("kill", "KILL")
        assert ended(killed.pid) in (-9, 137)
        gone = member(pod, "sleep", "1001")
        os.kill(gone.pid, signal.SIGKILL)
        assert ended(gone.pid) == -9
        assert gone.status == "stopped"
        wait_for(lambda: "sleep 1001" not in "".join(pathlib.Path(f"/proc/{p}/cmdline").read_text() for p in processes(runtime)))
        # The same again, as a restart does.
        for each in (seven, killed, gone):
            each.delete()
        again = member(pod, "sh", "-c", "exit 5")
        assert ended(again.pid) == 5
        assert pod.status == "running"


def test_foreground(runtime, container, bundle):
    pod = container("sleep", "1000")
    made = bundle("sh", "-c", "read line; echo $line; echo no >&2; exit 4")
    joining(pod.pid, *SHARED)(made.config)
    done = runtime("run", "--bundle", made.save().path, "in-front", input="a line\n", stdin=None, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (4, "a line\n", "no\n")
    assert runtime.status("in-front") is None


def test_created_and_started(runtime, container, member):
    """create and start apart, as callers do; with every verb on a member."""
    pod = container("sleep", "1000")
    one = member(pod, "sleep", "1000", verb=("create",))
    assert one.status == "created"
    one.verb("start")
    assert one.status == "running"
    one.verb("pause")
    assert one.status == "paused" and pod.status == "running"
    pod.output("true")
    one.verb("resume")
    assert "sleep" in one.verb("ps")
    assert json.loads(one.verb("events", "--stats"))["data"]["pids"]["current"] >= 1
    one.verb("update", "--pids-limit=77")
    assert one.output("cat", "/sys/fs/cgroup/pids.max").strip() == "77"
    assert pod.output("cat", "/sys/fs/cgroup/pids.max").strip() != "77"
    done = runtime("delete", one.name)
    assert done.returncode == 1 and "is not stopped" in done.stderr
    one.verb("kill", "KILL")
    one.ends()
    one.verb("delete")
    assert one.status is None


@only_chiton
def test_what_a_member_says_of_the_machine(runtime, container, member, bundle):
    """A machine is as easily killed for want of memory as its most expendable member, and is not its members' to change."""
    pod = container("sleep", "1000")

    def score(of):
        return int(pathlib.Path(f"/proc/{of.pid}/oom_score_adj").read_text())

    def change(number):
        return lambda config: config["process"].update(oomScoreAdj=number)

    made = bundle("true")
    joining(pod.pid, *SHARED)(made.config)
    runtime.ok("--timeline", made.path / "timeline", "run", "--bundle", made.save().path, "timed")
    assert json.loads((made.path / "timeline").read_text()) == []

    before = score(pod)
    member(pod, "sleep", "1000", change=change(before + 300))
    assert score(pod) == before + 300
    low = member(pod, "sleep", "1000", change=change(before + 100))
    assert (score(pod), score(low)) == (before + 300, before + 100)


def test_what_is_shared_and_what_is_not(runtime, container, member, scratch):
    """One file is one file, by whichever container it is reached; roots and memory are each container's own."""
    volume = scratch / "volume"
    volume.mkdir(exist_ok=True)

    def bound(*options):
        mount = {"type": "bind", "source": str(volume), "destination": "/shared", "options": ["rbind", *options]}
        return lambda config: config["mounts"].append(mount)

    pod = container("sleep", "1000")
    reader = member(pod, "sleep", "1000", change=bound("ro"))
    writer = member(pod, "sleep", "1000", change=bound("rw"))
    other = member(pod, "sleep", "1000", change=bound("rw"))
    hold = ("import fcntl, mmap, os, time\n"
            "f = open('/shared/file', 'w+b'); f.truncate(4096); fcntl.flock(f, fcntl.LOCK_EX)\n"
            "m = mmap.mmap(f.fileno(), 4096); m[:5] = b'hello'\n"
            "open('/shared/ready', 'w').close()\n"
            "while m[8:9] != b'!': time.sleep(0.01)\n"
            "open('/shared/seen', 'w').close(); time.sleep(1000)\n")
    writer.exec("python3", "-c", hold, options=["--detach"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((volume / "ready").exists)
    look = ("import errno, fcntl, mmap\n"
            "f = open('/shared/file', 'r+b')\n"
            "try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('free')\n"
            "except BlockingIOError: print('locked')\n"
            "m = mmap.mmap(f.fileno(), 4096); print(m[:5].decode()); m[8:9] = b'!'\n")
    assert other.output("python3", "-c", look) == "locked\nhello\n"
    wait_for((volume / "seen").exists)
    read = "import mmap\nf = open('/shared/file', 'rb')\nprint(mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ)[:9].decode())"
    assert reader.output("python3", "-c", read) == "hello\0\0\0!\n"
    assert reader.exec("touch", "/shared/new").returncode != 0
    # What each has for itself.
    other.output("sh", "-c", "echo secret > /dev/shm/secret")
    assert writer.exec("test", "-e", "/dev/shm/secret").returncode != 0
    assert "sleep" in other.output("ps", "ax") and other.output("ps", "ax").count("sleep 1000") == 1
    for each in (reader, writer, other, pod):
        each.delete()


def test_a_container_that_restarts(runtime, container, member, scratch):
    """What a container has had of volumes goes with it, also where others have the same one, and they do not notice."""
    volume = scratch / "volume"
    (volume / "inner").mkdir(parents=True, exist_ok=True)
    (volume / "file").write_text("old")

    def bound(source):
        mount = {"type": "bind", "source": str(source), "destination": "/shared", "options": ["rbind", "rw"]}
        return lambda config: config["mounts"].append(mount)

    def mounts():
        return pathlib.Path(f"/proc/{pod.pid}/mountinfo").read_text().count("\n")

    pod = container("sleep", "1000")
    none = mounts()
    before = member(pod, "sleep", "1000", change=bound(volume))
    other = member(pod, "sleep", "1000", change=bound(volume))
    work = ("import fcntl, os, time\n"
            "os.chdir('/shared/inner'); f = open('/shared/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
            "n = 10000\n"
            "while not os.path.exists('/shared/stop'):\n"
            "    n += 1; count = os.open('is', os.O_RDWR | os.O_CREAT); os.pwrite(count, b'%d' % n, 0); os.close(count)\n"
            "    os.listdir('.'); time.sleep(0.01)\n"
            "f.write('whole'); f.close(); time.sleep(1000)\n")
    other.exec("python3", "-c", work, options=["--detach"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((volume / "inner/is").exists)
    assert before.output("cat", "/shared/file") == "old"
    # The one by whose mount all of it was found first.
    before.delete()
    with_one = mounts()
    for number in range(4):
        inner = number % 2 == 1
        again = member(pod, "sleep", "1000", change=bound(volume / "inner" if inner else volume))
        assert int(again.output("cat", "/shared/is" if inner else "/shared/inner/is")) > 0
        again.output("sh", "-c", f"echo {number} > /shared/new-{number}")
        again.delete()
        seen = int((volume / "inner/is").read_text())
        wait_for(lambda seen=seen: int((volume / "inner/is").read_text()) > seen)
        assert other.output("cat", f"/shared/{'inner/' if inner else ''}new-{number}") == f"{number}\n"
        assert mounts() == with_one
    (volume / "stop").touch()
    wait_for(lambda: (volume / "lock").read_text() == "whole")
    other.delete()
    assert mounts() == none
    pod.delete()


@only_chiton
def test_the_tree_of_all_containers_is_nobodys(runtime, container, member):
    def administers(config):
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")

    pod = container("sleep", "1000")
    one = member(pod, "sleep", "1000", change=administers)
    mounts = ("import ctypes, os\n"
              "libc = ctypes.CDLL(None, use_errno=True)\n"
              "for kind in (b'tmpfs', b'virtiofs'):\n"
              "    print(libc.mount(b'chiton', b'/tmp', kind, 0, None), os.strerror(ctypes.get_errno()))\n")
    assert one.output("python3", "-c", mounts) == "0 Success\n-1 Device or resource busy\n"


THIEF = ATTEMPT + """
import json, os
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
for kind in (b"proc", b"cgroup2", b"devpts"):
    os.mkdir(b"/tmp/" + kind)
    mount(kind, b"/tmp/" + kind, kind, 0, b"newinstance" if kind == b"devpts" else None)
seen = {pid for place in ("/proc", "/tmp/proc") for pid in os.listdir(place) if pid.isdigit()}
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
members = [pid for where, _, files in os.walk("/tmp/cgroup2") for pid in read(where + "/cgroup.procs").split()]
print(json.dumps({
    "mounts": sorted(os.listdir("/tmp")),
    "processes": [pid for pid in seen for file in ("cmdline", "environ") if b"secret" in read(f"/proc/{pid}/{file}")],
    "signals": [pid for pid in range(1, 20000) if str(pid) not in seen and attempt(lambda: os.kill(pid, 0)) != "ESRCH"
                and not os.path.exists(f"/proc/{pid}")],
    "cgroups": members.count(b"0"),
    "files": [path for path in mounts if os.path.exists(path + "/secret")],
    "roots": [pid for pid in seen if os.path.exists(f"/proc/{pid}/root/dev/shm/secret")],
}))
"""


def test_a_member_with_every_right(runtime, container, member, rootfs):
    """As root with all capabilities, devices and paths a container has nothing of another one that they do not share."""
    pod = container("sleep", "1000")
    victim = member(pod, "sh", "-c", "echo secret >/dev/shm/secret; exec sleep 4321", change=lambda config: config["process"]["env"].append("A=secret"))
    wait_for(lambda: victim.exec("test", "-s", "/dev/shm/secret").returncode == 0)
    (rootfs / "thief.py").write_text(THIEF)
    thief = member(pod, "sleep", "1000", change=privileged)
    found = json.loads(thief.output("python3", "/thief.py"))
    assert found == {"mounts": ["cgroup2", "devpts", "proc"], "processes": [], "signals": [], "cgroups": 0, "files": [], "roots": []}
    assert victim.status == pod.status == "running"
