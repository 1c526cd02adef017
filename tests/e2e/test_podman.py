"""Podman with nothing but the runtime named, on root filesystems that are directories."""

import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import time
import urllib.request

import pytest

import inner
from chiton import GRAB, Program, alive, wait_for
from network import command
from terminals import Tmux

BINARIES = {"chiton": os.environ["CHITON"], "runc": "/usr/sbin/runc"}


class Podman(Program):
    def __init__(self, binary, base, rootfs):
        self.name, self.rootfs = os.path.basename(binary), f"{rootfs}:O"
        self.flags = ["--root", base / "storage", "--runroot", base / "run", "--tmpdir", base / "tmp", "--cgroup-manager", "cgroupfs",
                      "--network-config-dir", base / "networks", "--events-backend", "file", "--runtime", binary]

    def command(self, *args):
        return ["podman", *map(str, [*self.flags, *args])]

    def __call__(self, *args, timeout=120, **kwargs):
        """Runs a command to its end; what `subprocess.run` gives."""
        if "input" not in kwargs:
            kwargs["stdin"] = subprocess.DEVNULL
        return subprocess.run(self.command(*args), capture_output=True, text=True, timeout=timeout, check=False, **kwargs)

    def run(self, *args, **kwargs):
        """`run` with options, `--` and the program's arguments."""
        at = args.index("--")
        return self("run", *args[:at], "--rootfs", self.rootfs, *args[at + 1:], **kwargs)

    def detached(self, name, *args):
        done = self.run("-d", "--name", name, *args)
        assert done.returncode == 0, done.stderr

    def state(self, name, field="Status"):
        return self("inspect", "--format", "{{.State.%s}}" % field, name).stdout.strip()


@pytest.fixture(scope="module", params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def podman(request, scratch, debian):
    base = scratch / f"podman-{request.param}"
    base.mkdir()
    its = Podman(BINARIES[request.param], base, debian)
    yield its
    its("rm", "--all", "--force", "--time", "0")
    its("network", "prune", "--force")
    left = its.ok("ps", "--all", "--quiet")
    subprocess.run(["umount", "--recursive", base / "storage" / "overlay"], check=False, capture_output=True)
    assert left == ""
    state = pathlib.Path("/run/chiton")
    assert not state.exists() or not list(state.iterdir())


@pytest.mark.timeout(300)
def test_run_and_its_options(podman, scratch):
    volume = scratch / "podman-volume"
    volume.mkdir(exist_ok=True)
    (volume / "in").write_text("from the host\n")
    done = podman.run("--rm", "--network", "none", "--user", "1000:1001", "--memory", "200m", "--pids-limit", "77", "--read-only",
                      "--tmpfs", "/mem", "--ulimit", "nofile=111:222", "--env", "A=b c", "--workdir", "/usr", "--hostname", "named",
                      "--volume", f"{volume}:/data", "--cap-drop", "all", "--",
                      "sh", "-c", "id -u; id -g; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /data/in; echo $A; pwd; hostname;"
                      "ulimit -Sn; ulimit -Hn; grep CapBnd /proc/self/status; touch /mem/x; touch /x; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stdout.split("\n") == ["1000", "1001", str(200 << 20), "77", "from the host", "b c", "/usr", "named", "111", "222",
                                       "CapBnd:\t0000000000000000", ""]
    assert "Read-only file system" in done.stderr
    for code, command in [(127, ["missing"]), (126, ["/etc"])]:
        done = podman.run("--rm", "--network", "none", "--", *command)
        assert done.returncode == code, (command, done.stderr)


@pytest.mark.timeout(300)
def test_the_profile_that_podman_gives(podman):
    """Podman loads it into the host's kernel itself."""
    podman.detached("confined", "--network", "none", "--", "sleep", "1000")
    profile = podman.ok("inspect", "--format", "{{.AppArmorProfile}}", "confined").strip()
    assert profile.startswith("containers-default-")
    assert podman.ok("exec", "confined", "cat", "/proc/1/attr/current", "/proc/self/attr/current") == f"{profile} (enforce)\n" * 2
    podman.ok("rm", "--force", "--time", "0", "confined")
    look = ("--", "cat", "/proc/self/attr/current")
    assert podman.run("--rm", "--network", "none", "--security-opt", "apparmor=unconfined", *look).stdout == "unconfined\n"
    done = podman.run("--rm", "--network", "none", "--security-opt", "apparmor=no-such-profile", *look)
    assert done.returncode != 0 and "no-such-profile" in done.stderr


@pytest.mark.timeout(300)
def test_a_detached_container_and_its_published_port(podman, scratch):
    site = scratch / "podman-site"
    site.mkdir(exist_ok=True)
    content = os.urandom(1 << 20) * 100
    (site / "file").write_bytes(content)
    podman.detached("web", "--publish", "127.0.0.1:8080:80", "--volume", f"{site}:/site:ro", "--", "python3", "-um", "http.server",
                    "--directory", "/site", "80")

    def fetched():
        try:
            return urllib.request.urlopen("http://127.0.0.1:8080/file", timeout=30).read()
        except OSError:
            time.sleep(0.2)
            return None
    got = []
    wait_for(lambda: got.append(fetched()) or got[-1], 60)
    assert hashlib.sha256(got[-1]).digest() == hashlib.sha256(content).digest()
    wait_for(lambda: "GET /file" in podman("logs", "web").stdout + podman("logs", "web").stderr)
    address = podman.ok("inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web").strip()
    assert address in podman.ok("exec", "web", "ip", "addr", "show", "eth0")
    # With descriptors of its own Podman looks at /proc of the pid's mount namespace, which is the machine's; so ps(1)'s, in the container.
    assert "http.server" in podman.ok("top", "web", "aux")
    podman.ok("pause", "web")
    assert podman.state("web") == "paused"
    podman.ok("unpause", "web")
    assert podman.ok("exec", "--user", "5", "web", "id", "-u") == "5\n"
    podman.ok("kill", "web")
    wait_for(lambda: podman.state("web") == "exited")
    assert podman.state("web", "ExitCode") == "137"
    podman.ok("rm", "--force", "web")


@pytest.mark.timeout(300)
def test_stop_restart_and_remove(podman):
    podman.detached("life", "--network", "none", "--", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    podman.ok("stop", "--time", "60", "life")
    assert (podman.state("life"), podman.state("life", "ExitCode")) == ("exited", "3")
    podman.ok("start", "life")
    assert podman.state("life") == "running"
    podman.ok("restart", "--time", "60", "life")
    assert podman.state("life") == "running"
    podman.ok("rm", "--force", "--time", "0", "life")
    assert podman("inspect", "life").returncode != 0


@pytest.mark.timeout(300)
def test_containers_of_a_named_network_find_each_other(podman):
    podman.ok("network", "create", "--subnet", "10.99.7.0/24", "named")
    podman.detached("one", "--network", "named", "--", "sleep", "1000")
    done = podman.run("--rm", "--network", "named", "--", "sh", "-c", "getent hosts one; ping -c1 -w20 one")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("10.99.7.")
    # Another network for one that runs.
    podman.ok("network", "create", "--subnet", "10.99.8.0/24", "later")
    podman.ok("network", "connect", "--ip", "10.99.8.77", "later", "one")
    wait_for(lambda: "10.99.8.77/24" in podman.ok("exec", "one", "ip", "-4", "-o", "addr"))
    assert podman.run("--rm", "--network", "later", "--", "ping", "-c1", "-w20", "10.99.8.77").returncode == 0
    podman.ok("network", "disconnect", "later", "one")
    wait_for(lambda: "10.99.8." not in podman.ok("exec", "one", "ip", "-4", "-o", "addr"))
    podman.ok("rm", "--force", "--time", "0", "one")
    podman.ok("network", "rm", "named", "later")


@pytest.mark.timeout(300)
def test_more_options(podman, scratch):
    volume = scratch / "podman-owned"
    volume.mkdir(exist_ok=True)
    profile = scratch / "podman-seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW",
                                   "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}))
    done = podman.run("--rm", "-i", "--network", "none", "--cpus", "1.5", "--cap-drop", "all", "--cap-add", "net_admin,chown",
                      "--security-opt", f"seccomp={profile}", "--volume", f"{volume}:/data:Z,U", "--user", "0:7", "--init", "--init-path", "/usr/bin/tini", "--",
                      "sh", "-c", "cat; cat /sys/fs/cgroup/cpu.max /proc/1/comm; echo $PPID; grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /made;"
                      "echo written >/data/out; kill -SEGV $$", input="typed\n")
    assert done.returncode == 139, done.stderr  # the program's death by a signal, as the init tells it
    assert done.stdout.split("\n") == ["typed", "150000 100000", "podman-init", "1", "CapEff:\t0000000000001001", "Seccomp:\t2", ""]
    assert "Disk quota exceeded" in done.stderr
    assert (volume / "out").read_text() == "written\n"
    assert [(os.stat(path).st_uid, os.stat(path).st_gid) for path in (volume, volume / "out")] == [(0, 7)] * 2


@pytest.mark.timeout(300)
def test_exit_codes(podman):
    crash = ("python3", "-c", "import ctypes; ctypes.string_at(0)")
    for code, command in {0: ["true"], 1: ["false"], 125: ["sh", "-c", "exit 125"], 255: ["sh", "-c", "exit 255"], 139: crash,
                          143: ["sh", "-c", "sh -c 'kill $$'"], 126: ["/etc"], 127: ["missing"]}.items():
        done = podman.run("--rm", "--network", "none", "--", *command)
        assert done.returncode == code, (command, done.stderr)
    done = podman.run("--rm", "--network", "none", "--memory", "nonsense", "--", "true")
    assert done.returncode == 125 and "invalid" in done.stderr
    podman.detached("coded", "--network", "none", "--", "sleep", "1000")
    for code, command in {0: ["true"], 9: ["sh", "-c", "exit 9"], 137: ["sh", "-c", "kill -KILL $$"], 126: ["/etc"], 127: ["missing"]}.items():
        done = podman("exec", "coded", *command)
        assert done.returncode == code, (command, done.stderr)
    assert podman("exec", "nobody", "true").returncode == 125
    pid = int(podman.state("coded", "Pid"))
    assert alive(pid)
    waiting = subprocess.Popen(podman.command("wait", "coded"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    podman.ok("kill", "--signal", "KILL", "coded")
    assert waiting.communicate(timeout=60)[0] == "137\n"
    assert not alive(pid) and podman.state("coded", "OOMKilled") == "false"
    podman.ok("rm", "coded")


@pytest.mark.timeout(300)
def test_out_of_memory(podman):
    podman.detached("hungry", "--network", "none", "--memory", "100m", "--memory-swap", "100m", "--", "python3", "-c", GRAB)
    assert podman.ok("wait", "hungry") == "137\n"
    assert podman.state("hungry", "ExitCode") == "137"
    # runc leaves it to conmon to see, and Debian's says nothing in the lab.
    assert podman.name == "runc" or podman.state("hungry", "OOMKilled") == "true"
    podman.ok("rm", "hungry")


@pytest.mark.timeout(300)
def test_logs_statistics_and_files(podman, scratch):
    podman.detached("seen", "--network", "none", "--memory", "300m", "--", "sh", "-c",
                    "echo out; echo err >&2; trap 'echo end; exit 3' TERM; while :; do sleep 0.1; done")

    def logs(*options):
        done = podman("logs", *options, "seen")
        return done.stdout, done.stderr
    wait_for(lambda: logs() == ("out\n", "err\n"))
    [usage] = json.loads(podman.ok("stats", "--no-stream", "--format", "json", "seen"))
    assert usage["name"] == "seen" and "MB" in usage["mem_usage"] and float(usage["mem_percent"].rstrip("%")) > 0, usage
    podman.ok("update", "--memory", "200m", "--cpus", "0.5", "seen")
    assert podman.ok("exec", "seen", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max") == f"{200 << 20}\n50000 100000\n"
    followed = subprocess.Popen(podman.command("logs", "--follow", "seen"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)
    podman.ok("kill", "--signal", "TERM", "seen")
    assert followed.communicate(timeout=60) == ("out\nend\n", "err\n")
    assert podman.ok("wait", "seen") == "3\n"
    podman.ok("rm", "seen")


@pytest.mark.timeout(300)
def test_privileged(podman):
    """The list of the host's devices is not meant literally: the container has all that the guest has."""
    done = podman.run("--rm", "--privileged", "--network", "none", "--", "sh", "-ec",
                      "test -c /dev/net/tun; test -c /dev/loop-control; test -c /dev/null; mount -t tmpfs x /mnt; dmesg | grep -c ^ >&2;"
                      "echo 2000 > /proc/sys/kernel/pty/max; cat /proc/sys/kernel/pty/max; test -e /dev/mem && echo mem; echo done")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["2000", "mem", "done"] if podman.name == "runc" else ["2000", "done"])


@pytest.mark.timeout(400)
def test_podman_in_podman(podman):
    """With layers on a volume and its default network, so in another one than that: both would have the same addresses."""
    podman.ok("network", "create", "--subnet", "10.97.8.0/24", "around")
    done = podman.run("--rm", "--network", "around", *inner.OPTIONS, "--volume", "/var/lib/containers", "--", "sh", "-c", inner.PODMAN,
                      timeout=300)
    assert (done.returncode, done.stdout) == inner.TOLD, done.stdout + done.stderr
    podman.ok("network", "rm", "around")


def test_the_hosts_network_and_processes_are_refused(podman):
    if podman.name != "runc":
        for kind, options in [("network", ["--network", "host"]), ("pid", ["--network", "none", "--pid", "host"])]:
            done = podman.run("--rm", *options, "--", "true")
            assert done.returncode != 0 and f"linux.namespaces: none has the type {kind}, so" in done.stderr, done.stderr


@pytest.mark.timeout(300)
def test_copies(podman, scratch):
    """Podman enters the mount namespace of the container's pid and looks for the files there."""
    volume, out, back = (scratch / f"podman-{name}" for name in ("copies", "out", "back"))
    volume.mkdir(exist_ok=True)
    out.write_text("from the host\n")
    podman.detached("copied", "--network", "none", "--volume", f"{volume}:/data", "--volume", f"{volume}:/sealed:ro", "--tmpfs", "/mem",
                    "--", "sh", "-c", "echo inside > /tmp/made; ln -s /data/in /tmp/link; echo guest > /mem/guest; while :; do sleep 1; done")
    wait_for(lambda: podman("exec", "copied", "test", "-e", "/mem/guest").returncode == 0)
    podman.ok("cp", "copied:/tmp/made", back)
    assert back.read_text() == "inside\n"
    podman.ok("cp", out, "copied:/tmp/in")
    podman.ok("cp", out, "copied:/data/in")
    assert podman.ok("exec", "copied", "cat", "/tmp/in", "/data/in", "/tmp/link") == "from the host\n" * 3
    assert podman.ok("exec", "copied", "stat", "-c", "%u:%g", "/tmp/in") == "0:0\n"
    assert (volume / "in").read_text() == "from the host\n"
    podman.ok("cp", "copied:/etc/.", scratch / "podman-etc")
    assert (scratch / "podman-etc" / "debian_version").exists() and (scratch / "podman-etc" / "hosts").read_text()
    assert podman("cp", out, "copied:/sealed/other").returncode != 0
    assert not (volume / "other").exists()
    assert podman("cp", "copied:/missing", back).returncode != 0
    # What the guest alone has is not there, and nothing is put where nobody would find it.
    own = podman("cp", "copied:/mem/guest", back), podman("cp", out, "copied:/mem/in")
    if podman.name == "runc":
        assert [done.returncode for done in own] == [0, 0]
    else:
        assert all(done.returncode for done in own), own
        assert "could not be found" in own[0].stderr and podman.ok("exec", "copied", "ls", "/mem") == "guest\n"
    podman.ok("rm", "--force", "--time", "0", "copied")


@pytest.mark.timeout(300)
def test_top(podman):
    podman.detached("top", "--network", "none", "--", "sleep", "1000")
    [title, *rows] = podman.ok("top", "top").splitlines()
    assert title.split()[:4] == ["USER", "PID", "PPID", "%CPU"] and len(rows) == 1, rows
    assert "sleep 1000" in podman.ok("top", "top", "aux")
    podman.ok("rm", "--force", "--time", "0", "top")


@pytest.mark.timeout(300)
def test_health_checks(podman):
    podman.detached("checked", "--network", "none", "--health-cmd", "test -e /ok || { echo not yet; exit 4; }", "--health-interval", "disable",
                    "--health-retries", "1", "--", "sleep", "1000")
    assert podman("healthcheck", "run", "checked").returncode == 1
    health = json.loads(podman.ok("inspect", "--format", "{{json .State}}", "checked"))
    health = health.get("Health", health.get("Healthcheck"))
    assert health["Status"] == "unhealthy" and [each["ExitCode"] for each in health["Log"]] == [1], health
    podman.ok("exec", "checked", "touch", "/ok")
    podman.ok("healthcheck", "run", "checked")
    assert '"healthy"' in podman.ok("inspect", "--format", "{{json .State}}", "checked")
    podman.ok("rm", "--force", "--time", "0", "checked")


@pytest.mark.timeout(300)
def test_terminals(podman):
    podman.detached("typed", "-it", "--network", "none", "--env", "PS1=guest:", "--", "sh")
    with contextlib.closing(Tmux()) as tmux:
        for keys, options in {("C-p", "C-q"): [], ("C-a", "x"): ["--detach-keys", "ctrl-a,x"]}.items():
            tmux.run(podman.command("attach", *options, "typed"))
            tmux.type("")
            tmux.expect("guest:")
            tmux.type("echo is''here; stty size")
            tmux.expect("ishere\n25 90\n")

            def left():
                """Podman knows the keys only where it reads one at a time."""
                for key in keys:
                    tmux("send-keys", key)
                    time.sleep(0.5)
                with contextlib.suppress(AssertionError):
                    wait_for((tmux.directory / "after").exists, 20)
                return (tmux.directory / "after").exists()
            wait_for(left, 60)
            assert tmux.done() == 0
            assert podman.state("typed") == "running"
        tmux.run(podman.command("exec", "-it", "--env", "PS1=exec:", "typed", "sh"))
        tmux.expect("exec:")
        tmux("resize-window", "-x", "77", "-y", "33")
        tmux.type("tty; while test \"$(stty size)\" != '33 77'; do sleep 0.1; done; echo fi''ts; (echo u''p; exec sleep 1000)")
        tmux.expect("/dev/pts/")
        tmux.expect("fits")
        tmux.expect("up\n")
        tmux("send-keys", "C-c")
        tmux.type("exit 4")
        assert tmux.done() == 4
        tmux.run(podman.command("attach", "typed"))
        tmux.type("exit 5")
        assert tmux.done() == 0  # Podman's own
    assert [podman.state("typed", field) for field in ("Status", "ExitCode")] == ["exited", "5"]
    podman.ok("rm", "typed")


@pytest.fixture
def image(podman, tmp_path):
    """A small one, that sleeps."""
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy("/bin/busybox", tree)
    change = 'CMD ["/busybox","sleep","1000"]'
    subprocess.run(f"tar -C {tree} -cf - . | {shlex.join(podman.command('import', '--change', change, '-', 'localhost/small:1'))}", shell=True,
                   check=True, timeout=120, capture_output=True)
    yield "localhost/small:1"
    podman.ok("rmi", "--force", "localhost/small:1")


@pytest.mark.timeout(300)
def test_namespaces_of_another_container(podman):
    podman.detached("other", "--ipc", "shareable", "--", "sleep", "1000")
    shown = podman.ok("exec", "other", "ip", "-o", "addr", "show", "eth0")
    assert podman.run("--rm", "--network", "container:other", "--", "ip", "-o", "addr", "show", "eth0").stdout == shown
    done = podman.run("--rm", "--pid", "container:other", "--ipc", "container:other", "--network", "container:other", "--", "ps", "ax")
    assert "sleep 1000" in done.stdout, done.stderr
    # One of its own beside those of another one.
    done = podman.run("--rm", "--pid", "container:other", "--", "sh", "-c",
                      "ps ax; ip -o addr show eth0; ping -c1 -w20 $(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p')")
    assert done.returncode == 0 and "sleep 1000" in done.stdout and "inet" in done.stdout and shown not in done.stdout, done.stderr
    podman.ok("exec", "other", "sh", "-c", "ping -c1 -w20 $(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p')")
    podman.ok("rm", "--force", "--time", "0", "other")
    assert podman.ok("ps", "--all", "--quiet") == ""


@pytest.mark.timeout(400)
def test_a_pod(podman, image, scratch):
    if podman.name == "runc":  # which this Podman stops by denying the cgroup of a pod all devices
        return
    podman.ok("pod", "create", "--name", "pod", "--infra-image", image)
    podman.detached("one", "--pod", "pod", "--", "sleep", "1000")
    podman.detached("two", "--pod", "pod", "--", "python3", "-c",
                    "import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()")
    get = "import time, urllib.request as u\nfor _ in range(100):\n try: print(u.urlopen('http://localhost:8080').status); break\n except OSError: time.sleep(.1)"
    assert podman.ok("exec", "one", "python3", "-c", get) == "200\n"
    assert podman.ok("exec", "one", "hostname") == podman.ok("exec", "two", "hostname") == "pod\n"
    # What is copied is the container's, and never this host's.
    (scratch / "copied").write_text("by podman")
    podman.ok("cp", scratch / "copied", "two:/root/copied")
    assert podman.ok("exec", "two", "cat", "/root/copied") == "by podman"
    assert not pathlib.Path("/root/copied").exists()
    assert podman.ok("top", "one", "args").count("\n") >= 2
    # The network is watched from elsewhere, for the pod's cgroup is denied all devices.
    infra = podman.ok("pod", "inspect", "--format", "{{.InfraContainerID}}", "pod").strip()
    inside = f"/proc/{json.loads(podman.ok('inspect', infra))[0]['State']['Pid']}/ns/net"
    command("nsenter", f"--net={inside}", "ip", "addr", "add", "10.77.0.2/24", "dev", "eth0")
    wait_for(lambda: "10.77.0.2" in podman.ok("exec", "one", "ip", "addr"))
    assert podman.run("--rm", "--pod", "pod", "--", "sh", "-c", "exit 6").returncode == 6
    podman.ok("pod", "stop", "--time", "0", "pod")
    podman.ok("pod", "start", "pod")
    assert podman.ok("exec", "one", "python3", "-c", get) == "200\n"
    podman.ok("pod", "rm", "--force", "--time", "0", "pod")
    assert podman.ok("ps", "--all", "--quiet") == ""


KUBE = """
apiVersion: v1
kind: Pod
metadata: {name: kube}
spec:
  containers:
  - {name: server, image: "localhost/small:1", command: [/busybox, httpd, -f, -p, "8080", -h, /]}
  - {name: client, image: "localhost/small:1", command: [/busybox, sleep, "1000"]}
"""


@pytest.mark.timeout(400)
def test_play_kube(podman, image, scratch):
    if podman.name == "runc":  # as above
        return
    (scratch / "pod.yaml").write_text(KUBE)
    podman.ok("play", "kube", scratch / "pod.yaml")
    get = "until /busybox wget -q -O /dev/null http://127.0.0.1:8080/busybox; do /busybox sleep 0.1; done; echo served"
    assert podman.ok("exec", "kube-client", "/busybox", "sh", "-c", get) == "served\n"
    assert "server" in podman.ok("generate", "kube", "kube")
    podman.ok("play", "kube", "--down", scratch / "pod.yaml")
    assert podman.ok("ps", "--all", "--quiet") == ""
