"""Podman with nothing but the runtime named, on root filesystems that are directories."""

import hashlib
import os
import pathlib
import subprocess
import time
import urllib.request

import pytest

from chiton import Program, wait_for

BINARIES = {"chiton": os.environ["CHITON"], "runc": "/usr/sbin/runc"}


class Podman(Program):
    def __init__(self, binary, base, rootfs):
        self.rootfs = f"{rootfs}:O"
        self.flags = ["--root", base / "storage", "--runroot", base / "run", "--tmpdir", base / "tmp", "--cgroup-manager", "cgroupfs",
                      "--network-config-dir", base / "networks", "--events-backend", "file", "--runtime", binary]

    def __call__(self, *args, timeout=120):
        """Runs a command to its end; what `subprocess.run` gives."""
        command = ["podman", *map(str, [*self.flags, *args])]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)

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
def test_a_detached_container_and_its_published_port(podman, scratch):
    site = scratch / "podman-site"
    site.mkdir(exist_ok=True)
    content = os.urandom(1 << 20) * 8
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
    podman.ok("rm", "--force", "--time", "0", "one")
    podman.ok("network", "rm", "named")
