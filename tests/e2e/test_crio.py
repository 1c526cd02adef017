"""Pods as CRI-O makes them: their namespaces are pinned before there is any container, each container names them, and an infra container
is there only where processes are shared. Pinned is as pinns does it; each container is created by a conmon with CRI-O's arguments."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess

import pytest

from chiton import alive, cgroups, joining, left_behind, only_chiton, processes, wait_for
from network import command
from test_conmon import Conmon, Crio, crios, in_pod, pod  # noqa: F401
from test_crashes import cleaned, traced  # noqa: F401

_numbers = itertools.count()

KINDS = {"uts": "uts", "ipc": "ipc", "network": "net", "user": "user"}

# What `securityContext.sysctls` of a pod come to.
PARAMETERS = {"net/ipv4/ip_unprivileged_port_start": "77", "net/ipv4/conf/all/rp_filter": "2", "kernel/shm_rmid_forced": "1",
              "kernel/msgmax": "4321", "fs/mqueue/msg_max": "9"}

# The ids of a pod with a user namespace: the first on the host, and how many.
IDS = (100000, 65536)

# A host's and a pod's end of the pod's network.
HOST, POD = "10.99.7.1", "10.99.7.2"


@contextlib.contextmanager
def waiting(*args):
    """The pid of a process that waits in namespaces that this command makes."""
    process = subprocess.Popen([*args, "sleep", "1000"])
    try:
        wait_for(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        yield process.pid
    finally:
        process.kill()
        process.wait()


class Pins:
    """What pinns makes of the options `-d /var/run -f NAME --uts --ipc --net -s ...`."""

    def __init__(self, parameters=None, users=False):
        self.name = f"e2e-{os.getpid()}-{next(_numbers)}"
        kinds = ("uts", "ipc", "network", "user") if users else ("uts", "ipc", "network")
        self.paths = {kind: pathlib.Path(f"/var/run/{KINDS[kind]}ns/{self.name}") for kind in kinds}
        for path in self.paths.values():
            path.parent.mkdir(exist_ok=True)
            path.touch()
        with contextlib.ExitStack() as stack:
            options = ["unshare", "--uts", "--ipc", "--net"]
            if users:
                owner = stack.enter_context(waiting("unshare", "--user"))
                for ids in ("uid", "gid"):
                    pathlib.Path(f"/proc/{owner}/{ids}_map").write_text(f"0 {IDS[0]} {IDS[1]}")
                options = ["nsenter", f"--user=/proc/{owner}/ns/user", *options]
            pid = stack.enter_context(waiting(*options))
            for kind, path in self.paths.items():
                command("mount", "--bind", f"/proc/{pid}/ns/{KINDS[kind]}", path)
            for name, value in (parameters or {}).items():
                command("nsenter", f"--target={pid}", "--uts", "--ipc", "--net", "sh", "-c", f"echo {value} >/proc/sys/{name}")
        command("ip", "-n", self.name, "link", "set", "lo", "up")

    def connect(self):
        """What a CNI plugin does before any container is there."""
        command("ip", "link", "add", f"h{self.name[-5:]}", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        command("ip", "addr", "add", f"{HOST}/24", "dev", f"h{self.name[-5:]}")
        command("ip", "link", "set", f"h{self.name[-5:]}", "up")
        command("ip", "-n", self.name, "addr", "add", f"{POD}/24", "dev", "eth0")
        command("ip", "-n", self.name, "link", "set", "eth0", "up")

    def name_in(self, config, pid=None):
        """What CRI-O writes into a container's configuration."""
        for namespace in config["linux"]["namespaces"]:
            path = self.paths.get(namespace["type"])
            if path:
                namespace["path"] = str(path)
            elif namespace["type"] == "pid" and pid:
                namespace["path"] = f"/proc/{pid}/ns/pid"
        if "user" in self.paths:
            config["linux"]["namespaces"].append({"type": "user", "path": str(self.paths["user"])})
        config["hostname"] = "a-pod"

    def remove(self):
        """As at the pod's stop, when its containers have ended and are not deleted yet."""
        for path in self.paths.values():
            if path.exists():
                command("umount", path)
                path.unlink()


@pytest.fixture
def pins():
    """Makes pins; they are removed at the end."""
    made = []

    def pins(*args):
        made.append(Pins(*args))
        return made[-1]

    yield pins
    for each in made:
        each.remove()


class Pod:
    """Makes containers of a pod."""

    def __init__(self, runtime, bundle, cgroup, pins):
        self.runtime, self.bundle, self.cgroup, self.pins = runtime, bundle, cgroup, pins

    def configured(self, name, *args, pid=None, change=None):
        made = in_pod(self.bundle(*args), name)
        self.pins.name_in(made.config, pid)
        if change:
            change(made.config)
        return made.save()

    def create(self, *args, name=None, **kwargs):
        name = name or f"crio-{next(_numbers)}"
        made = self.configured(name, *args, **kwargs)
        conmon = Conmon(self.runtime, made.path, name, *crios(made), cgroup=self.cgroup / "crio-conmon")
        return Member(self, conmon)

    def run(self, *args, **kwargs):
        made = self.create(*args, **kwargs)
        made.start()
        return made

    def machines(self):
        """The processes of this runtime that are virtual machines."""
        def threads(pid):
            # One that ends while it is looked at is none.
            with contextlib.suppress(OSError):
                return [(task / "comm").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
            return []

        return [pid for pid in processes(self.runtime) if any(name.startswith("vcpu") for name in threads(pid))]


class Member:
    """A container of a pod under its conmon."""

    def __init__(self, pod, conmon):
        self.pod, self.conmon, self.name, self.runtime = pod, conmon, conmon.name, pod.runtime
        self.pid = conmon.pid()
        self.crio = Crio(pod.runtime, pod.bundle, conmon.name, pod.cgroup / "crio-conmon")

    def start(self):
        self.runtime.ok("start", self.name)

    def output(self, script):
        done = self.crio.directly(script)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def ended(self):
        code = self.conmon.code()
        self.conmon.close()
        return code

    def kill(self, name="KILL"):
        self.runtime.ok("kill", self.name, name)
        return self.ended()

    def delete(self):
        self.runtime.ok("delete", "--force", self.name)


def shares_shm(scratch):
    """CRI-O's /dev/shm of a pod: a tmpfs of the host that each container binds."""
    shm = scratch / "crio-shm"
    shm.mkdir(exist_ok=True)
    command("mount", "-t", "tmpfs", "-o", "mode=1777,size=8m", "shm", shm)

    def change(config):
        config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/dev/shm"]
        config["mounts"].append({"destination": "/dev/shm", "type": "bind", "source": str(shm), "options": ["rw", "bind"]})

    return shm, change


@pytest.fixture
def shm(scratch):
    path, change = shares_shm(scratch)
    yield change
    command("umount", path)


SERVER = "import socket; s = socket.create_server(('', 80)); c, _ = s.accept(); c.sendall(b'hello')"
CLIENT = """import socket, time
for _ in range(100):
    try: print(socket.create_connection((%r, 80)).recv(9)); break
    except OSError: time.sleep(.1)
"""


@pytest.mark.timeout(300)
def test_a_pod_without_an_infra_container(runtime, bundle, pod, pins, shm):  # noqa: F811
    pinned = pins(PARAMETERS)
    pinned.connect()
    it = Pod(runtime, bundle, pod, pinned)
    # An init container comes first, and goes before the others come.
    init = it.run("sh", "-c", "ipcmk --shmem 4096; ipcmk --queue; echo from init > /dev/shm/file; exit 3", change=shm)
    assert init.ended() == 3
    one = it.create("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done", change=shm)
    init.delete()
    two = it.run("sleep", "1000", change=shm)
    assert (runtime.status(one.name), runtime.status(two.name)) == ("created", "running")
    one.start()
    if runtime.name == "chiton":
        [machine] = it.machines()
        assert machine not in (one.pid, two.pid)
        for kind in ("uts", "ipc", "net"):
            assert os.stat(f"/proc/{machine}/ns/{kind}").st_ino == os.stat(f"/var/run/{kind}ns/{pinned.name}").st_ino
        assert pathlib.Path(f"/proc/{machine}/cgroup").read_text().startswith("0::/chiton-pods/pod/chiton-pod-")
        listed = json.loads(runtime.ok("list", "--format", "json"))
        assert sorted(each["id"] for each in listed) == sorted([one.name, two.name])
        assert "FAIL" not in runtime.ok("audit", one.name)
    # One ipc namespace, with what the first has left there, one name, one network, one /dev/shm; and processes of their own.
    for kind in ("ipc", "uts", "net"):
        assert len({each.output(f"readlink /proc/self/ns/{kind}") for each in (one, two)}) == 1, kind
    assert len({each.output("readlink /proc/self/ns/pid") for each in (one, two)}) == 2
    shown = one.output("ipcs --shmems; ipcs --queues; cat /dev/shm/file; hostname")
    # Of the segment that it has left nothing is there, as a parameter of the pod says.
    assert "4096" not in shown and "from init" in shown and shown.endswith("a-pod\n")
    assert one.output("ipcs --queues | grep -c 0x") == two.output("ipcs --queues | grep -c 0x") == "1\n"
    made = one.output("ipcmk --queue").split(":")[1].strip()
    assert made in two.output("ipcs --queues")
    for name, value in PARAMETERS.items():
        assert two.output(f"cat /proc/sys/{name}").strip() == value, name
    subprocess.Popen(runtime.command("exec", one.name, "python3", "-c", SERVER), stdin=subprocess.DEVNULL)
    assert two.output(f'python3 -c "{CLIENT % "127.0.0.1"}"') == "b'hello'\n"
    subprocess.Popen(runtime.command("exec", two.name, "python3", "-c", SERVER), stdin=subprocess.DEVNULL)
    assert command("python3", "-c", CLIENT % POD) == "b'hello'\n"
    answer, lines = two.crio.conmon("echo out; exit 42")
    assert answer["exit_code"] == 42 and lines == [("stdout", "out")]
    # One of them is restarted.
    assert one.kill("TERM") == 7
    again = it.run("sleep", "1000", change=shm)
    one.delete()
    assert made in again.output("ipcs --queues") and again.output("cat /dev/shm/file") == "from init\n"
    # The pod is stopped, and removed later.
    assert again.kill() == 137
    pinned.remove()
    if runtime.name == "chiton":
        # What is pinned no more lives as long as somebody lives in it.
        assert it.machines() == [machine] and two.output("hostname") == "a-pod\n"
    assert two.kill() == 137
    wait_for(lambda: not it.machines())
    again.delete()
    two.delete()
    assert not runtime.root.exists() or not list(runtime.root.iterdir())


@pytest.mark.timeout(300)
def test_a_pod_that_shares_processes(runtime, bundle, pod, pins):  # noqa: F811
    it = Pod(runtime, bundle, pod, pins())
    infra = it.run("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
    one = it.run("sleep", "1111", pid=infra.pid)
    two = it.run("sleep", "2222", pid=infra.pid)
    if runtime.name == "chiton":
        assert len(it.machines()) == 1
    for each in (infra, one, two):
        shown = each.output("ps ax")
        assert all(text in shown for text in ("trap 'exit 5'", "sleep 1111", "sleep 2222"))
        assert each.output("hostname") == "a-pod\n"
    assert one.output("readlink /proc/self/ns/ipc") == infra.output("readlink /proc/self/ns/ipc")
    assert two.kill() == 137
    again = it.run("sleep", "3333", pid=infra.pid)
    two.delete()
    assert "sleep 3333" in one.output("ps ax")
    assert (one.kill(), again.kill(), infra.kill("TERM")) == (137, 137, 5)
    for each in (one, infra, again):
        each.delete()
    assert not it.machines()


@only_chiton
@pytest.mark.timeout(300)
def test_who_comes_first(runtime, bundle, pod, pins):  # noqa: F811
    """Containers that are created at the same time get one machine, which lives until the last of them is deleted."""
    it = Pod(runtime, bundle, pod, pins())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: it.create("sleep", "1000"), range(4)))
        assert len(it.machines()) == 1
        list(pool.map(Member.start, made))
        assert len({each.output("readlink /proc/self/ns/net") for each in made}) == 1
        list(pool.map(Member.kill, made))
        [machine] = it.machines()
        list(pool.map(Member.delete, made))
    assert not alive(machine)


@only_chiton
@pytest.mark.timeout(300)
def test_the_machine_ends_before_its_containers(runtime, bundle, pod, pins):  # noqa: F811
    pinned = pins()
    it = Pod(runtime, bundle, pod, pinned)
    one, two = it.run("sleep", "1000"), it.create("sleep", "1000")
    [machine] = it.machines()
    os.kill(machine, signal.SIGKILL)
    assert (one.ended(), two.ended()) == (137, 137)
    assert (runtime.status(one.name), runtime.status(two.name)) == ("stopped", "stopped")
    # A restart gives the pod another machine, of which those that are left know nothing.
    again = it.run("sleep", "1000")
    [other] = it.machines()
    assert other != machine
    one.delete()
    two.delete()
    assert again.output("hostname") == "a-pod\n"
    # SIGTERM ends it as well: that is what systemd sends to a scope.
    os.kill(other, signal.SIGTERM)
    assert again.ended() == 137
    wait_for(lambda: not it.machines())
    again.delete()


@only_chiton
@pytest.mark.timeout(300)
def test_what_is_refused(runtime, bundle, pod, pins, scratch):  # noqa: F811
    pinned, other = pins(), pins()
    it = Pod(runtime, bundle, pod, pinned)
    one, two = it.run("sleep", "1000"), Pod(runtime, bundle, pod, other).run("sleep", "1000")
    assert len(it.machines()) == 2
    target = scratch / "target"
    target.touch()
    command("mount", "--bind", f"/proc/{one.pid}/ns/pid", target)  # as CRI-O does for a container that is to be debugged

    def refusal(change):
        made = it.configured("refused", "true", change=change)
        done = runtime("create", "--bundle", made.path, "refused")
        assert done.returncode == 1 and runtime.status("refused") is None
        return done.stderr

    def put(kind, path):
        def change(config):
            config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != kind]
            config["linux"]["namespaces"].append({"type": kind} | ({"path": str(path)} if path else {}))
        return change

    for kind, path, text in (
        ("pid", target, "name a container's by its process, /proc/PID/ns/pid"),
        ("pid", f"/proc/{two.pid}/ns/pid", "a container lives in one"),
        ("ipc", other.paths["ipc"], "a container lives in one machine"),
        ("network", other.paths["network"], "a container lives in one machine"),
        ("ipc", other.paths["uts"], "is a namespace of the type uts, not ipc"),
        ("ipc", "/etc/passwd", "/etc/passwd is not a namespace"),
        ("ipc", "/proc/self/ns/ipc", "belongs to this host's kernel"),
        ("uts", None, "both the ipc and the uts namespace"),
    ):
        found = refusal(put(kind, path))
        assert text in found and found.count("\n") <= 1, (kind, path, found)
    # A pod that there is none of yet, with the ipc namespace of another one.
    third = pins()
    mixed = Pod(runtime, bundle, pod, third).configured("refused", "true", change=put("ipc", pinned.paths["ipc"]))
    done = runtime("create", "--bundle", mixed.path, "refused")
    assert done.returncode == 1 and "a container lives in one machine" in done.stderr
    command("umount", target)
    assert one.output("hostname") == "a-pod\n"
    # Nor does one that names a container of the pod and not the pod.
    made = in_pod(bundle("true"), "refused")
    put("pid", f"/proc/{one.pid}/ns/pid")(made.config)
    done = runtime("create", "--bundle", made.save().path, "refused")
    assert done.returncode == 1 and "name the ipc and uts namespace that are pinned for it, too" in done.stderr
    # A network namespace alone makes no pod.
    alone = bundle("true")
    put("network", pinned.paths["network"])(alone.config)
    assert runtime("run", "--bundle", alone.save().path, "alone").returncode == 0
    for each in (one, two):
        each.kill()
        each.delete()
    assert not it.machines()


@only_chiton
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shared", (False, True), ids=("no_infra", "infra"))
def test_every_order(runtime, bundle, pod, pins, shared):  # noqa: F811
    """In whichever order the containers of a pod are deleted and its namespaces unpinned, nothing is left."""
    before = cgroups()
    for order in itertools.permutations((0, 1, "pins")):
        pinned = pins()
        it = Pod(runtime, bundle, pod, pinned)
        made = [it.run("sleep", "1000")]
        made.append(it.run("sleep", "1000", pid=made[0].pid if shared else None))
        there = {0, 1}
        for each in order:
            if each == "pins":
                pinned.remove()
                continue
            made[each].delete()
            there.remove(each)
            # The first container's end is that of all processes in its pid namespace.
            ends = shared and each == 0
            for other in there:
                wait_for(lambda: runtime.status(made[other].name) == ("stopped" if ends else "running"))
            lives = there and not (ends and not pinned.paths["uts"].exists())
            wait_for(lambda: len(it.machines()) == bool(lives))
        assert [each.ended() for each in made] == [137, 137]
        assert left_behind(runtime, before) == [], order


@only_chiton
def test_users_of_a_pod(runtime, bundle, pod, pins):  # noqa: F811
    """A pod with a user namespace, to which the others belong."""
    pinned = pins(None, True)
    it = Pod(runtime, bundle, pod, pinned)
    one, two = it.run("sleep", "1000"), it.run("sleep", "1000")
    assert len(it.machines()) == 1
    for kind in ("user", "uts", "ipc", "net"):
        assert one.output(f"readlink /proc/self/ns/{kind}") == two.output(f"readlink /proc/self/ns/{kind}"), kind
    assert one.output("cat /proc/self/uid_map").split() == ["0", str(IDS[0]), str(IDS[1])]
    assert two.output("id -u; hostname") == "0\na-pod\n"
    for each in (one, two):
        each.kill()
        each.delete()
    assert not it.machines()


@only_chiton
def test_users_that_are_pinned_alone(container, pins):
    """A user namespace and a network that belongs to it, without the others, as containerd 2 pins them for a pod: no pod of pinned
    namespaces, but a container that has the maps of the pinned one, whatever its configuration says of them."""
    pinned = pins(None, True)
    pinned.connect()

    def in_users(config, said):
        maps = [{"containerID": 0, "hostID": said, "size": 1}]
        config["process"]["oomScoreAdj"] = -998
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=maps, gidMappings=maps)

    def change(config):
        in_users(config, 0)
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] in ("network", "user"):
                namespace["path"] = str(pinned.paths[namespace["type"]])
    one = container("sleep", "1000", change=change)
    two = container("sleep", "1000", change=lambda config: in_users(config, 5) or joining(one.pid, *KINDS)(config))
    assert two.output("cat", "/proc/self/uid_map", "/proc/self/gid_map").split() == ["0", *map(str, IDS)] * 2
    assert one.output("sh", "-c", "id -u; echo x >/dev/shm/y; stat -c %u /dev/shm/y; ls /sys/class/net").split() == ["0", "0", "eth0", "lo"]
    command("ping", "-c1", "-w30", POD)
    assert [each.output("cat", "/proc/1/oom_score_adj") for each in (one, two)] == ["-998\n"] * 2
    for name in KINDS.values():
        assert one.output("readlink", f"/proc/self/ns/{name}") == two.output("readlink", f"/proc/self/ns/{name}"), name


@pytest.mark.timeout(600)
def test_kills(chiton, traced, cleaned, bundle, pins):  # noqa: F811
    """The first create of a pod and the last delete, killed at each step that concerns the pod: the container's delete removes both."""
    steps = ("mkdir", "flock", "rename", "clone3", "connect", "sendmsg", "unlink", "rmdir", "pidfd_send_signal")
    made = bundle("grep", "-q", "eth0", "/proc/net/dev")
    pinned = pins()
    pinned.connect()
    pinned.name_in(made.config)
    made.save()
    create = ("create", "--bundle", made.path, "--pid-file", made.path / "pid", "crashed")
    taken = [step for step in traced.steps(create) if step[0] in steps]
    cleaned("crashed", "create")
    assert {"mkdir", "flock", "rename", "clone3", "connect"} <= {call for call, _ in taken}
    for step in taken:
        traced.kill_verb(*step, create)
        if step[0] == "connect":
            # The next container of the pod goes on from there.
            assert chiton("run", "--bundle", made.path, "next").returncode == 0, step
        cleaned("crashed", step)
    delete = ("delete", "--force", "crashed")

    def created():
        chiton.ok(*create, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    created()
    taken = [step for step in traced.steps(delete) if step[0] in steps]
    assert {"flock", "pidfd_send_signal", "rmdir"} <= {call for call, _ in taken}
    for step in taken:
        created()
        traced.kill_verb(*step, delete)
        cleaned("crashed", step)
