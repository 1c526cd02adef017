"""What clients take to run true by a runtime: `podman run`, and `ctr run` by way of containerd and its shim."""

import contextlib
import signal
import subprocess

from chiton import wait_for
from counting import IDLE_ONLY, SCHEDULER, between, span, trace

RUNS = 5
PROGRAMS = ("podman", "conmon", "ctr", "containerd", "containerd-shim-runc-v2")
CONTAINERD = """
version = 2
root = "/var/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd.sock"
"""


def measure(verbs, figures):
    host = verbs.host
    for program in PROGRAMS:
        if not host.path(f"/bin/{program}").exists():
            host.install(f"/usr/bin/{program}")
    for directory in ("/var/tmp", "/etc/containers"):
        host.path(directory).mkdir(parents=True, exist_ok=True)
    podman(verbs, figures)
    ctr(verbs, figures)


def podman(verbs, figures):
    command = ["/bin/podman", "--root", "/var/podman", "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp", "--storage-driver", "vfs",
               "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--conmon", "/bin/conmon", "--runtime", verbs.binary]
    run = [*command, "run", "--rm", "--network", "none", "--log-driver", "none", "--rootfs", "/rootfs", "true"]
    figures.add_counts("podman run --rm of true", verbs.name, [counted(verbs.host, run) for _ in range(RUNS + 1)][1:])


def ctr(verbs, figures):
    verbs.host.path("/etc/containerd.toml").write_text(CONTAINERD)
    command = ["/bin/ctr", "--address", "/run/containerd.sock"]
    daemon = verbs.host.popen("/bin/containerd", "--config", "/etc/containerd.toml")
    try:
        wait_for(lambda: verbs.host.popen(*command, "version").wait() == 0, 60)
        run = [*command, "run", "--rm", "--runc-binary", verbs.binary, "--env", "PATH=/usr/bin", "--rootfs", "/rootfs", "bench", "true"]
        figures.add_counts("ctr run --rm of true", verbs.name, [counted(verbs.host, run) for _ in range(RUNS + 1)][1:])
    finally:
        daemon.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(30)
        daemon.kill()
        daemon.wait()


def counted(host, command):
    """What is executed on the whole machine from a client's exec to its exit."""
    with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
        process = host.popen(*command, stderr=subprocess.PIPE, text=True)
        _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{command}: exit {process.returncode}: {errors}")
    return between(events, *span(events, command[0], process.pid))
