"""Under the real conmon, with podman's and CRI-O's arguments."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import termios

import pytest

from chiton import CONFIG, alive, wait_for
from terminals import Terminal

# CRI's log format: time, stream, Full or Partial, line.
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S+ (stdout|stderr) ([FP]) (.*)")


class Conmon:
    """One conmon, with the pipes over which its caller starts it and hears from it."""

    def __init__(self, runtime, directory, name, *options, cgroup=None):
        self.directory, self.name = directory, name
        self.exits, self.log, self.pid_file = directory / "exits", directory / "ctr.log", directory / "pidfile"
        self.exits.mkdir()
        answers, sync = os.pipe()
        start, self.go = os.pipe()
        command = ["conmon", "-c", name, "-n", "a-" + name, "-r", runtime.binary, "--runtime-arg", f"--root={runtime.root}",
                   "-b", directory, "-p", self.pid_file, "-P", directory / "conmon.pid", "--exit-dir", self.exits,
                   "--log-level", "info", "--syslog", *options]
        process = subprocess.Popen(list(map(str, command)), pass_fds=(sync, start), stdin=subprocess.DEVNULL,
                                   env=os.environ | {"_OCI_SYNCPIPE": str(sync), "_OCI_STARTPIPE": str(start)},
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        os.close(sync)
        os.close(start)
        if cgroup:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
        os.write(self.go, b"\0")  # it is in its cgroup and may go on
        os.close(self.go)
        self.answers = os.fdopen(answers, "rb")
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 0, said

    def answer(self):
        """The pid of the container's process, or a message in its place."""
        return json.loads(self.answers.readline())

    def pid(self):
        answer = self.answer()
        pid = answer.get("data", answer.get("pid"))
        assert pid > 0 and self.pid_file.read_text() == str(pid), answer
        return pid

    def code(self):
        """What is in the file that it writes when the container has ended."""
        wait_for(lambda: (self.exits / self.name).exists())
        return int((self.exits / self.name).read_text())

    def lines(self):
        """(stream, text) of each line in the log."""
        found = [LINE.fullmatch(line) for line in self.log.read_text().splitlines()]
        assert all(found), self.log.read_text()
        return [(line[1], line[3]) for line in found]

    def close(self):
        """Waits for its end."""
        self.answers.close()
        pid = int((self.directory / "conmon.pid").read_text())
        wait_for(lambda: not alive(pid))


class Attached:
    """A client at the socket of a conmon: podman attach."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30)
        # By way of its directory's descriptor the path fits into a socket address.
        directory = os.open(os.path.dirname(path), os.O_PATH)
        self.socket.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        os.close(directory)
        self.seen = b""

    def send(self, text):
        self.socket.send(text.encode())

    def expect(self, text):
        """Reads until the text is there; what came before it."""
        while text.encode() not in self.seen:
            packet = self.socket.recv(1 << 16)
            assert packet, f"end before {text}: {self.seen}"
            self.seen += packet[1:]  # the first byte tells the stream
        before, _text, self.seen = self.seen.partition(text.encode())
        return before.decode()


def podmans(made, cleaned):
    """The arguments of podman besides those of both."""
    return ("--api-version", "1", "-u", "u" * 64, "--full-attach", "-l", f"k8s-file:{made.path}/ctr.log",
            "--exit-command", "/bin/sh", "--exit-command-arg", "-c", "--exit-command-arg", f"echo cleaned >{cleaned}")


def crios(made):
    return ("-u", "u" * 64, "-l", made.path / "ctr.log", "--persist-dir", made.path, "--socket-dir-path", made.path,
            "--log-size-max", "-1")


def test_without_a_terminal(runtime, bundle, scratch):
    for number, (code, script) in enumerate({0: "exit 0", 3: "exit 3", 255: "exit 255", 143: "kill -9 -1; exec sleep 1000"}.items()):
        made = bundle("sh", "-c", f"trap 'echo caught' USR1; echo out; echo err >&2; cat; {script}").save()
        cleaned = made.path / "cleaned"
        conmon = Conmon(runtime, made.path, f"plain-{number}", "-i", *(podmans(made, cleaned) if number % 2 else crios(made)))
        pid = conmon.pid()
        assert runtime.status(conmon.name) == "created"
        runtime.ok("start", conmon.name)
        client = Attached(made.path / "attach" if number % 2 else made.path / ("u" * 64) / "attach")
        client.send("hello\n")
        client.expect("hello\n")
        if code == 143:
            runtime.ok("kill", conmon.name, "KILL")
            code = 137
        else:
            client.socket.shutdown(socket.SHUT_WR)  # the end of its input
        assert conmon.code() == code
        assert sorted(conmon.lines()) == [("stderr", "err"), ("stdout", "hello"), ("stdout", "out")]
        conmon.close()
        assert not alive(pid)
        if number % 2:
            wait_for(cleaned.exists)
        assert runtime.status(conmon.name) == "stopped"
        runtime.ok("delete", conmon.name)


def test_with_a_terminal(runtime, bundle):
    made = bundle("sh")
    made.config["process"]["terminal"] = True
    made.config["process"]["env"] += ["PS1=guest:", "TERM=xterm"]
    made.save()
    conmon = Conmon(runtime, made.path, "terminal", "-t", *podmans(made, made.path / "cleaned"))
    conmon.pid()
    client = Attached(made.path / "attach")
    runtime.ok("start", conmon.name)
    client.expect("guest:")
    (made.path / "ctl").write_text("1 44 99\n")  # a resize

    def size():
        client.send("echo size: $(stty size)\n")
        client.expect("\r\nsize: ")
        return client.expect("\r\n")

    wait_for(lambda: size() == "44 99")
    client.send("test -t 0 && test -t 1 && echo is''att''y\n")
    client.expect("isatty\r\n")
    client.send("(echo u''p; exec sleep 1000)\n")
    client.expect("up\r\n")
    client.send("\x03")
    client.expect("guest:")
    client.send("exit 11\n")
    assert conmon.code() == 11
    assert any("isatty" in line for line in (made.path / "ctr.log").read_text().splitlines())
    conmon.close()
    runtime.ok("delete", conmon.name)


def test_exec(container, runtime, bundle):
    c = container("sleep", "1000")

    def execute(number, terminal, script, *options):
        made = bundle("unused")
        process = dict(CONFIG["process"], terminal=terminal, args=["sh", "-c", script])
        (made.path / "process.json").write_text(json.dumps(process))
        conmon = Conmon(runtime, made.path, c.name, "-e", "--exec-process-spec", made.path / "process.json",
                        *podmans(made, made.path / "cleaned"), *options)
        return made, conmon, conmon.pid()

    made, conmon, _pid = execute(1, False, "echo out; echo err >&2; exit 42")
    assert conmon.code() == 42
    assert sorted(conmon.lines()) == [("stderr", "err"), ("stdout", "out")]
    conmon.close()
    made, conmon, _pid = execute(2, True, "test -t 0 && tty && stty size; exit 43", "-t")
    assert conmon.code() == 43
    assert "/dev/pts/" in conmon.log.read_text()
    conmon.close()
    made, conmon, pid = execute(3, False, "exec sleep 1000")
    os.kill(pid, signal.SIGKILL)  # podman stops an exec session so
    assert conmon.code() == 137
    conmon.close()
    assert c.status == "running"


def test_failures_are_told(runtime, bundle, container):
    """The runtime's words arrive over conmon's pipe."""
    made = bundle("no-such").save()
    conmon = Conmon(runtime, made.path, "missing", *podmans(made, made.path / "cleaned"))
    answer = conmon.answer()
    assert answer.get("data", answer.get("pid")) < 0
    assert 'exec: "no-such": executable file not found in $PATH' in answer["message"].replace('\\"', '"')
    conmon.close()
    assert runtime.status("missing") is None
    c = container("sleep", "1000")
    made = bundle("unused")
    (made.path / "process.json").write_text(json.dumps(dict(CONFIG["process"], args=["no-such"])))
    conmon = Conmon(runtime, made.path, c.name, "-e", "--exec-process-spec", made.path / "process.json",
                    *podmans(made, made.path / "cleaned"))
    answer = conmon.answer()
    assert answer.get("data", answer.get("pid")) < 0
    assert "executable file not found in $PATH" in answer["message"]
    conmon.close()


@pytest.fixture
def pod(runtime):
    """The cgroup of a pod, in which there is one for the conmons too."""
    top = pathlib.Path("/sys/fs/cgroup/chiton-pods")
    cgroup = top / "pod"
    (cgroup / "crio-conmon").mkdir(parents=True)
    yield cgroup
    for each in (cgroup / "crio-conmon", cgroup, top):
        each.rmdir()


def in_pod(made, name):
    """A configuration as CRI-O writes it."""
    made.config["linux"]["cgroupsPath"] = f"/chiton-pods/pod/crio-{name}"
    made.config["annotations"] = {"io.container.manager": "cri-o", "io.kubernetes.cri-o.ContainerType": "container",
                                  "io.kubernetes.cri-o.ContainerID": name, "io.kubernetes.cri-o.TTY": "false"}
    return made


class Crio:
    """What CRI-O does to a container by conmon's `-e`, and by the runtime alone."""

    def __init__(self, runtime, bundle, name, conmons):
        self.runtime, self.bundle, self.name, self.conmons = runtime, bundle, name, conmons

    def process(self, terminal, script):
        """The directory of an exec, and the file with its process."""
        made = self.bundle("unused")
        process = dict(CONFIG["process"], terminal=terminal, args=["sh", "-c", script])
        process["env"] = [*process["env"], "PS1=guest:", "TERM=xterm"]
        (made.path / "process.json").write_text(json.dumps(process))
        return made, made.path / "process.json"

    def conmon(self, script, *options):
        """An exec of its end's code, and what it has printed: (answer, lines)."""
        made, process = self.process("-t" in options, script)
        conmon = Conmon(self.runtime, made.path, self.name, "-e", "--exec-process-spec", process, *crios(made), *options, cgroup=self.conmons)
        answer = conmon.answer()
        conmon.close()
        return answer, conmon.lines()

    def directly(self, script):
        _made, process = self.process(False, script)
        return self.runtime("exec", "--process", process, self.name)

    @contextlib.contextmanager
    def on_a_terminal(self, script):
        """The terminal of an exec, and the runtime's process at its other end."""
        _made, process = self.process(True, script)
        master, slave = pty.openpty()
        terminal = Terminal(master)
        process = self.runtime.popen("exec", "--process", process, self.name, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                     preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        try:
            yield terminal, process
        finally:
            process.kill()
            process.wait()
            terminal.close()


@pytest.mark.timeout(300)
def test_a_life_under_crio(runtime, bundle, pod):
    name = "life"
    made = in_pod(bundle("sh", "-c", "echo out; echo err >&2; trap 'echo caught; exit 7' TERM; exec 3<&0; cat <&3 & while :; do sleep 0.1; done"), name)
    made.config["linux"]["resources"]["memory"] = {"limit": 300 << 20}
    conmon = Conmon(runtime, made.save().path, name, "-i", "--leave-stdin-open", *crios(made), cgroup=pod / "crio-conmon")
    pid = conmon.pid()
    crio = Crio(runtime, bundle, name, pod / "crio-conmon")
    assert pathlib.Path(f"/proc/{pid}/cgroup").read_text() == f"0::/chiton-pods/pod/crio-{name}\n"
    state = runtime.state(name)
    assert (state["id"], state["pid"], state["status"], state["bundle"]) == (name, pid, "created", str(made.path))
    assert state["annotations"]["io.container.manager"] == "cri-o"
    runtime.ok("start", name)
    assert runtime.status(name) == "running"
    attach = made.path / ("u" * 64) / "attach"
    client = Attached(attach)
    client.send("first\n")
    client.expect("first\n")
    client.socket.close()  # `kubectl attach` ends, and the next one finds its input still open
    client = Attached(attach)
    client.send("second\n")
    client.expect("second\n")
    assert sorted(conmon.lines()) == [("stderr", "err"), ("stdout", "first"), ("stdout", "out"), ("stdout", "second")]

    # The kubelet has turned the log over.
    conmon.log.rename(made.path / "ctr.log.1")
    (made.path / "ctl").write_text("2 0 0\n")
    wait_for(conmon.log.exists)
    client.send("third\n")
    client.expect("third\n")
    assert conmon.lines() == [("stdout", "third")]

    done = crio.directly("echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    answer, lines = crio.conmon("echo out; echo err >&2; exit 42")
    assert answer["exit_code"] == 42 and sorted(lines) == [("stderr", "err"), ("stdout", "out")]
    answer, lines = crio.conmon("echo begun; exec tail -f /dev/null", "-T", "5")
    assert answer == {"exit_code": -1, "message": "command timed out"} and lines == [("stdout", "begun")]
    wait_for(lambda: runtime("exec", name, "ps", "-C", "tail").returncode == 1)  # gone in the container

    resources = {"memory": {"limit": 200 << 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}, "pids": {"limit": 55}}
    runtime.ok("update", "--resources", "-", name, input=json.dumps(resources), stdin=None)
    files = [f"/sys/fs/cgroup/{file}" for file in ("memory.max", "cpu.max", "pids.max")]
    assert runtime.ok("exec", name, "cat", *files) == f"{200 << 20}\n50000 100000\n55\n"
    runtime.ok("pause", name)
    assert runtime.status(name) == "paused"
    runtime.ok("resume", name)
    assert runtime.status(name) == "running"

    runtime.ok("kill", name, "TERM")
    assert conmon.code() == 7
    assert conmon.lines() == [("stdout", "third"), ("stdout", "caught")]
    conmon.close()
    assert not alive(pid) and runtime.state(name)["pid"] == 0 and runtime.status(name) == "stopped"
    done = runtime("kill", name, "KILL")
    assert done.returncode != 0 and "container not running" in done.stderr
    runtime.ok("delete", "--force", name)
    assert runtime.status(name) is None
    runtime.ok("delete", "--force", name)
    assert not (pod / f"crio-{name}").exists()


@pytest.mark.timeout(300)
def test_a_terminal_under_crio(runtime, bundle, pod):
    name = "terminal"
    made = in_pod(bundle("sh"), name)
    made.config["process"]["terminal"] = True
    made.config["process"]["env"] += ["PS1=guest:", "TERM=xterm"]
    conmon = Conmon(runtime, made.save().path, name, "-i", "-t", "--leave-stdin-open", *crios(made), cgroup=pod / "crio-conmon")
    pid = conmon.pid()
    crio = Crio(runtime, bundle, name, pod / "crio-conmon")
    client = Attached(made.path / ("u" * 64) / "attach")
    runtime.ok("start", name)
    client.expect("guest:")
    (made.path / "ctl").write_text("1 44 99\n")

    def size():
        client.send("echo size: $(stty size)\n")
        client.expect("\r\nsize: ")
        return client.expect("\r\n")

    wait_for(lambda: size() == "44 99")
    assert ("stdout", "size: 44 99") in conmon.lines()
    answer, lines = crio.conmon("test -t 0 && tty; exit 43", "-t")
    assert answer["exit_code"] == 43 and any("/dev/pts/" in text for _stream, text in lines)
    with crio.on_a_terminal("exec sh") as (terminal, process):
        terminal.expect("guest:")
        terminal.resize(33, 77)
        wait_for(lambda: terminal.command("stty size") == "33 77\n")
        terminal.send("exit 6\n")
        assert process.wait(30) == 6
    # What is under way in it when the container is killed ends with it.
    with crio.on_a_terminal("echo be''gun; exec sleep 1000") as (terminal, process):
        terminal.expect("begun\r\n")
        runtime.ok("kill", name, "KILL")
        assert conmon.code() == 137
        assert process.wait(30) != 0
    conmon.close()
    assert not alive(pid)
    runtime.ok("delete", "--force", name)
    assert not (pod / f"crio-{name}").exists()
