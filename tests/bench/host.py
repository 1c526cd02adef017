"""A host of a few files on a tmpfs, in which nothing that is measured waits for the outside."""

import contextlib
import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess

MOUNTS = [("proc", "proc"), ("sysfs", "sys"), ("cgroup2", "sys/fs/cgroup")]

# linux/sched.h, sys/mount.h, asm/unistd_64.h
CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000
MS_REC_PRIVATE = 0x44000
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
AT_FDCWD = -100
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4

libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A tmpfs with programs and the libraries they need, and a mount namespace whose root it is; `popen` executes there."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "host", self.root], check=True)
        for name in ("bin", "tmp", "run", "proc", "sys", "dev", "etc"):
            (self.root / name).mkdir()
        for kind, name in MOUNTS:
            subprocess.run(["mount", "-t", kind, kind, self.root / name], check=True)
        subprocess.run(["mount", "--bind", "/dev", self.root / "dev"], check=True)
        self.keeper = self._keep()
        self.namespace = os.open(f"/proc/{self.keeper}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def _keep(self):
        """A process that lives in the host's mount namespace."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                check(libc.unshare(CLONE_NEWNS))
                check(libc.mount(None, b"/", None, MS_REC_PRIVATE, None))
                os.chdir(self.root)
                check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."))
                check(libc.umount2(b".", MNT_DETACH))
                os.write(told, b"1")
                signal.pause()
            finally:
                os._exit(1)
        os.close(told)
        if os.read(ready, 1) != b"1":
            raise RuntimeError("the small host could not be made")
        os.close(ready)
        return pid

    def unpack(self, archive):
        """Puts a root filesystem at /rootfs."""
        root = self.path("rootfs")
        root.mkdir()
        subprocess.run(["tar", "-xpf", archive, "-C", root, "--numeric-owner"], check=True)
        return root

    def remove(self):
        os.close(self.namespace)
        os.kill(self.keeper, signal.SIGKILL)
        os.waitpid(self.keeper, 0)
        subprocess.run(["umount", "--recursive", self.root], check=True)

    @contextlib.contextmanager
    def shown(self, directory, inside):
        """Shows a directory of another file system in it, for as long as this lasts."""
        self.path(inside).mkdir()
        tree = check(libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(directory), OPEN_TREE_CLONE))
        target = os.fsencode(inside)
        try:
            self._within(lambda: libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH))
            yield
            self._within(lambda: libc.umount2(target, MNT_DETACH))
            self.path(inside).rmdir()
        finally:
            os.close(tree)

    def _within(self, call):
        """Makes a system call in its mount namespace, by a process that is gone afterwards."""
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                self._enter()
                os._exit(check(call()))
            os._exit(1)
        if os.waitpid(pid, 0)[1] != 0:
            raise RuntimeError("a mount of the small host could not be changed")

    def install(self, program):
        """Copies a program and what it links to; its path in the host."""
        target = self.root / "bin" / os.path.basename(program)
        shutil.copy2(os.path.realpath(program), target)
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", linked):
            place = self.root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                shutil.copy2(os.path.realpath(library), place)
        return f"/bin/{target.name}"

    def popen(self, *command, network=None, **kwargs):
        """Starts a command in it; `network`: a descriptor of the network namespace that it is to be in."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        kwargs.setdefault("stdout", subprocess.DEVNULL)
        kwargs.setdefault("stderr", subprocess.DEVNULL)
        return subprocess.Popen([str(word) for word in command], env={"PATH": "/bin"}, preexec_fn=lambda: self._enter(network), **kwargs)

    def ok(self, *command, codes=(0,), **kwargs):
        """Runs a command to its end; its output."""
        process = self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
        output, _ = process.communicate()
        if process.returncode not in codes:
            raise RuntimeError(f"{command}: exit {process.returncode}: {output}")
        return output

    def _enter(self, network=None):
        if network is not None:
            check(libc.setns(network, CLONE_NEWNET))
        check(libc.setns(self.namespace, CLONE_NEWNS))

    def path(self, inside):
        """Where the driver of the benchmark sees a path of the host."""
        return self.root / str(inside).lstrip("/")


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
