"""What a container has of its host and of the caller where its configuration says nothing: resource limits and kernel parameters."""

import contextlib
import json
import pathlib
import resource

import pytest

from chiton import ran, wait_for

UNLIMITED = resource.RLIM_INFINITY

# By number (asm-generic/resource.h): the name, and what a caller has, soft and hard; no two alike.
CALLERS = [("CPU", 5000, 6000), ("FSIZE", 1 << 40, 1 << 41), ("DATA", 1 << 36, 1 << 37), ("STACK", 9 << 20, UNLIMITED),
           ("CORE", 0, 4096), ("RSS", 1 << 34, 1 << 35), ("NPROC", 700000, 800000), ("NOFILE", 2222, 900000),
           ("MEMLOCK", 9 << 20, 10 << 20), ("AS", 1 << 42, 1 << 43), ("LOCKS", 70, 80), ("SIGPENDING", 500000, 600000),
           ("MSGQUEUE", 900000, 1000000), ("NICE", 3, 30), ("RTPRIO", 4, 44), ("RTTIME", 500000, 600000)]

# Of the kernel as a whole, each with more than a kernel has of its own.
PARAMETERS = {"vm/max_map_count": "262144", "vm/overcommit_memory": "1", "fs/file-max": "2000000", "fs/nr_open": "2097152",
              "fs/aio-max-nr": "1048576", "fs/inotify/max_user_watches": "2524288", "fs/inotify/max_user_instances": "1024",
              "fs/inotify/max_queued_events": "32768", "kernel/pid_max": "4194304", "kernel/threads-max": "200000",
              "kernel/core_pattern": "/tmp/core.of.%p"}

SYS = pathlib.Path("/proc/sys")


def take(more=0):
    """Gives this process the caller's limits, the soft ones so much greater."""
    for number, (_, soft, hard) in enumerate(CALLERS):
        resource.setrlimit(number, (soft + more, hard))


@contextlib.contextmanager
def parameters(values):
    """The host's parameters are others meanwhile."""
    before = {name: (SYS / name).read_text() for name in values}
    try:
        for name, value in values.items():
            (SYS / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (SYS / name).write_text(value)


def check(runtime, limits, more=0, named=()):
    """The limits are the caller's, but for those that are named by number."""
    wanted = {number: [soft + more, hard] for number, (_, soft, hard) in enumerate(CALLERS)} | dict(named)
    found = dict(enumerate(limits))
    if runtime.name != "chiton":
        # The library of runc 1.1's language raises this one for itself, and forgets to take it back.
        found[resource.RLIMIT_NOFILE] = wanted[resource.RLIMIT_NOFILE]
    assert found == wanted


@pytest.mark.parametrize("named", [{}, {"NPROC": (50, 60), "NICE": (7, 40)}], ids=["none", "two"])
@pytest.mark.parametrize("user", [False, True], ids=["plain", "user-namespace"])
def test_limits_are_the_callers(runtime, container, rootfs, named, user):
    """Of init and of an exec, each its own caller's; what the configuration names is as it says."""
    (rootfs / "limits.py").write_text(
        "import json, resource, sys, time\n"
        "print(json.dumps([resource.getrlimit(number) for number in range(16)]), flush=True)\n"
        "time.sleep(int(sys.argv[1]))\n")

    def change(config):
        config["process"]["rlimits"] = [{"type": f"RLIMIT_{name}", "soft": soft, "hard": hard} for name, (soft, hard) in named.items()]
        if user:
            config["linux"]["namespaces"].append({"type": "user"})
            for kind in ("uidMappings", "gidMappings"):
                config["linux"][kind] = [{"containerID": 0, "hostID": 0, "size": 65536}]

    made = container("python3", "/limits.py", "1000", change=change, preexec_fn=take)
    output = made.bundle.path / "output"
    wait_for(lambda: output.read_text().endswith("\n"), 60)
    executed = json.loads(made.output("python3", "/limits.py", "0", preexec_fn=lambda: take(1)))
    numbers = {getattr(resource, f"RLIMIT_{name}", 13): list(limits) for name, limits in named.items()}
    check(runtime, json.loads(output.read_text()), 0, numbers)
    check(runtime, executed, 1, numbers)


def test_parameters_are_the_hosts(container, rootfs):
    with parameters(PARAMETERS):
        found = ran(container, rootfs, f"print(json.dumps({{name: open('/proc/sys/' + name).read().strip() for name in {list(PARAMETERS)}}}))")
    assert found == PARAMETERS


def test_parameters_that_are_named(run):
    """The configuration's word is the last one, and a program of the host that takes dumps is not the guest's."""
    def change(config):
        config["linux"]["sysctl"] = {"vm.max_map_count": "70000"}

    with parameters({"vm/max_map_count": "262144", "kernel/core_pattern": "|/bin/false"}):
        done = run("cat", "/proc/sys/vm/max_map_count", "/proc/sys/kernel/core_pattern", change=change)
    assert done.stdout.split() == ["70000", "core"], done.stderr
