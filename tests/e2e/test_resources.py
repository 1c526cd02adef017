"""Limits: what the guest's cgroup says, what the host's cgroup of the machine says, and that they bite."""

import json
import os
import pathlib
import subprocess
import time

import pytest

from chiton import GRAB, only_chiton, ran, wait_for
from test_configuration import again, explained, probed  # noqa: F401

MIB = 1 << 20

# Tries what limits forbid; prints errnos and signals.
BITE = r"""
import ctypes, errno, json, mmap, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
def number(function):
    try:
        function()
        return 0
    except OSError as e:
        return e.errno
def forks():
    children = []
    try:
        for _ in range(100):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError as e:
        return [len(children), e.errno]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
def eats():
    child = os.fork()
    if child == 0:
        exec(sys.argv[1])
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])
def huge():
    child = os.fork()
    if child == 0:
        try:
            # MAP_HUGETLB of 2 MiB pages (asm-generic/mman-common.h).
            mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)[0] = 1
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return [os.WTERMSIG(status), os.WEXITSTATUS(status)]
def device(kind, major, minor, flags):
    path = "/dev/shm/node"
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    try:
        return number(lambda: os.close(os.open(path, flags)))
    finally:
        os.unlink(path)
print(json.dumps({
    "forks": forks(), "eats": eats(), "huge": huge(),
    "null": device(0o020000, 1, 3, os.O_RDWR), "mem": device(0o020000, 1, 1, os.O_RDONLY),
    "kmsg read": device(0o020000, 1, 11, os.O_RDONLY), "kmsg write": device(0o020000, 1, 11, os.O_WRONLY),
    "loop": device(0o060000, 7, 0, os.O_RDONLY),
}))
"""


@pytest.fixture
def loop(scratch):
    """A block device of this host: its number, and where a file system on it is mounted."""
    image, mounted = scratch / "image", scratch / "mounted"
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    mounted.mkdir()
    for command in (["modprobe", "-a", "loop", "ext4"], ["mkfs.ext4", "-q", image]):
        subprocess.run(command, check=True)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["mount", device, mounted], check=True)
    number = os.stat(device).st_rdev
    yield f"{os.major(number)}:{os.minor(number)}", mounted
    subprocess.run(["umount", mounted], check=True)
    subprocess.run(["losetup", "--detach", device], check=True)
    mounted.rmdir()
    image.unlink()


def test_limits(runtime, probed, rootfs, loop):  # noqa: F811
    number, _ = loop
    major, minor = map(int, number.split(":"))
    (rootfs / "bite.py").write_text(BITE)

    def change(config):
        next(m for m in config["mounts"] if m["destination"] == "/dev/shm")["options"].remove("nodev")
        config["linux"]["resources"] |= {
            "memory": {"limit": 96 * MIB, "reservation": 32 * MIB, "swap": 128 * MIB, "swappiness": 60},
            "cpu": {"shares": 512, "quota": 60000, "period": 50000},
            "pids": {"limit": 20},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": str(512 * MIB)},
            "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 3 * MIB}],
                        "throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 2 * MIB}],
                        "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 1000}]},
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}],
        }
        config["process"]["capabilities"]["effective"] = config["process"]["capabilities"]["permitted"] = \
            config["process"]["capabilities"]["bounding"] = [*config["process"]["capabilities"]["bounding"], "CAP_SYSLOG"]
        if runtime.name == "chiton":
            config["linux"]["resources"]["cpu"]["burst"] = 10000

    c, said = probed(change)
    files = said["cgroup"]
    expected = {"memory.max": str(96 * MIB), "memory.low": str(32 * MIB), "memory.swap.max": str(32 * MIB), "memory.high": str(512 * MIB),
                "cpu.max": "60000 50000", "pids.max": "20", "hugetlb.2MB.max": "0"}
    if runtime.name == "chiton":
        # As runc 1.4; 1.1 has another formula.
        expected |= {"cpu.weight": "59", "cpu.max.burst": "10000", "hugetlb.2MB.rsvd.max": "0"}
    assert {name: files.get(name) for name in expected} == expected
    host = {name: (c.cgroup / name).read_text().strip() for name in ("cpu.max", "cpu.weight", "io.max", "io.weight", "memory.max", "pids.max")}
    assert host["io.max"] == f"{number} rbps={3 * MIB} wbps={2 * MIB} riops=max wiops=1000"
    assert host["io.weight"] == "default 4950"
    assert host["cpu.max"] == "60000 50000"
    if runtime.name == "chiton":
        assert said["cpus"] == 2
        assert host["cpu.weight"] == "59" and (c.cgroup / "cpu.max.burst").read_text() == "10000\n"
        assert host["pids.max"] == "4096", "the machine's threads and stubs are not the container's processes"
        assert 96 * MIB < int(host["memory.max"]) < 400 * MIB

    done = json.loads(c.output("python3", "/bite.py", GRAB))
    # Beside the init, and what runs this. EAGAIN; SIGKILL; SIGBUS or ENOMEM; EPERM.
    assert done["forks"][0] < 20 and done["forks"][1] == 11
    assert done["eats"] == 9
    assert done["huge"] in ([7, 0], [0, 12])
    assert (done["null"], done["mem"], done["loop"]) == (0, 1, 1)
    assert (done["kmsg read"], done["kmsg write"]) == (0, 1)
    assert c.status == "running"


@only_chiton
def test_the_machine_boots_without_limits_of_speed(runtime, container, loop):
    """They hold at the container's first instruction, in the guest and on the host; `update` may come before."""
    number, _ = loop
    major, minor = map(int, number.split(":"))

    def change(config):
        config["linux"]["resources"] |= {
            "cpu": {"quota": 30000, "period": 100000, "burst": 1000},
            "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 3 * MIB}]},
        }

    def host():
        return {name: (c.cgroup / name).read_text().strip() for name in ("cpu.max", "cpu.max.burst", "io.max")}

    show = "cd /sys/fs/cgroup; cat cpu.max cpu.max.burst; sleep 1000"
    c = container("sh", "-c", show, verb=("create",), change=change)
    assert host() == {"cpu.max": "max 100000", "cpu.max.burst": "0", "io.max": ""}
    assert "nr_throttled 0" in (c.cgroup / "cpu.stat").read_text()
    runtime.ok("start", c.name)
    limited = {"cpu.max": "30000 100000", "cpu.max.burst": "1000", "io.max": f"{number} rbps={3 * MIB} wbps=max riops=max wiops=max"}
    assert host() == limited
    wait_for(lambda: (c.bundle.path / "output").read_text() == "30000 100000\n1000\n", 60)
    runtime.ok("update", "--cpu-quota", "50000", c.name)
    assert host() == limited | {"cpu.max": "50000 100000"}
    before = container("sleep", "1000", verb=("create",), change=change)
    runtime.ok("update", "--cpu-quota", "60000", before.name)
    runtime.ok("start", before.name)
    assert (before.cgroup / "cpu.max").read_text() == "60000 100000\n"


@only_chiton
@pytest.mark.parametrize("hide, why", [
    ("mount -t tmpfs none /sys/fs/cgroup", "cgroup v2 is not mounted on this host"),
    ("mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/unified; mount -t cgroup2 none /sys/fs/cgroup/unified",
     "cgroup v2 of this host has no controllers"),
], ids=["none", "hybrid"])
def test_a_host_that_cannot_limit_machines(runtime, bundle, loop, hide, why):
    """The guest's limits hold and the caller is told; what the guest cannot limit is refused by name."""
    number, _ = loop
    major, minor = map(int, number.split(":"))
    made = bundle("cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max")

    def run(resources):
        made.config["linux"]["resources"] |= resources
        command = runtime.command("run", "--bundle", made.save().path, "bare")
        return subprocess.run(["unshare", "-m", "sh", "-ec", f'{hide}; exec "$@"', "sh", *command], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False)

    done = run({"memory": {"limit": 96 * MIB}, "cpu": {"quota": 50000, "period": 100000}})
    assert (done.returncode, done.stdout) == (0, f"{96 * MIB}\n50000 100000\n"), done.stderr
    assert f"linux.resources.cpu.quota is applied in the guest only: {why}" in done.stderr
    done = run({"blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": MIB}]}})
    assert done.returncode == 1 and f"cannot be applied: {why}" in done.stderr and "throttleReadBpsDevice" in done.stderr, done.stderr


@only_chiton
def test_limits_on_both_sides(probed):  # noqa: F811
    def change(config):
        config["linux"]["resources"] |= {
            "cpu": {"idle": 1, "cpus": "0", "mems": "0"},
            "unified": {"cpu.max": "30000 20000", "memory.min": "4096", "pids.max": "30", "io.max": "", "hugetlb.2MB.max": "2097152"},
        }
        config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}

    c, said = probed(change)
    files = said["cgroup"]
    assert (files["cpu.max"], files["cpu.idle"], files["pids.max"], files["hugetlb.2MB.max"]) == ("30000 20000", "1", "30", "2097152")
    host = {name: (c.cgroup / name).read_text().strip() for name in ("cpu.max", "cpu.idle", "cpuset.cpus", "cpuset.mems", "pids.max")}
    assert host == {"cpu.max": "30000 20000", "cpu.idle": "1", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "4096"}
    assert said["affinity"] == [0], "one vCPU, as there is one host CPU for it"
    maps = pathlib.Path(f"/proc/{c.pid}/numa_maps").read_text().splitlines()
    anonymous = [line for line in maps if "anon=" in line and "file=" not in line]
    assert anonymous and all(line.split()[1] == "bind:0" for line in anonymous), anonymous


@only_chiton
def test_the_host_swaps_out_no_more_than_is_allowed(runtime, container):
    """The guest has no swap space; what is said of swap holds for the machine's memory, and an update changes it."""
    def change(config):
        config["linux"]["resources"]["memory"] = {"limit": 128 * MIB, "swap": 160 * MIB}

    c = container("sleep", "1000", change=change)
    swap = c.cgroup / "memory.swap.max"
    assert swap.read_text() == f"{32 * MIB}\n"
    runtime.ok("update", "--memory-swap", str(128 * MIB), c.name)
    assert swap.read_text() == "0\n"
    assert (container("sleep", "1000").cgroup / "memory.swap.max").read_text() == "max\n"


@only_chiton
@pytest.mark.parametrize("limit", [32, 200])
def test_the_guest_is_limited_before_the_machine(runtime, container, rootfs, limit):
    """A program that takes more than the container may have is killed in the guest. The machine lives, and its own cgroup is not short."""
    (rootfs / "eat.py").write_text(GRAB)

    def change(config):
        config["linux"]["resources"]["memory"] = {"limit": limit * MIB}

    c = container("sh", "-c", "python3 /eat.py; echo $?; cat /sys/fs/cgroup/memory.events; sleep 1000", change=change)
    output = c.bundle.path / "output"
    wait_for(lambda: "oom_group_kill" in output.read_text(), 60)
    lines = [line for line in output.read_text().splitlines() if line != "Killed"]
    assert lines[0] == "137" and "oom_kill 1" in lines, lines
    host = dict(line.split() for line in (c.cgroup / "memory.events").read_text().splitlines())
    assert (host["oom"], host["oom_kill"], host["max"]) == ("0", "0", "0"), host
    assert int((c.cgroup / "memory.peak").read_text()) < int((c.cgroup / "memory.max").read_text())
    assert c.output("echo", "alive") == "alive\n"
    wait_for(lambda: (c.bundle.path / "oom").exists())


def meminfo(text):
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines() if ":" in line}


def test_no_limit_is_no_limit(container):
    """Nothing is said: what a container sees is the host's memory, and no cgroup is in the way."""
    host = meminfo(pathlib.Path("/proc/meminfo").read_text())
    c = container("sleep", "1000")
    seen = meminfo(c.output("cat", "/proc/meminfo"))
    # A machine has as much RAM as the host counts; of that, its own kernel takes page structures and what it consists of.
    assert 0.96 * host["MemTotal"] < seen["MemTotal"] <= host["MemTotal"]
    assert c.output("cat", "/sys/fs/cgroup/memory.max") == "max\n"


def test_the_least_memory(runtime, bundle):
    """It is enough for a shell, and holds."""
    for script, code in (("cat /sys/fs/cgroup/memory.max", 0), ("dd if=/dev/zero of=/dev/null bs=20M count=1", 137)):
        made = bundle("sh", "-c", script)
        made.config["linux"]["resources"]["memory"] = {"limit": 6 * MIB}
        done = runtime("run", "--bundle", made.save().path, "least")
        assert (done.returncode, done.stdout) == (code, f"{6 * MIB}\n" if code == 0 else ""), done


# Takes so many MiB and gives them back.
TAKES = "import mmap, sys; mmap.mmap(-1, int(sys.argv[1]) << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"


def test_memory_limits_change_while_the_container_runs(runtime, container):
    """None, some, more, less and none again; each holds at once, and the machine's on the host follows."""
    c = container("sleep", "1000")
    host = c.cgroup / "memory.max"

    def takes(mib):
        done = c.exec("python3", "-c", TAKES, str(mib))
        assert done.returncode in (0, 137), done.stderr
        return done.returncode == 0

    def allowed():
        text = host.read_text().strip()
        return float("inf") if text == "max" else int(text) / MIB

    unlimited = allowed()
    assert takes(300)
    for limit, less, more in ((160, 110, 260), (300, 240, 400), (64, 30, 120)):
        runtime.ok("update", "--memory", str(limit * MIB), c.name)
        assert c.output("cat", "/sys/fs/cgroup/memory.max") == f"{limit * MIB}\n"
        least, most = (limit + 48, ((limit + 48) * 64 / 63 + 2) * 1.754 + 64 + 1) if runtime.name == "chiton" else (limit, limit)
        assert least <= allowed() <= most, (limit, (c.cgroup / "memory.stat").read_text())
        assert takes(less) and not takes(more), limit
        # What was killed may be gone after the verb that ran it: the host's limit is not lowered below what is still held.
        wait_for(lambda: int((c.cgroup / "memory.current").read_text()) < 200 * MIB, 60)
    runtime.ok("update", "--memory", "-1", c.name)
    assert c.output("cat", "/sys/fs/cgroup/memory.max") == "max\n" and allowed() == unlimited
    assert takes(400)
    assert c.status == "running"
    if runtime.name == "chiton":
        events = dict(line.split() for line in (c.cgroup / "memory.events").read_text().splitlines())
        assert (events["oom"], events["oom_kill"]) == ("0", "0"), "the host has killed"


@only_chiton
def test_a_machine_with_a_limit_uses_no_more_ram(runtime, container):
    """The rest of its address space looks free, but is not there for its kernel, which is short of memory before the host is."""
    def change(config):
        config["linux"]["resources"]["memory"] = {"limit": 128 * MIB}

    c = container("sleep", "1000", change=change)
    seen = meminfo(c.output("cat", "/proc/meminfo"))
    assert seen["MemFree"] > seen["MemTotal"] - 128 * MIB and seen["MemAvailable"] > seen["MemTotal"] - 256 * MIB
    assert int(c.output("cat", "/proc/sys/vm/usable_kbytes")) == (128 + 33) << 10
    zones = c.output("cat", "/proc/zoneinfo")
    managed = sum(int(line.split()[1]) << 12 for line in zones.splitlines() if line.split()[0] == "managed")
    assert managed <= (128 + 33) * MIB
    runtime.ok("update", "--memory", str(300 * MIB), c.name)
    assert int(c.output("cat", "/proc/sys/vm/usable_kbytes")) == (300 + 33) << 10


@only_chiton
def test_page_cache_that_is_not_used_is_given_back(container, rootfs):
    """A container reads a large file and idles: the host has its memory again. What is used goes on being there, and then nothing wakes."""
    size = 250
    with open(rootfs / "large", "wb") as file:
        for _ in range(size):
            file.write(bytes(MIB))

    def change(config):
        config["linux"]["readonlyPaths"] = []

    c = container("sleep", "1000", change=change)

    def resident():
        status = pathlib.Path(f"/proc/{c.pid}/status").read_text()
        return next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmRSS"))

    def cached():
        return meminfo(c.output("cat", "/proc/meminfo"))["Cached"] >> 20

    assert c.output("cat", "/proc/sys/vm/idle_cache_seconds") == "60\n"
    before = resident()
    c.output("sh", "-c", "cat /large > /dev/null")
    assert cached() > size and resident() > before + size * 0.9
    c.output("sh", "-c", "echo 5 > /proc/sys/vm/idle_cache_seconds")
    wait_for(lambda: resident() < before + 64, 120)
    assert cached() < 64


# What a small host has, and what each of twenty containers on it reads, bytes. A machine that idles takes 32 MiB.
SMALL, EACH = 1152 * MIB, 60 * MIB


@pytest.fixture
def small_host():
    """A cgroup for all containers of a test."""
    path = pathlib.Path("/sys/fs/cgroup/small-host")
    path.mkdir()
    (path / "memory.max").write_text(str(SMALL))
    (path / "memory.swap.max").write_text("0")
    yield path
    path.rmdir()


@only_chiton
@pytest.mark.timeout(600)
def test_twenty_containers_want_more_memory_than_the_host_has(small_host, container, rootfs):
    """Each reads a file and idles. What it wanted then others have later, and nobody has to be killed for it."""
    (rootfs / "large").write_bytes(bytes(EACH))
    names = iter("abcdefghijklmnopqrst")

    def change(config):
        config["linux"]["readonlyPaths"] = []
        config["linux"]["cgroupsPath"] = f"/{small_host.name}/{next(names)}"

    def peak(c):
        status = pathlib.Path(f"/proc/{c.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))

    made = []
    for _ in range(20):
        made.append(container("sh", "-c", "echo 5 >/proc/sys/vm/idle_cache_seconds; cat /large >/dev/null; echo read; exec sleep 1000", change=change))
        wait_for(lambda: (made[-1].bundle.path / "output").read_text() == "read\n", 60)
    assert sum(map(peak, made)) > 20 * EACH > SMALL
    assert "oom_kill 0\n" in (small_host / "memory.events").read_text()
    assert {c.status for c in made} == {"running"}


@only_chiton
def test_memory_is_given_back(container):
    """What a program has taken and given up in the guest is the host's again."""
    c = container("sleep", "1000")

    def resident(field):
        status = pathlib.Path(f"/proc/{c.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))

    before = resident("VmRSS")
    for _ in range(2):
        c.output("python3", "-c", f"import mmap; mmap.mmap(-1, {120 * MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)")
        assert resident("VmHWM") > before + 110 * MIB
        wait_for(lambda: resident("VmRSS") < before + 40 * MIB, 60)
    assert c.output("cat", "/etc/hostname")


@only_chiton
def test_the_machine_is_as_large_as_is_asked(runtime, run, bundle):
    show = ("sh", "-c", "grep MemTotal /proc/meminfo; nproc; cat /sys/fs/cgroup/memory.max")

    def annotated(config):
        config["annotations"] = {"dev.chiton.memory": "192M", "dev.chiton.vcpus": "2"}
        config["linux"]["resources"] |= {"memory": {"limit": 64 * MIB}, "cpu": {"quota": 50000}}

    total, cpus, most = run(*show, change=annotated).stdout.splitlines()
    assert 150 < int(total.split()[1]) >> 10 <= 192 and (cpus, most) == ("2", str(64 * MIB))

    def hardware(config):
        config["vm"] = {"hwConfig": {"memory": 256 * MIB, "vcpus": 2}}

    total, cpus, most = run(*show, change=hardware).stdout.splitlines()
    assert 200 < int(total.split()[1]) >> 10 <= 256 and (cpus, most) == ("2", "max")
    made = bundle("true")
    hardware(made.config)
    assert explained(runtime, made.save())[0]["machine"] == {"memory": 256 * MIB, "vcpus": 2}
    features = json.loads(runtime.ok("features"))
    assert features["potentiallyUnsafeConfigAnnotations"] == [
        "dev.chiton.memory", "dev.chiton.vcpus", "dev.chiton.volumes.privileges", "dev.chiton.dax", "dev.chiton.core-scheduling",
        "dev.chiton.host-namespaces", "org.systemd.property."]


# Takes memory, gives it back and takes it again; what the kernel says before and both times, MiB. The free pages that each
# vCPU keeps for itself, which may be an eighth of the memory, do not count as free otherwise.
TAKE = r"""
import mmap
def memory():
    known = {line.split(":")[0]: int(line.split()[1]) >> 10 for line in open("/proc/meminfo")}
    known["MemFree"] += sum(int(line.split()[1]) for line in open("/proc/zoneinfo") if line.split()[0] == "count:") >> 8
    return known
said = [memory()]
for _ in range(2):
    taken = mmap.mmap(-1, 380 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken[::4096] = b"x" * (380 << 8)
    said.append(memory())
    taken.close()
print(json.dumps(said))
"""


@only_chiton
@pytest.mark.parametrize("size", [512, 5120])
def test_all_memory_is_there_from_the_beginning(container, rootfs, size):
    """The guest's kernel makes the structures of pages when it needs the pages. Nothing shows it: all is free, can be had, and again."""

    def change(config):
        config["annotations"] = {"dev.chiton.memory": f"{size}M", "dev.chiton.vcpus": "2"}

    before, once, twice = ran(container, rootfs, TAKE, change)
    assert 0.93 * size < before["MemTotal"] < size and before["MemFree"] > before["MemTotal"] - 64, before
    assert before["MemTotal"] == once["MemTotal"] == twice["MemTotal"]
    # Page tables come to a megabyte.
    assert 370 < before["MemFree"] - once["MemFree"] < 420, (before, once)
    assert abs(once["MemFree"] - twice["MemFree"]) < 20, (once, twice)


WALK = """
def write(name, value): open("/proc/sys/vm/" + name, "w").write(value)
def scanned(): return int(next(line.split()[1] for line in open("/proc/vmstat") if line.startswith("compact_free_scanned ")))
before = scanned()
write("compact_memory", "1")
write("nr_hugepages", "20")
pages = int(open("/proc/sys/vm/nr_hugepages").read())
write("nr_hugepages", "0")
print(json.dumps([scanned() - before, pages, bytes(bytearray(64 << 20)) == bytes(64 << 20)]))
"""


@only_chiton
def test_memory_is_compacted_before_all_of_it_is_known(container, rootfs):
    """Who walks over pages by their numbers gets to some that have no structure yet, and passes them over."""

    def change(config):
        config["annotations"] = {"dev.chiton.memory": "2G"}
        config["linux"]["readonlyPaths"] = []

    scanned, pages, usable = ran(container, rootfs, WALK, change)
    assert scanned > 0 and pages == 20 and usable


@only_chiton
def test_block_io_is_throttled_and_updated(runtime, container, loop):
    """The host does the container's I/O, so its limits count."""
    number, mounted = loop
    major, minor = map(int, number.split(":"))

    def change(config):
        config["mounts"].append({"destination": "/data", "type": "bind", "source": str(mounted), "options": ["bind"]})
        config["linux"]["resources"]["blockIO"] = {"throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": MIB}]}

    c = container("sleep", "1000", change=change)
    begun = time.monotonic()
    c.output("dd", "if=/dev/zero", "of=/data/file", "bs=1M", "count=4", "conv=fsync")
    assert time.monotonic() - begun > 3, "4 MiB at 1 MiB a second"
    request = {"blockIO": {"weight": 100, "throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 0}],
                           "throttleReadIOPSDevice": [{"major": major, "minor": minor, "rate": 70}]}}
    runtime.ok("update", "--resources", "-", c.name, input=json.dumps(request), stdin=None)
    assert (c.cgroup / "io.max").read_text() == f"{number} rbps=max wbps=max riops=70 wiops=max\n"
    assert (c.cgroup / "io.weight").read_text() == "default 910\n"
    # What cannot be leaves all as it was.
    request["blockIO"]["throttleReadIOPSDevice"][0]["rate"] = 80
    request["blockIO"]["throttleWriteIOPSDevice"] = [{"major": 4095, "minor": 1, "rate": 1}]
    done = runtime("update", "--resources", "-", c.name, input=json.dumps(request), stdin=None)
    assert done.returncode == 1 and "linux.resources.blockIO.throttleWriteIOPSDevice" in done.stderr
    assert (c.cgroup / "io.max").read_text() == f"{number} rbps=max wbps=max riops=70 wiops=max\n"


# Five parts of a hundred. A lab's processor does not do much in less than some milliseconds.
SLOW = {"quota": 50000, "period": 1000000}


def throttled(path):
    """How often a cgroup has had to wait for its quota."""
    lines = (pathlib.Path(path) / "cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["nr_throttled"])


def test_a_quota_holds_from_the_first_instruction_and_does_not_slow_down_the_start(runtime, bundle):
    made = bundle("sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.max.burst; while :; do :; done")
    made.config["linux"]["resources"]["cpu"] = SLOW | {"burst": 1000} if runtime.name == "chiton" else SLOW
    made.save()
    with open(made.path / "output", "wb") as output:
        runtime.ok("create", "--bundle", made.path, "--pid-file", made.path / "pid", "slow", stdout=output, stderr=output)
    pid = int((made.path / "pid").read_text())
    cgroup = "/sys/fs/cgroup" + pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip().split(":", 2)[2]
    try:
        if runtime.name == "chiton":
            assert throttled(cgroup) == 0
        runtime.ok("start", "slow")
        if runtime.name == "chiton":
            assert throttled(cgroup) <= 1
        wait_for(lambda: (made.path / "output").read_text().startswith("50000 1000000\n"))
        assert (pathlib.Path(cgroup) / "cpu.max").read_text() == "50000 1000000\n"
        wait_for(lambda: throttled(cgroup) > 3)
    finally:
        runtime.ok("delete", "--force", "slow")


def test_a_quota_does_not_slow_down_the_end(run):
    """What the machine has to do when its program has ended is not the program's: without that a run would take twenty times as long as
    one without a quota, and not three."""
    def took(change=None):
        begun = time.monotonic()
        assert run("true", change=change, timeout=300).returncode == 0
        return time.monotonic() - begun

    def slow(config):
        config["linux"]["resources"]["cpu"] = SLOW

    assert took(slow) < 10 * took()
