"""The calls of containerd's shim, with the library go-runc: what it passes and what it reads back."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess

import pytest

from chiton import CONFIG, alive, ended, subreaper, wait_for

# What callers look for in the message of a kill that came too late.
TOO_LATE = ("process already finished", "container not running", "no such process")


def die_with_the_caller():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Streams:
    """Three FIFOs: `runtime` are its ends for the runtime, the others are the client's."""

    def __init__(self, directory):
        directory.mkdir()
        self.runtime, self.client = [], []
        for name in ("stdin", "stdout", "stderr"):
            os.mkfifo(directory / name)
            reader = os.open(directory / name, os.O_RDONLY | os.O_NONBLOCK)
            writer = os.open(directory / name, os.O_WRONLY)
            os.set_blocking(reader, True)
            self.runtime.append(reader if name == "stdin" else writer)
            self.client.append(open(writer if name == "stdin" else reader, "wb" if name == "stdin" else "rb", buffering=0))

    def arguments(self):
        return dict(zip(("stdin", "stdout", "stderr"), self.runtime))

    def handed_over(self):
        for fd in self.runtime:
            os.close(fd)
        self.runtime = []

    def close(self):
        self.handed_over()
        for file in self.client:
            file.close()


class Shim:
    """A container as the shim has it."""

    def __init__(self, runtime, bundle):
        self.runtime, self.bundle, self.name = runtime, bundle.path, "shim"
        self.log = bundle.path / "log.json"

    def __call__(self, *args, code=0, **kwargs):
        """Runs a verb that must end with the code; its output, or for a failure the message in the log."""
        kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | kwargs
        command = self.runtime.command("--log", self.log, "--log-format", "json", *args)
        done = subprocess.run(command, timeout=60, text=True, preexec_fn=die_with_the_caller, check=False, **kwargs)
        assert (done.returncode == 0) == (code == 0), f"{args}: exit {done.returncode}\n{done.stdout}\n{self.error()}"
        return done.stdout if code == 0 else self.error()

    def error(self):
        """The last error in the log, as go-runc looks for it."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        errors = [line["msg"] for line in lines if line["level"] == "error"]
        return errors[-1] if errors else None

    def state(self):
        return json.loads(self("state", self.name))

    def execute(self, number, streams, *args, code=0):
        """Executes a program detached; its pid."""
        process = dict(CONFIG["process"], args=args, cwd="/tmp")
        path, pid_file = self.bundle / f"process-{number}.json", self.bundle / f"{number}.pid"
        path.write_text(json.dumps(process))
        said = self("exec", "--process", path, "--detach", "--pid-file", pid_file, self.name, code=code, **streams.arguments())
        streams.handed_over()
        return said if code else int(pid_file.read_text())


@pytest.fixture
def streams(scratch, bundle):
    """Makes sets of FIFOs."""
    directory = bundle("true").path
    with contextlib.ExitStack() as stack:
        def make(name):
            made = Streams(directory / name)
            stack.callback(made.close)
            return made
        yield make


@pytest.fixture
def shim(runtime, bundle):
    """A container that echoes its input until the end of it, made as the shim makes it; with a limit of memory."""
    made = bundle("sh", "-c", "trap 'echo term; exit 9' TERM; while read line; do echo got $line; done; echo bye >&2; exit 5")
    made.config["linux"]["cgroupsPath"] = "/chiton-shim/container"
    made.save()
    shim = Shim(runtime, made)
    with subreaper():
        yield shim
        shim("delete", "--force", shim.name)
    with contextlib.suppress(OSError):
        os.rmdir("/sys/fs/cgroup/chiton-shim")


def create(shim, streams):
    shim("create", "--bundle", shim.bundle, "--pid-file", shim.bundle / "init.pid", shim.name, **streams.arguments())
    streams.handed_over()
    return int((shim.bundle / "init.pid").read_text())


def test_a_life(shim, streams):
    """create, start, exec, ps, kill and delete."""
    init = streams("init")
    pid = create(shim, init)
    state = shim.state()
    assert (state["id"], state["status"], state["pid"], state["bundle"]) == (shim.name, "created", pid, str(shim.bundle))
    assert json.loads(shim("ps", "--format", "json", shim.name)) == [pid]
    shim("start", shim.name)
    assert shim.state()["status"] == "running"
    init.client[0].write(b"one\n")
    assert init.client[1].read(100) == b"got one\n"
    # Executed programs: streams, codes, and signals that the shim sends by itself.
    one = streams("one")
    pid_one = shim.execute("one", one, "sh", "-c", "cat; pwd; echo err >&2; exit 42")
    one.client[0].write(b"two\n")
    one.client[0].close()
    assert one.client[1].read(4) == b"two\n" and ended(pid_one) == 42
    assert one.client[1].readall() == b"/tmp\n" and one.client[2].readall() == b"err\n"
    two = streams("two")
    pid_two = shim.execute("two", two, "sh", "-c", "trap 'echo usr1; exit 6' USR1; echo up; while :; do sleep 0.1; done")
    assert two.client[1].read(100) == b"up\n"
    pids = json.loads(shim("ps", "--format", "json", shim.name))
    assert {pid, pid_two} <= set(pids) and all(alive(each) for each in pids)
    os.kill(pid_two, signal.SIGUSR1)
    assert ended(pid_two) == 6 and two.client[1].readall() == b"usr1\n"
    three = streams("three")
    pid_three = shim.execute("three", three, "sleep", "1000")
    os.kill(pid_three, signal.SIGKILL)
    assert ended(pid_three) == -9 and three.client[1].readall() == b""
    said = shim.execute("none", streams("none"), "no-such", code=1)
    assert 'exec: "no-such": executable file not found in $PATH' in said
    # In a paused container nothing runs.
    shim("pause", shim.name)
    assert shim.state()["status"] == "paused"
    assert "paused" in shim.execute("paused", streams("paused"), "true", code=1)
    shim("resume", shim.name)
    assert shim.state()["status"] == "running"
    assert json.loads(shim("ps", "--format", "json", shim.name)) == [pid]
    # What the shim says of wrong moments.
    assert "cannot start an already running container" in shim("start", shim.name, code=1)
    assert shim("delete", shim.name, code=1)
    # The end.
    init.client[0].close()
    assert ended(pid) == 5
    assert init.client[1].readall() == b"" and init.client[2].readall() == b"bye\n"
    state = shim.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert any(text in shim("kill", shim.name, "9", code=1) for text in TOO_LATE)
    shim("kill", "--all", shim.name, "9")
    shim("delete", shim.name)
    for verb in (("delete", shim.name), ("state", shim.name), ("start", shim.name), ("kill", shim.name, "9")):
        assert "does not exist" in shim(*verb, code=1)
    shim("delete", "--force", shim.name)


def test_kill_all(shim, streams):
    init, sleeper = streams("init"), streams("exec")
    pid = create(shim, init)
    shim("start", shim.name)
    pid_exec = shim.execute("exec", sleeper, "sleep", "1000")
    shim("kill", shim.name, "0") if shim.runtime.name == "runc" else None
    shim("kill", "--all", shim.name, "9")
    assert ended(pid_exec) == -9 and ended(pid) == -9
    assert init.client[1].readall() == b"" and sleeper.client[1].readall() == b""
    # Its output was the shim's to drain: nobody else has it open.
    shim("delete", shim.name)
    # Created, never started.
    again = streams("again")
    pid = create(shim, again)
    shim("kill", "--all", shim.name, "9")
    assert ended(pid) == -9
    shim("delete", "--force", shim.name)


@pytest.mark.skipif("memory" not in open("/sys/fs/cgroup/cgroup.controllers").read(), reason="no cgroup v2 with controllers")
def test_statistics_and_limits(shim, streams):
    init = streams("init")
    pid = create(shim, init)
    shim("start", shim.name)

    def stats():
        said = json.loads(shim("events", "--stats", shim.name))
        assert (said["type"], said["id"]) == ("stats", shim.name)
        return said["data"]

    before = stats()
    assert before["memory"]["usage"]["usage"] > 0 and before["cpu"]["usage"]["total"] > 0
    assert before["pids"]["current"] == 1 and "raw" in before["memory"]
    busy = streams("busy")
    pid_busy = shim.execute("busy", busy, "python3", "-c",
                            "x = bytearray(64 << 20)\nfor i in range(3000000): pass\nprint('up', flush=True)\ninput()")
    assert busy.client[1].read(10) == b"up\n"
    during = stats()
    assert during["memory"]["usage"]["usage"] > before["memory"]["usage"]["usage"] + (60 << 20)
    assert during["cpu"]["usage"]["total"] > before["cpu"]["usage"]["total"] + 10_000_000
    assert during["pids"]["current"] == 2
    busy.client[0].write(b"\n")
    assert ended(pid_busy) == 0
    # The host's cgroup is where the shim watches for kills for want of memory.
    cgroup = "/sys/fs/cgroup" + open(f"/proc/{pid}/cgroup").read().strip().split(":", 2)[2]
    assert cgroup == "/sys/fs/cgroup/chiton-shim/container" and "oom_kill 0\n" in open(cgroup + "/memory.events").read()
    # Limits, as the kubelet changes them.
    wanted = {"memory": {"limit": 200 << 20}, "pids": {"limit": 77}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}
    done = subprocess.run(shim.runtime.command("--log", shim.log, "--log-format", "json", "update", "--resources", "-", shim.name),
                          input=json.dumps(wanted), text=True, timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done
    after = stats()
    assert after["memory"]["usage"]["limit"] == 200 << 20 and after["pids"]["limit"] == 77
    look = streams("look")
    pid_look = shim.execute("look", look, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max")
    assert ended(pid_look) == 0
    assert look.client[1].readall() == b"209715200\n77\n50000 100000\n"
    shim("kill", shim.name, "15")
    init.client[0].close()
    assert ended(pid) in (5, 9)


def test_a_failed_create(shim, streams):
    """The message is in the log, nothing is left, and the name is free."""
    config = json.loads((shim.bundle / "config.json").read_text())
    config["process"]["args"] = ["no-such"]
    (shim.bundle / "config.json").write_text(json.dumps(config))
    none = streams("none")
    said = shim("create", "--bundle", shim.bundle, "--pid-file", shim.bundle / "init.pid", shim.name, code=1, **none.arguments())
    assert 'exec: "no-such": executable file not found in $PATH' in said
    none.handed_over()
    assert none.client[1].readall() == b""
    assert "does not exist" in shim("state", shim.name, code=1)
    config["process"]["args"] = ["true"]
    (shim.bundle / "config.json").write_text(json.dumps(config))
    pid = create(shim, streams("again"))
    shim("start", shim.name)
    assert ended(pid) == 0
    wait_for(lambda: shim.state()["status"] == "stopped")
    shim("delete", shim.name)
