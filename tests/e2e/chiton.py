"""Drives a runtime, chiton or runc, the way a caller does, and looks for what it leaves behind."""

import contextlib
import copy
import ctypes
import json
import os
import pathlib
import subprocess
import time

import pytest

# For tests of what runc has no counterpart of, or does otherwise.
only_chiton = pytest.mark.parametrize("runtime", ["chiton"], indirect=True)
# For tests without a container, cheap enough to show each time that what they demand is what runc does.
both = pytest.mark.parametrize("runtime", ["chiton", "runc"], indirect=True)

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
                "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
                "CAP_SETUID", "CAP_SYS_CHROOT"]

CONFIG = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096}],
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": False},
    "hostname": "chiton",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ],
    "linux": {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    },
}


def without(config, *kinds):
    """Takes namespaces away; with Chiton the guest's stand for those of the host then."""
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] not in kinds]
    config.setdefault("annotations", {})["dev.chiton.host-namespaces"] = "guest"


class Bundle:
    """A bundle directory. `config` may be changed until `save`."""

    def __init__(self, path, rootfs, args):
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True)
        self.config = copy.deepcopy(CONFIG)
        self.config["process"]["args"] = list(args)
        self.config["root"]["path"] = str(rootfs)

    def save(self):
        (self.path / "config.json").write_text(json.dumps(self.config))
        return self


class Program:
    """What runs a command to its end when it is called."""

    def ok(self, *args, **kwargs):
        """The same for a command that must succeed; its standard output."""
        done = self(*args, **kwargs)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


class Runtime(Program):
    """A runtime's binary with a state root of its own."""

    def __init__(self, binary, root):
        self.binary = str(binary)
        self.root = pathlib.Path(root)
        self.name = os.path.basename(self.binary)

    def command(self, *args):
        return [self.binary, "--root", str(self.root), *map(str, args)]

    def __call__(self, *args, timeout=60, **kwargs):
        """Runs a verb to its end, its output captured unless said otherwise."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        if "stdout" not in kwargs:
            kwargs.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        kwargs.setdefault("text", True)
        given = kwargs.pop("input", None)
        if given is not None:
            kwargs["stdin"] = subprocess.PIPE
        with subprocess.Popen(self.command(*args), **kwargs) as process:
            try:
                out, err = process.communicate(given, timeout)
            except BaseException as error:
                if isinstance(error, subprocess.TimeoutExpired):
                    # What it waits for may end with it.
                    print(f"{args}: not done after {timeout} s", standing(), sep="\n")
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def popen(self, *args, **kwargs):
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.command(*args), **kwargs)

    def state(self, container):
        return json.loads(self.ok("state", container))

    def status(self, container):
        """The container's status; None when there is no such container."""
        done = self("state", container)
        return json.loads(done.stdout)["status"] if done.returncode == 0 else None


class Container:
    """A container that was made detached. Its output goes to the file `output` in its bundle unless said otherwise."""

    def __init__(self, runtime, name, bundle, verb=("run", "--detach"), **kwargs):
        self.runtime, self.name, self.bundle = runtime, name, bundle
        with open(bundle.path / "output", "wb") as output:
            kwargs = {"stdout": output, "stderr": output} | kwargs
            done = runtime(*verb, "--bundle", bundle.path, "--pid-file", bundle.path / "pid", name, **kwargs)
        assert done.returncode == 0, f"{verb}: exit {done.returncode}\n{(bundle.path / 'output').read_text()}"
        self.pid = int((bundle.path / "pid").read_text())

    def exec(self, *args, options=(), **kwargs):
        """Executes a program in it, in the foreground; what `subprocess.run` gives."""
        return self.runtime("exec", *options, self.name, *args, **kwargs)

    def output(self, *args, **kwargs):
        """The same for a program that must succeed; its standard output."""
        done = self.exec(*args, **kwargs)
        assert done.returncode == 0, f"exec {args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def verb(self, verb, *args, **kwargs):
        """Runs a verb on it that must succeed; its standard output."""
        options = [arg for arg in args if str(arg).startswith("--")]
        return self.runtime.ok(verb, *options, self.name, *(arg for arg in args if arg not in options), **kwargs)

    @property
    def status(self):
        return self.runtime.status(self.name)

    def ends(self, seconds=120):
        """Waits until it has stopped, which its process has to have done first."""
        wait_for(lambda: not alive(self.pid), seconds)
        wait_for(lambda: self.status == "stopped", seconds)

    @property
    def cgroup(self):
        """Its cgroup on the host."""
        line = pathlib.Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()[-1]
        return pathlib.Path("/sys/fs/cgroup" + line.split(":", 2)[2])

    def delete(self):
        self.runtime.ok("delete", "--force", self.name)


# What the containers of a pod share, and the names of namespaces below /proc/PID/ns.
SHARED = ("network", "ipc", "uts")
NAMESPACES = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "user": "user"}


def joining(pid, *kinds, change=None):
    """Makes a change to a configuration that joins these namespaces of a process."""
    def both(config):
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] in kinds:
                namespace["path"] = f"/proc/{pid}/ns/{NAMESPACES[namespace['type']]}"
        if "uts" in kinds:
            del config["hostname"]
        if change:
            change(config)
    return both


def watchers(container):
    """The processes that watch networks, of the machine's cgroup on the host."""
    path = "/sys/fs/cgroup" + pathlib.Path(f"/proc/{container.pid}/cgroup").read_text().strip().split(":", 2)[2]
    pids = (pathlib.Path(path) / "cgroup.procs").read_text().split()
    return [int(pid) for pid in pids if pathlib.Path(f"/proc/{pid}/comm").read_text() == "network\n"]


def id_maps(pid):
    """Which id maps a machine process has: "shifted", "identity", or the maps themselves if it is neither."""
    own, shift = 0x78000000 + pid, 1 << 31
    found = [[tuple(map(int, line.split())) for line in pathlib.Path(f"/proc/{pid}/{name}").read_text().splitlines()]
             for name in ("uid_map", "gid_map")]
    known = {"identity": [(0, 0, (1 << 32) - 1)], "shifted": [(0, shift, shift - 1), (shift, own, 1)]}
    return next((name for name, one in known.items() if found == [one, one]), found)


def ran(container, rootfs, text, change=None):
    """Runs a Python script that prints JSON in a container of its own; what it prints."""
    (rootfs / "script.py").write_text("import json, os, stat\n" + text)
    made = container("python3", "/script.py", change=change)
    made.ends()
    output = (made.bundle.path / "output").read_text()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise AssertionError(output) from None


# A line of Python that takes as much memory as it is given, in one call: a program that goes on running needs pages of its own
# files, which are read again and again for as long as they can be taken away in place of killing a process. MAP_NORESERVE
# (asm-generic/mman.h): more than the machine has.
GRAB = "import mmap; mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | 0x4000)"


@contextlib.contextmanager
def subreaper():
    """Orphans of this process's children become its own children, as with conmon and the shim."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)


def ended(pid, seconds=30):
    """Waits for a child of ours that `subprocess` does not know; its exit code, negative for a signal."""
    codes = []

    def reaped():
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            codes.append(os.waitstatus_to_exitcode(status))
        return codes

    wait_for(reaped, seconds)
    return codes[0]


def wait_for(condition, seconds=120):
    """Waits until the condition holds; fails the test when it does not in time, which is long, as a lab may be slow. Looking takes at most a
    third of the processor, the rest is for what is waited for."""
    end = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < end, "timed out"
        time.sleep(max(0.05, 2 * (now - begun)))


def alive(pid):
    """Whether a process is there and not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def processes(runtime):
    """Pids of living processes that run the binary for its state root."""
    real = os.path.realpath(runtime.binary)
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                is_for_root = any(each.removeprefix(b"--root=") == os.fsencode(runtime.root) for each in command)
                if alive(entry.name) and os.readlink(entry / "exe") == real and is_for_root:
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def standing():
    """What the host's processes are at: for those that run Chiton's binary each thread, and where in the kernel it is."""
    found = []
    for entry in sorted(pathlib.Path("/proc").iterdir(), key=lambda entry: entry.name.zfill(9)):
        # A process may end while it is looked at; the kernel's own have no program.
        with contextlib.suppress(OSError):
            program = os.readlink(entry / "exe") if entry.name.isdigit() else ""
            if program:
                found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:300]}")
            for task in (entry / "task").iterdir() if program.endswith("/chiton") else ():
                calls = [line.split()[-1].split("+")[0] for line in (task / "stack").read_text().splitlines()]
                found.append(f"    {task.name} {(task / 'comm').read_text().strip()}: {' '.join(calls[:8])}")
    return "\n".join(found)


def cgroups():
    """All cgroups of the host."""
    return {str(path) for path in pathlib.Path("/sys/fs/cgroup").rglob("*") if path.is_dir()}


def left_behind(runtime, cgroups_before):
    """Everything of any container that is still there."""
    left = [f"process {pid}" for pid in processes(runtime)]
    if runtime.root.exists():
        left += [f"state {entry}" for entry in runtime.root.iterdir()]
    mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    left += [f"mount {line}" for line in mounts if str(runtime.root) in line]
    if os.environ.get("CHITON_LAB") == "lab":  # where nobody else makes cgroups
        left += [f"cgroup {path}" for path in cgroups() - cgroups_before]
    return left
