"""`chiton audit` on machines of several shapes: what it says of them, and that they do not feel it."""

import ctypes
import errno
import json
import os
import pathlib
import subprocess
import time

import pytest

from chiton import only_chiton, wait_for
from network import Namespace
from terminals import ConsoleSocket
from test_devices import loop  # noqa: F401

pytestmark = only_chiton

MACHINE = {"descriptors", "root", "namespaces", "ids", "capabilities", "no_new_privs", "seccomp", "filters", "dumpable", "limits", "cgroup", "landlock"}
STUB = {"descriptors", "root", "namespaces", "ids", "capabilities", "no_new_privs", "seccomp", "filters", "limits", "cgroup"}


def audited(made):
    """The findings, by verdict, of the machine and of each exec or watcher: {pid or None: {verdict: points}}."""
    done = made.runtime("audit", "--format", "json", made.name)
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    assert done.returncode == int(any(found["verdict"] == "fail" for found in findings)), findings
    sorted_out = {}
    for found in findings:
        verdicts = sorted_out.setdefault(found.get("stub", found.get("watcher")), {"ok": set(), "fail": set(), "note": set()})
        verdicts[found["verdict"]].add(found["point"])
        print(found)
    return sorted_out


def as_declared(made, execs=()):
    """All points of a machine and of its execs are as they should be."""
    found = audited(made)
    assert set(found) == {None, *execs}
    for pid, verdicts in found.items():
        assert set().union(*verdicts.values()) == (MACHINE if pid is None else STUB)
        assert verdicts["fail"] == set()


def ticks(made):
    """Whether the program goes on."""
    output = made.bundle.path / "output"
    size = output.stat().st_size
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if output.stat().st_size > size:
            return True
        time.sleep(0.05)
    return False


TICKING = ("sh", "-c", "while sleep 0.1; do echo tick; done")


def test_a_plain_machine(container):
    made = container(*TICKING)
    as_declared(made)
    # Again and again, in the middle of what it does.
    for _ in range(20):
        made.runtime("audit", made.name)
    assert ticks(made)
    assert made.output("echo", "there") == "there\n"
    text = made.runtime("audit", made.name).stdout
    lines = text.splitlines()
    assert any(line.startswith("ok   descriptors: ") and line.endswith(", all of declared kinds") for line in lines), text
    # The tests give their containers a file for standard output.
    assert f"note descriptors: files of the host that the caller has given: {made.bundle.path}/output" in lines, text


def seen_inside(pid, look):
    """What a process of this host sees that enters a process's mount namespace, as Podman does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if ctypes.CDLL(None, use_errno=True).setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0):
                raise OSError(ctypes.get_errno(), "setns")
            os.write(writing, json.dumps(look()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as said:
        text = said.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_what_is_shown_to_those_who_enter(container, scratch):
    """The container's files with the owners that they have, where the machine itself cannot go."""
    volume = scratch / "shown"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text("shown")
    os.chown(volume / "file", 1234, 0)

    def change(config):
        config["annotations"] = {"io.container.manager": "libpod"}
        config["root"]["readonly"] = True
        config["mounts"].append({"destination": "/opt/volume", "type": "bind", "source": str(volume), "options": ["rbind"]})

    made = container(*TICKING, change=change)

    def look():
        (pathlib.Path("/opt/volume") / "made").write_text("by the host")
        owners = [os.stat(path).st_uid for path in ("/opt/volume/file", "/opt/volume/made", "/etc/passwd")]
        try:
            pathlib.Path("/etc/made").touch()
            written = 0
        except OSError as e:
            written = e.errno
        return [owners, written, os.listdir("/tmp/.."), sorted(os.listdir("/proc")), os.listdir("/dev/shm"), os.access("/mnt/0", os.F_OK)]

    owners, written, root, processes, shared, is_machines = seen_inside(made.pid, look)
    assert (owners, written) == ([1234, 0, 0], errno.EROFS)
    assert "etc" in root and "rootfs" not in root and not is_machines
    assert processes == sorted([str(made.pid), "stat"]) and shared == []
    assert made.output("cat", "/opt/volume/made") == "by the host"
    as_declared(made)
    assert sorted(seen_inside(container(*TICKING).pid, lambda: os.listdir("/"))) == ["mapped", "mnt", "rootfs"]


def test_which_id_maps_it_has(container, id_maps, on_a_root, scratch):
    source = scratch / "audited-ids"
    source.mkdir()

    def change(config):
        config["mounts"].append({"destination": "/srv", "type": "bind", "source": str(source)})
    made = container("sleep", "1000", change=on_a_root(id_maps, change))
    as_declared(made)
    found = [line for line in made.runtime("audit", made.name).stdout.splitlines() if "id-mapped" in line]
    assert found == [{"shifted": "ok   ids: shares are id-mapped: in its user namespace no id of the host means anything but its own",
                      "identity": "note ids: shares are not id-mapped: in its user namespace each id of the host means itself"}[id_maps]]
    # A mount of the host that has come to it in some way.
    libc = ctypes.CDLL(None, use_errno=True)
    if not (child := os.fork()):
        namespace = os.open(f"/proc/{made.pid}/ns/mnt", os.O_RDONLY)
        os._exit(libc.setns(namespace, 0x20000) or libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))
    assert os.waitpid(child, 0)[1] == 0
    done = made.runtime("audit", made.name)
    found = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    if id_maps == "shifted":
        assert done.returncode == 1 and found == ["FAIL ids: not id-mapped, in a namespace of shifted ids: /mnt"]
    else:
        assert done.returncode == 0 and not found
    made.delete()
    source.rmdir()


def test_before_the_program_runs(container):
    made = container("true", verb=("create",))
    as_declared(made)
    made.verb("start")
    made.ends()
    done = made.runtime("audit", made.name)
    assert done.returncode == 1 and "container not running" in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_paused_machine(container):
    made = container(*TICKING)
    made.verb("pause")
    as_declared(made)
    assert made.status == "paused" and not ticks(made)
    made.verb("resume")
    assert ticks(made)


def test_an_exec(container):
    made = container("sleep", "1000")
    file = made.bundle.path / "exec-pid"
    pids = []
    for _ in range(2):
        done = made.exec("sleep", "1000", options=("--detach", "--pid-file", file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert done.returncode == 0, done
        pids.append(int(file.read_text()))
    as_declared(made, pids)


def test_a_network(container):
    namespace = Namespace()
    try:
        namespace.ip("link", "add", "eth0", "type", "veth", "peer", "eth1")
        namespace.ip("addr", "add", "192.0.2.7/24", "dev", "eth0")
        for link in ("eth0", "eth1"):
            namespace.ip("link", "set", link, "up")

        def change(config):
            config["linux"]["namespaces"] = [{"type": "network", "path": namespace.path} if each["type"] == "network" else each
                                             for each in config["linux"]["namespaces"]]
        made = container("sleep", "1000", change=change)
        assert "192.0.2.7" in made.output("cat", "/proc/net/fib_trie")
        text = made.runtime("audit", made.name).stdout
        [watcher] = {int(line.split()[2].rstrip(":")) for line in text.splitlines() if line.split()[1] == "watcher"}
        as_declared(made, [watcher])
        namespace.ip("link", "set", "eth1", "name", "eth2")
        namespace.ip("addr", "add", "192.0.2.8/24", "dev", "eth2")
        wait_for(lambda: "192.0.2.8" in made.output("cat", "/proc/net/fib_trie"))
        as_declared(made, [watcher])
        made.delete()
    finally:
        namespace.delete()


def test_a_terminal(container):
    console = ConsoleSocket()
    try:
        def change(config):
            config["process"]["terminal"] = True
        made = container("sleep", "1000", change=change, verb=("run", "--detach", "--console-socket", console.path))
        console.terminal()
        as_declared(made)
        made.delete()
    finally:
        console.close()


def test_volumes_and_a_disk(container, scratch, loop):  # noqa: F811
    source = scratch / "audited"
    source.mkdir()
    _, *number = loop()

    def change(config):
        config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": number[0], "minor": number[1]}]
        config["linux"]["resources"]["devices"].append({"allow": True, "type": "b", "major": number[0], "minor": number[1], "access": "rwm"})
        config["mounts"] += [{"destination": "/follows", "type": "bind", "source": str(source), "options": ["rbind", "rslave"]},
                             {"destination": "/fixed", "type": "bind", "source": str(source), "options": ["bind", "ro"]}]
    made = container("sh", "-c", "exec 3</dev/disk; exec 4>/follows/written; sleep 1000", change=change)
    wait_for(lambda: (source / "written").exists())
    as_declared(made)
    made.delete()
    (source / "written").unlink()
    source.rmdir()


@pytest.mark.parametrize("what", ["directory", "device"])
def test_what_is_not_declared_is_found(container, what):
    """A caller that leaves something in the machine's standard input that must not be there."""
    path = {"directory": "/", "device": "/dev/kmsg"}[what]
    given = os.open(path, os.O_RDONLY)
    try:
        made = container("sleep", "1000", stdin=given)
    finally:
        os.close(given)
    fails = audited(made)[None]["fail"]
    # A directory is closed on the way into the jail; such a device is what the caller has asked for.
    assert ("descriptors" in fails) == (what == "device")
