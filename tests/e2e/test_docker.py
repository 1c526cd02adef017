"""Docker with the runtime named, and an application of several services."""

import hashlib
import json
import os
import signal
import subprocess
import textwrap

import pytest

import inner
from chiton import GRAB, Program, wait_for
from containerd import BINARIES, Daemons

# A service that counts in a Redis, which it knows by name only.
COUNTER = textwrap.dedent("""
    import http.server, socket

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                with socket.create_connection(("db", 6379), timeout=20) as db:
                    db.sendall(b"INCR hits\\r\\n")
                    answer = db.recv(100)
                assert answer.startswith(b":"), answer
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer[1:].strip())
            except Exception as error:
                self.send_error(503, str(error))

    http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
""")

# Appends numbers to a list in it, and prints each when it is acknowledged.
WRITER = textwrap.dedent("""
    import itertools, socket

    db = socket.create_connection(("db", 6379), timeout=10)
    for number in itertools.count(1):
        db.sendall(b"RPUSH log %d\\r\\n" % number)
        assert db.recv(100) == b":%d\\r\\n" % number
        print(number, flush=True)
""")

# Asks the name server for the address of a name by TCP, as those do who get a truncated answer.
ASK = textwrap.dedent("""
    import socket, struct, sys

    name = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split(".")) + bytes(1)
    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
    with socket.create_connection(("127.0.0.11", 53), timeout=20) as server:
        server.sendall(struct.pack(">H", len(query)) + query)
        answer = server.makefile("rb").read(struct.unpack(">H", server.recv(2, socket.MSG_WAITALL))[0])
    assert answer[:2] == query[:2] and struct.unpack(">H", answer[6:8]) == (1,), answer
    print(socket.inet_ntoa(answer[-4:]))
""")

NGINX = textwrap.dedent("""
    events {}
    daemon off;
    error_log stderr;
    pid /tmp/nginx.pid;
    http {
        access_log off;
        sendfile on;
        server {
            listen 80;
            root /site;
            location /hits { proxy_pass http://counter:8000; }
        }
    }
""")


class Docker(Daemons, Program):
    def __init__(self, binary, base, debian):
        super().__init__(binary, base)
        self.name, self.usr = os.path.basename(binary), f"{debian}/usr:/usr:ro"
        self.containerd()
        config = self.base / "daemon.json"
        runtimes = {} if self.name == "runc" else {self.name: {"path": str(binary)}}
        config.write_text(json.dumps({"runtimes": runtimes, "deprecated-key-path": str(self.base / "key.json")}))
        self.serve("/usr/sbin/dockerd", "--config-file", config, "--data-root", self.base / "docker", "--exec-root", self.base / "exec",
                   "--pidfile", self.base / "pid", "--host", f"unix://{self.base}/docker.sock", "--storage-driver", "overlay2",
                   "--containerd", self.base / "containerd.sock", "--exec-opt", "native.cgroupdriver=cgroupfs",
                   answers=lambda: self("version").returncode == 0)
        # Debian without its /usr, which is a volume: it is soon imported.
        subprocess.run(f"tar -C {debian} --exclude './usr/*' -cf - . | /usr/bin/docker --host unix://{self.base}/docker.sock import"
                       " --change 'ENV PATH=/usr/sbin:/usr/bin' - debian", shell=True, check=True, timeout=120, stdout=subprocess.DEVNULL)

    def __call__(self, *args, **kwargs):
        return self.run("/usr/bin/docker", "--host", f"unix://{self.base}/docker.sock", *args, **kwargs)

    def start(self, *args, **kwargs):
        """`run` with options, `--` and the program's arguments."""
        at = args.index("--")
        return self("run", "--runtime", self.name, "--volume", self.usr, *args[:at], "debian", *args[at + 1:], **kwargs)

    def detached(self, name, *args):
        done = self.start("--detach", "--name", name, *args)
        assert done.returncode == 0, done.stderr

    def get(self, url, seconds=60):
        """What is there, waited for, from where the daemon is: its checksum and its first bytes."""
        fetch = ("import hashlib, sys, time, urllib.request\n"
                 f"end = time.monotonic() + {seconds}\n"
                 "while True:\n"
                 "    try:\n"
                 "        with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:\n"
                 "            digest, first = hashlib.sha256(), b''\n"
                 "            while piece := answer.read(1 << 20):\n"
                 "                digest.update(piece)\n"
                 "                first = first or piece[:20]\n"
                 "        break\n"
                 "    except OSError:\n"
                 "        if time.monotonic() > end:\n"
                 "            raise\n"
                 "        time.sleep(0.2)\n"
                 "print(digest.hexdigest(), first.hex())\n")
        done = self.run("/usr/bin/python3", "-c", fetch, url, timeout=seconds + 120)
        assert done.returncode == 0, done.stderr
        digest, first = done.stdout.split(" ")
        return digest, bytes.fromhex(first)


@pytest.fixture(scope="module", params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def docker(request, scratch, debian):
    its = Docker(BINARIES[request.param], scratch / f"docker-{request.param}", debian)
    yield its
    names = its.ok("ps", "--all", "--quiet").split()
    its.close()
    assert names == []


@pytest.mark.timeout(400)
def test_run_and_its_options(docker):
    done = docker.start("--rm", "--interactive", "--network", "none", "--user", "1000:1001", "--memory", "200m", "--pids-limit", "77", "--read-only",
                        "--tmpfs", "/mem", "--ulimit", "nofile=111:222", "--env", "A=b c", "--workdir", "/usr", "--hostname", "named",
                        "--mount", "type=volume,src=kept,dst=/data", "--cap-drop", "all", "--",
                        "sh", "-c", "cat; id -u; id -g; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; echo $A; pwd; hostname;"
                        "ulimit -Sn; ulimit -Hn; grep CapBnd /proc/self/status; ls /sys/class/net; touch /mem/x; touch /x; exit 7",
                        input="in\n", stdin=None)
    assert done.returncode == 7, done.stderr
    assert done.stdout.split("\n") == ["in", "1000", "1001", str(200 << 20), "77", "b c", "/usr", "named", "111", "222",
                                       "CapBnd:\t0000000000000000", "lo", ""]
    assert "Read-only file system" in done.stderr
    done = docker.start("--rm", "--network", "none", "--", "missing")
    assert done.returncode == 127
    assert 'exec: "missing": executable file not found in $PATH' in done.stderr


@pytest.mark.timeout(300)
def test_privileged(docker):
    """The list of the host's devices is not meant literally: the container has all that the guest has."""
    done = docker.start("--rm", "--privileged", "--network", "none", "--", "sh", "-ec",
                      "test -c /dev/net/tun; test -c /dev/loop-control; test -c /dev/null; mount -t tmpfs x /mnt; dmesg | grep -c ^ >&2;"
                      "echo 2000 > /proc/sys/kernel/pty/max; cat /proc/sys/kernel/pty/max; test -e /dev/mem && echo mem; echo done")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["2000", "mem", "done"] if docker.name == "runc" else ["2000", "done"])


@pytest.mark.timeout(400)
def test_docker_in_docker(docker):
    """With layers on a volume, a bridge and iptables, and runc, as whoever builds images in a container has it."""
    done = docker("run", "--rm", "--runtime", docker.name, *inner.OPTIONS, "--volume", "/var/lib/docker", "debian", "sh", "-c", inner.DOCKER,
                  timeout=300)
    assert (done.returncode, done.stdout) == inner.TOLD, done.stdout + done.stderr


@pytest.mark.timeout(400)
def test_the_profile_that_docker_gives(docker):
    """dockerd loads it into the host's kernel itself."""
    look = ("cat", "/proc/1/attr/current", "/proc/self/attr/current")
    docker.detached("confined", "--network", "none", "--", "sleep", "1000")
    assert docker.ok("exec", "confined", *look) == "docker-default (enforce)\n" * 2
    docker.ok("rm", "--force", "confined")
    done = docker.start("--rm", "--network", "none", "--security-opt", "apparmor=unconfined", "--", *look)
    assert done.stdout == "unconfined\n" * 2
    done = docker.start("--rm", "--network", "none", "--security-opt", "apparmor=no-such-profile", "--", *look)
    assert done.returncode not in (0, 1)
    assert "apparmor failed to apply profile: write /proc/self/attr/apparmor/exec: no such file or directory" in done.stderr, done.stderr


def test_the_hosts_network_and_processes_are_refused(docker):
    if docker.name != "runc":
        done = docker.start("--rm", "--network", "none", "--pid", "host", "--", "true")
        assert done.returncode != 0
        assert "linux.namespaces: none has the type pid, so the container would have this host's processes" in done.stderr, done.stderr
        done = docker.start("--rm", "--network", "host", "--", "true")
        assert done.returncode != 0
        assert "this host's own network namespace, which a container cannot have" in done.stderr, done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("program", [["python3", "-c", GRAB], ["sh", "-c", 'python3 -c "$0"; exit $?', GRAB]], ids=["first", "child"])
def test_out_of_memory(docker, program):
    """Docker looks at the events of the container's cgroup on the host."""
    docker.detached("hungry", "--network", "none", "--memory", "100m", "--memory-swap", "100m", "--", *program)
    docker.ok("wait", "hungry")
    state = json.loads(docker.ok("inspect", "hungry"))[0]["State"]
    docker.ok("rm", "hungry")
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


@pytest.mark.timeout(300)
def test_copies(docker, scratch):
    """The daemon copies in its own mounts of the root filesystem and the volumes."""
    volume, out = scratch / "docker-copies", scratch / "docker-out"
    volume.mkdir(exist_ok=True)
    out.write_text("from the host\n")
    docker.detached("copied", "--network", "none", "--volume", f"{volume}:/data", "--", "sh", "-c", "echo inside > /made; sleep 1000")
    wait_for(lambda: docker("exec", "copied", "test", "-e", "/made").returncode == 0)
    docker.ok("cp", "copied:/made", scratch / "docker-made")
    assert (scratch / "docker-made").read_text() == "inside\n"
    docker.ok("cp", out, "copied:/in")
    docker.ok("cp", out, "copied:/data/in")
    wait_for(lambda: docker("exec", "copied", "cat", "/in", "/data/in").stdout == "from the host\n" * 2)
    assert (volume / "in").read_text() == "from the host\n"
    docker.ok("rm", "--force", "copied")


@pytest.mark.timeout(400)
def test_a_detached_container_and_its_verbs(docker):
    docker.detached("life", "--memory", "300m", "--", "sh", "-c", "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done")
    wait_for(lambda: (docker("logs", "life").stdout, docker("logs", "life").stderr) == ("out\n", "err\n"))
    state = json.loads(docker.ok("inspect", "life"))[0]
    address = state["NetworkSettings"]["IPAddress"]
    # The default bridge: the gateway and the container know each other.
    done = docker("exec", "--user", "0", "life", "sh", "-c", f"ip -4 -o addr show eth0; ping -c1 -w20 {state['NetworkSettings']['Gateway']} >&2; exit 9")
    assert done.returncode == 9, done.stderr
    assert f"{address}/" in done.stdout and " 0% packet loss" in done.stderr
    assert docker.run("ping", "-c1", "-w20", address).returncode == 0
    assert docker("exec", "life", "no-such").returncode == 126
    assert str(state["State"]["Pid"]) in docker.ok("top", "life")
    usage = json.loads(docker.ok("stats", "--no-stream", "--format", "{{json .}}", "life"))
    assert "MiB" in usage["MemUsage"] and usage["MemPerc"] != "0.00%"
    docker.ok("pause", "life")
    assert json.loads(docker.ok("inspect", "life"))[0]["State"]["Status"] == "paused"
    docker.ok("unpause", "life")
    docker.ok("update", "--memory", "200m", "--memory-swap", "200m", "life")
    assert docker.ok("exec", "life", "cat", "/sys/fs/cgroup/memory.max") == f"{200 << 20}\n"
    docker.ok("restart", "--time", "60", "life")
    docker.ok("stop", "--time", "60", "life")
    assert json.loads(docker.ok("inspect", "life"))[0]["State"]["ExitCode"] == 3
    docker.ok("rm", "life")


@pytest.mark.timeout(300)
def test_namespaces_of_another_container(docker):
    docker.detached("other", "--ipc", "shareable", "--", "python3", "-c",
                    "import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()")
    get = "import time, urllib.request as u\nfor _ in range(100):\n try: print(u.urlopen('http://localhost:8080').status); break\n except OSError: time.sleep(.1)"
    done = docker.start("--rm", "--network", "container:other", "--", "python3", "-c", get)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    shown = docker.ok("exec", "other", "ip", "-o", "addr", "show", "eth0")
    for options in (("--network", "container:other", "--ipc", "container:other", "--pid", "container:other"), ("--pid", "container:other")):
        # Without the other's network it has one of its own, which works.
        done = docker.start("--rm", *options, "--", "sh", "-c",
                            "ps ax; ip -o addr show eth0; ping -c1 -w20 $(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p')")
        assert done.returncode == 0 and "http.server" in done.stdout, done.stderr
        assert (shown in done.stdout) == ("--network" in options)
    assert docker.ok("exec", "other", "python3", "-c", get) == "200\n"
    docker.ok("rm", "--force", "other")


@pytest.mark.timeout(300)
def test_networks_that_are_connected_later(docker):
    """The names of the network are there with it, as is its address that Docker says."""
    docker.ok("network", "create", "--subnet", "10.98.8.0/24", "later")
    docker.detached("there", "--network", "later", "--", "sleep", "1000")
    docker.detached("roams", "--", "sleep", "1000")

    def shown():
        return docker.ok("exec", "roams", "ip", "-4", "-o", "addr")

    before = shown()
    for _ in range(2):
        docker.ok("network", "connect", "--ip", "10.98.8.77", "later", "roams")
        wait_for(lambda: "10.98.8.77/24" in shown())
        done = docker("exec", "roams", "sh", "-ec", "getent hosts there; ping -c1 -w20 there; ip route")
        assert done.returncode == 0 and done.stdout.startswith("10.98.8."), done.stdout + done.stderr
        assert docker("exec", "there", "ping", "-c1", "-w20", "roams").returncode == 0
        docker.ok("network", "disconnect", "later", "roams")
        wait_for(lambda: shown() == before)
    gateway = docker.ok("exec", "roams", "sh", "-c", "ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p'").strip()
    assert docker("exec", "roams", "ping", "-c1", "-w20", gateway).returncode == 0
    docker.ok("rm", "--force", "roams", "there")
    docker.ok("network", "rm", "later")


@pytest.mark.timeout(600)
def test_an_application_of_three_services(docker, scratch):
    site = scratch / "docker-site"
    site.mkdir(exist_ok=True)
    content = os.urandom(1 << 20) * 20
    (site / "file").write_bytes(content)
    (site / "counter.py").write_text(COUNTER)
    (site / "nginx.conf").write_text(NGINX)
    docker.ok("network", "create", "--subnet", "10.98.7.0/24", "app")
    redis = ("redis-server", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--protected-mode", "no")
    docker.detached("db", "--network", "app", "--mount", "type=volume,src=db,dst=/data", "--", *redis)
    docker.detached("counter", "--network", "app", "--volume", f"{site}:/site:ro", "--", "python3", "-u", "/site/counter.py")
    docker.detached("web", "--network", "app", "--volume", f"{site}:/site:ro", "--publish", "8080:80", "--tmpfs", "/tmp",
                    "--tmpfs", "/var/lib/nginx", "--", "nginx", "-c", "/site/nginx.conf")
    # By the firewall's redirection; the other addresses below are served by Docker's proxy.
    digest, _ = docker.get("http://10.98.7.1:8080/file")
    assert digest == hashlib.sha256(content).hexdigest()

    def hits():
        return int(docker.get("http://127.0.0.1:8080/hits")[1])

    before = hits()
    assert hits() == before + 1
    address = json.loads(docker.ok("inspect", "db"))[0]["NetworkSettings"]["Networks"]["app"]["IPAddress"]
    assert docker.ok("exec", "counter", "python3", "-c", ASK, "db") == address + "\n"
    # The machine of the database is killed while it is written to. What it has acknowledged is there when it is back, under its name.
    command = docker.command("/usr/bin/docker", "--host", f"unix://{docker.base}/docker.sock", "exec", "counter", "python3", "-c", WRITER)
    writer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    written = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(json.loads(docker.ok("inspect", "db"))[0]["State"]["Pid"], signal.SIGKILL)
    written += [int(line) for line in writer.stdout]
    assert writer.wait(60) != 0
    wait_for(lambda: json.loads(docker.ok("inspect", "db"))[0]["State"]["Status"] == "exited")
    assert json.loads(docker.ok("inspect", "db"))[0]["State"]["ExitCode"] == 137
    docker.ok("start", "db")
    assert hits() == before + 2
    kept = docker.ok("exec", "db", "redis-cli", "lrange", "log", "0", "-1").split()
    assert kept[:len(written)] == [str(number) for number in written]
    assert len(kept) - len(written) <= 1  # the one that was under way
    docker.ok("rm", "--force", "web", "counter", "db")
    docker.ok("network", "rm", "app")
    docker.ok("volume", "rm", "db")
