"""kill -9 of each process at each step of each verb: what is left is recognised, and `delete --force` removes all of it.

strace(1) kills a process as it enters a chosen system call: all steps before that have been taken, and none after it.
"""

import collections
import contextlib
import os
import pathlib
import re
import signal
import subprocess

import pytest

from chiton import SHARED, Container, alive, cgroups, joining, left_behind, only_chiton, processes, wait_for

# What a verb does that others can see: a step is one of these calls.
STEPS = ("mkdir", "flock", "write", "rename", "clone3", "connect", "sendto", "sendmsg", "recvfrom", "pidfd_send_signal", "kill", "poll",
         "unlink", "unlinkat", "rmdir")
# What the machine process does on its way into the jail, and a verb never does.
MACHINE = ("setsid", "signalfd4", "bind", "listen", "unshare", "open_tree", "mount", "fsmount", "pivot_root", "umount2", "setgroups", "capset")
# The same for a stub, of an exec and of a container in another one's machine.
STUB = ("setsid", "chdir", "close_range", "signalfd4", "chroot", "setgroups", "setresuid", "capset")
MEMBER = tuple(call.replace("chroot", "pivot_root") for call in STUB)


class Traced:
    """A verb under strace."""

    def __init__(self, runtime, path):
        self.runtime, self.trace, self.output = runtime, path / "trace", path / "traced-output"

    def run(self, options, args):
        """Its exit code, negative for a signal."""
        command = ["strace", "-q", "-o", self.trace, *options, *self.runtime.command(*args)]
        with open(self.output, "wb") as output:
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=120, check=False).returncode

    def steps(self, args):
        """Each step of the verb when nothing happens to it, in order: a call, and for the how many-th time it is made."""
        assert self.run(["-e", "trace=" + ",".join(f"?{call}" for call in STEPS)], args) == 0, self.output.read_text()
        return in_order(self.trace.read_text())

    def kill_verb(self, call, number, args):
        """Kills it as it enters a call for the `number`-th time."""
        code = self.run(["-e", f"trace={call}", f"--inject={call}:signal=KILL:when={number}"], args)
        assert code == -signal.SIGKILL, f"{args} at {call} {number}: exit {code}\n{self.output.read_text()}"

    def kill_child(self, call, args):
        """Kills its child as it enters a call for the first time; the verb's exit code and words."""
        code = self.run(["-f", "-e", f"trace={call}", f"--inject={call}:signal=KILL:when=1"], args)
        assert "killed by SIGKILL" in self.trace.read_text(), f"{call}: nobody was killed"
        return code, self.output.read_text()


@pytest.fixture
def traced(chiton, scratch):
    chiton.root.mkdir(mode=0o700)  # else the first verb has a step more
    return Traced(chiton, scratch)


@pytest.fixture
def cleaned(chiton):
    """`delete --force` works and leaves nothing."""
    before = cgroups()

    def cleaned(name, step):
        done = chiton("delete", "--force", name)
        assert done.returncode == 0, f"after {step}: {done.stderr}"
        assert left_behind(chiton, before) == [], f"after {step}"

    return cleaned


def in_order(trace):
    """The steps of a trace: each a call, and for the how many-th time it is made."""
    made = collections.Counter()
    steps = []
    for call in re.findall(r"^(\w+)\(", trace, re.MULTILINE):
        made[call] += 1
        steps.append((call, made[call]))
    return steps


def calls(steps):
    return {call for call, _ in steps}


def test_create(chiton, traced, cleaned, bundle):
    made = bundle("true")
    made.config["linux"]["resources"]["pids"] = {"limit": 100}
    made.save()
    create = ("create", "--bundle", made.path, "--pid-file", made.path / "pid", "crashed")
    steps = traced.steps(create)
    cleaned("crashed", "create")
    assert {"mkdir", "write", "rename", "clone3", "sendto"} <= calls(steps)
    for step in steps:
        traced.kill_verb(*step, create)
        cleaned("crashed", step)


def test_the_machine_while_it_is_created(chiton, traced, cleaned, bundle):
    made = bundle("true").save()
    create = ("create", "--bundle", made.path, "--pid-file", made.path / "pid", "crashed")
    before = cgroups()
    for call in MACHINE:
        code, text = traced.kill_child(call, create)
        assert code == 1 and "the machine process ended unexpectedly (SIGKILL)" in text, (call, text)
        assert left_behind(chiton, before) == [], call
        assert not (made.path / "pid").exists()
    cleaned("crashed", "all")


def test_start(chiton, traced, cleaned, bundle, rootfs):
    """The program is started once, by the verb that was killed if it had come to asking for it, or by the next one."""
    made = bundle("sh", "-c", "echo >>/started; exec sleep 1000").save()

    def create():
        (rootfs / "started").unlink(missing_ok=True)
        Container(chiton, "crashed", made, verb=("create",))

    create()
    steps = traced.steps(("start", "crashed"))
    cleaned("crashed", "start")
    assert {"flock", "connect"} <= calls(steps)
    again = []
    for step in steps:
        create()
        traced.kill_verb(*step, ("start", "crashed"))
        done = chiton("start", "crashed")
        again.append(done.returncode)
        assert done.returncode == 0 or "cannot start an already running container" in done.stderr, (step, done.stderr)
        wait_for((rootfs / "started").exists)
        assert (chiton.status("crashed"), (rootfs / "started").read_text()) == ("running", "\n"), step
        cleaned("crashed", step)
    assert again == sorted(again) and again[0] == 0 and again[-1] == 1, list(zip(steps, again))


def test_delete(chiton, traced, cleaned, bundle):
    made = bundle("true").save()

    def create():
        Container(chiton, "crashed", made, verb=("create",))

    create()
    steps = traced.steps(("delete", "crashed"))
    assert {"pidfd_send_signal", "rmdir", "unlinkat"} <= calls(steps)
    for step in steps:
        create()
        traced.kill_verb(*step, ("delete", "crashed"))
        assert chiton.status("crashed") in ("created", "creating", "stopped", None)
        cleaned("crashed", step)


@only_chiton
@pytest.mark.parametrize("verb", ["create", "start", "delete"])
def test_a_member(verb, chiton, traced, container, bundle):
    """Of a container in another one's machine nothing is left in either, and the other one goes on."""
    pod = container("sleep", "1000")
    made = bundle("true")
    joining(pod.pid, *SHARED)(made.config)
    made.save()
    create = ("create", "--bundle", made.path, "--pid-file", made.path / "pid", "crashed")
    traced_verb = create if verb == "create" else (verb, "crashed")

    def there():
        """All that containers have on the host, and what the machine has of them."""
        mounts = pathlib.Path(f"/proc/{pod.pid}/mountinfo").read_text().count("\n")
        return sorted(processes(chiton)), sorted(str(entry) for entry in chiton.root.iterdir()), cgroups(), mounts

    def prepare():
        if verb != "create":
            Container(chiton, "crashed", made, verb=("create",))

    def cleaned(step):
        done = chiton("delete", "--force", "crashed")
        assert done.returncode == 0, f"after {step}: {done.stderr}"
        with contextlib.suppress(AssertionError):
            wait_for(lambda: there() == before)
        assert there() == before, f"after {step}"

    before = there()
    prepare()
    steps = traced.steps(traced_verb)
    cleaned(verb)
    assert {"create": {"mkdir", "write", "rename", "clone3", "sendmsg"}, "start": {"connect"}, "delete": {"connect", "rmdir"}}[verb] <= calls(steps)
    for step in steps:
        prepare()
        traced.kill_verb(*step, traced_verb)
        cleaned(step)
    for call in MEMBER if verb == "create" else ():
        code, text = traced.kill_child(call, create)
        assert code == 1 and len(text.splitlines()) == 1, (call, text)
        assert there() == before, call
    assert pod.output("echo", "well") == "well\n"


@only_chiton
def test_exec(container, traced):
    c = container("sleep", "1000")
    pid_file = c.bundle.path / "exec-pid"
    execute = ("exec", "--detach", "--pid-file", pid_file, c.name, "sleep", "4321")

    def alone():
        """Nothing is there but the container's init, on the host and in the guest."""
        wait_for(lambda: (c.cgroup / "cgroup.procs").read_text().split() == [str(c.pid)])
        wait_for(lambda: "4321" not in c.verb("ps"))

    steps = traced.steps(execute)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    alone()
    pid_file.unlink()
    assert {"connect", "sendmsg", "clone3", "write", "rename"} <= calls(steps)
    for step in steps:
        traced.kill_verb(*step, execute)
        wait_for(lambda: (c.cgroup / "cgroup.procs").read_text().split() == [str(c.pid)])
    alone()
    pid_file.unlink(missing_ok=True)
    for call in STUB:
        code, text = traced.kill_child(call, execute)
        assert code == 255 and "it ended unexpectedly" in text, (call, text)
        assert not pid_file.exists()
    alone()
    assert c.output("echo", "well") == "well\n"


class Attached:
    """strace of the main thread of a process that runs."""

    def __init__(self, pid, trace, *options):
        self.process = subprocess.Popen(["strace", "-o", trace, *options, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert "attached" in self.process.stderr.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=30)


# What the machine process does for a verb that others can see or wait for.
ANSWERS = ("accept4", "recvmsg", "sendmsg", "write", "read", "epoll_ctl", "close", "ioctl")


@pytest.mark.parametrize("verb", ["start", "exec"])
def test_the_machine_at_each_step_of_a_verb(verb, chiton, cleaned, bundle, scratch):
    """The verb ends with one line that says so, or has been answered already."""
    made, trace = bundle("sleep", "1000").save(), scratch / "machine-trace"
    args = {"start": ("start", "crashed"), "exec": ("exec", "crashed", "true")}[verb]

    def create():
        container = Container(chiton, "crashed", made, verb=("create",))
        if verb != "start":
            chiton.ok("start", "crashed")
        return container.pid

    with Attached(create(), trace, "-e", "trace=" + ",".join(ANSWERS)):
        assert chiton(*args).returncode == 0
    cleaned("crashed", verb)
    steps = in_order(trace.read_text())
    assert {"accept4", "recvmsg", "sendmsg"} <= calls(steps)
    killed = []
    for call, number in steps:
        pid = create()
        with Attached(pid, trace, "-e", f"trace={call}", f"--inject={call}:signal=KILL:when={number}"):
            done = chiton(*args, timeout=30)
            # How often it makes a call depends on what comes to it at once: the last ones may not be made this time.
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not alive(pid), 5)
                killed.append((call, number))
        # A process that has been executed already dies with the machine.
        assert done.returncode in {"start": (0, 1), "exec": (0, 137, 255)}[verb], (call, number, done)
        assert len(done.stderr.splitlines()) == (done.returncode in (1, 255)), (call, number, done.stderr)
        assert chiton.status("crashed") == ("stopped" if (call, number) in killed else "running")
        cleaned("crashed", (call, number))
    assert len(killed) > len(steps) * 3 // 4, (steps, killed)


@only_chiton
def test_the_machine_while_verbs_wait_for_it(container):
    c = container("sleep", "1000")
    os.kill(c.pid, signal.SIGSTOP)
    waiting = {}
    for verb in (["exec", c.name, "true"], ["exec", "--detach", c.name, "true"], ["kill", c.name, "TERM"], ["update", "--pids-limit", "50", c.name],
                 ["pause", c.name], ["events", "--stats", c.name], ["ps", c.name]):
        waiting[" ".join(verb)] = c.runtime.popen(*verb, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # Each of them has come to its question, or waits for the lock.
    wait_for(lambda: all("poll" in state or "unix" in state or "lock" in state or "skb" in state for state in map(where, waiting.values())))
    os.kill(c.pid, signal.SIGKILL)
    wait_for(lambda: not alive(c.pid))
    for verb, process in waiting.items():
        _, text = process.communicate(timeout=30)
        assert process.returncode == (255 if verb.startswith("exec") else 1), (verb, text)
        assert len(text.splitlines()) == 1 and re.search("not running|stopped", text), (verb, text)
    assert c.status == "stopped"


def where(process):
    """Where in the kernel a process waits; nowhere if it does not."""
    return pathlib.Path(f"/proc/{process.pid}/wchan").read_text()
