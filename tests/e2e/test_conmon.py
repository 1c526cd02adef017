"""Under the real conmon, with podman's and CRI-O's arguments."""

import json
import os
import re
import signal
import socket
import subprocess

from chiton import CONFIG, alive, wait_for

# CRI's log format: time, stream, Full or Partial, line.
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S+ (stdout|stderr) ([FP]) (.*)")


class Conmon:
    """One conmon, with the pipes over which its caller starts it and hears from it."""

    def __init__(self, runtime, directory, name, *options):
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
