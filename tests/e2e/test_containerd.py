"""containerd's shim for runc, with the name of the binary as all that it is told."""

import json
import os
import re
import signal
import subprocess

import pytest

from chiton import alive, wait_for
from containerd import BINARIES, CTR, Daemons, image, small_tree
from terminals import Terminal


class Client(Daemons):
    """ctr(8) with one runtime's binary."""

    def __init__(self, binary, base):
        super().__init__(binary, base)
        self.containerd()

    def arguments(self, *args):
        return ("run", "--runc-binary", self.binary, "--runc-root", self.base / "runc", *args)

    def start(self, *args, **kwargs):
        return self.ctr(*self.arguments(*args), **kwargs)

    def delete(self, name, *options):
        """Deletes a task and its container; the exit code that is told."""
        told = re.search(r"non-zero exit code (\d+)", self.ctr("tasks", "delete", *options, name).stderr)
        self.ctr_ok("containers", "delete", name)
        return int(told[1]) if told else 0

    def status(self, name):
        rows = [line.split() for line in self.ctr_ok("tasks", "ls").splitlines()]
        return next((row[2] for row in rows if row[0] == name), None)


@pytest.fixture(scope="module", params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def client(request, scratch):
    its = Client(BINARIES[request.param], scratch / f"containerd-{request.param}")
    yield its
    its.close()


# Without an image there is no environment.
PATH = ("--env", "PATH=/usr/sbin:/usr/bin")


@pytest.mark.timeout(300)
def test_run(client, debian):
    done = client.start("--rm", *PATH, "--memory-limit", str(200 << 20), "--env", "A=b c", "--cwd", "/usr", "--cap-add", "CAP_NET_ADMIN",
                        "--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro", "--rootfs", debian, "run", "sh", "-c", "head -n1; echo err >&2; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max; echo $A; pwd;"
                        "grep CapEff /proc/self/status; ls /sys/class/net; exit 7", input="in\n", stdin=None)
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == ["in", str(200 << 20), "b c", "/usr", "CapEff:\t00000000a80435fb", "lo"]
    assert done.stderr == "err\n"
    done = client.start("--rm", *PATH, "--rootfs", debian, "missing", "no-such")
    assert done.returncode == 1
    assert 'exec: "no-such": executable file not found in $PATH' in done.stderr
    assert client.ctr_ok("containers", "ls", "--quiet") == ""


@pytest.mark.timeout(300)
def test_a_profile_that_ctr_gives(client, debian):
    """It is the CRI plugin's, compiled and loaded into the host's kernel by ctr."""
    done = client.start("--rm", *PATH, "--apparmor-default-profile", "cri-containerd.apparmor.d", "--rootfs", debian, "confined",
                        "cat", "/proc/self/attr/current")
    assert (done.returncode, done.stdout) == (0, "cri-containerd.apparmor.d (enforce)\n"), done.stderr


@pytest.mark.timeout(300)
def test_an_image_and_a_terminal(client, debian, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    archive = image(tmp_path / "image.tar", "chiton.test/debian:1", small_tree(debian, tree),
                    {"Env": ["PATH=/usr/sbin:/usr/bin", "PS1=guest:", "TERM=dumb"], "Cmd": ["sh"], "User": "5:60", "WorkingDir": "/var"})
    client.ctr_ok("images", "import", archive)
    master, slave = os.openpty()
    terminal = Terminal(master)
    terminal.resize(33, 77)
    usr = f"type=bind,src={debian}/usr,dst=/usr,options=rbind:ro"
    process = subprocess.Popen(
        client.command(CTR, "--address", client.base / "containerd.sock",
                       *client.arguments("--rm", "--tty", "--mount", usr, "chiton.test/debian:1", "terminal")),
        stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    terminal.expect("guest:", 60)

    def said(command):
        terminal.send(command + "\n")
        return terminal.expect("guest:").split()[len(command.split()):-1]  # ctr leaves one more \r in each line

    assert said("stty size; id -u; id -g; pwd") == ["33", "77", "5", "60", "/var"]
    terminal.resize(44, 88)
    process.send_signal(signal.SIGWINCH)  # it is not the terminal's foreground
    wait_for(lambda: said("stty size") == ["44", "88"])
    terminal.send("exit 3\n")
    terminal.rest()
    assert process.wait(30) == 3
    terminal.close()
    client.ctr_ok("images", "rm", "--sync", "chiton.test/debian:1")


@pytest.mark.timeout(400)
def test_a_task_and_its_verbs(client, debian):
    log = open(client.base / "events", "w+")
    events = subprocess.Popen(client.command(CTR, "--address", client.base / "containerd.sock", "events"),
                              stdout=log, stdin=subprocess.DEVNULL)
    done = client.start("--detach", *PATH, "--pid-file", client.base / "pid", "--rootfs", debian, "task",
                        "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
    assert done.returncode == 0, done.stderr
    pid = int((client.base / "pid").read_text())
    assert client.status("task") == "RUNNING"
    done = client.ctr("tasks", "exec", "--exec-id", "one", "task", "sh", "-c", "head -n1; echo err >&2; exit 9", input="in\n", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (9, "in\n", "err\n")
    done = client.ctr("tasks", "exec", "--exec-id", "two", "task", "no-such")
    assert done.returncode == 1 and "executable file not found in $PATH" in done.stderr
    # What the host spends: the shim reads the cgroup of the pid.
    metrics = json.loads(client.ctr_ok("tasks", "metrics", "--format", "json", "task"))
    assert int(metrics["memory"]["usage"]) > 0 and int(metrics["cpu"]["usage_usec"]) > 0
    pids = [line.split()[0] for line in client.ctr_ok("tasks", "ps", "task").splitlines()[1:]]
    assert str(pid) in pids
    # The containers of a containerd that is restarted go on.
    client.stop(client.running[0])
    client.containerd()
    client.ctr_ok("tasks", "pause", "task")
    assert client.status("task") == "PAUSED"
    client.ctr_ok("tasks", "resume", "task")
    assert client.status("task") == "RUNNING"
    client.ctr_ok("tasks", "kill", "--signal", "SIGTERM", "task")
    wait_for(lambda: client.status("task") == "STOPPED")
    assert not alive(pid)
    assert client.delete("task") == 5
    events.kill()
    events.wait()
    log.seek(0)
    topics = re.findall(r" (/tasks/\S+) ", log.read())
    log.close()
    assert topics[:4] == ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"]


@pytest.mark.timeout(300)
def test_out_of_memory_kill_and_force(client, debian):
    hog = "x = []\nwhile True: x.append(b'x' * (1 << 20))"
    client.start("--detach", *PATH, "--memory-limit", str(100 << 20), "--rootfs", debian, "hog", "python3", "-c", hog)
    wait_for(lambda: client.status("hog") == "STOPPED", 60)
    assert client.delete("hog") == 137
    done = client.start("--detach", *PATH, "--rootfs", debian, "stays", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    assert client.delete("stays", "--force") == 137
