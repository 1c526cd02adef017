"""What memory it takes that a container reads a file of its root: on the host, and in a guest."""

import os
import pathlib
import re
import shutil
import tempfile
import time

from memory import REPETITIONS, SETTLING_SECONDS, memory_of
from verbs import bundle

CACHED_MIB = 200
MIB = 1 << 20
PAGE = 4096
# A file system whose page cache can be told from the files themselves.
DISK = "/scratch"
BUSYBOX = "/bin/busybox"


def measure(verbs, figures):
    """A file of the root is read for the first time: what that takes of memory for each byte of the file, on the host and in a guest."""
    with tempfile.TemporaryDirectory(dir=DISK) as root, verbs.host.shown(root, "/cached"):
        root = pathlib.Path(root)
        root.chmod(0o755)
        (root / "bin").mkdir()
        shutil.copy2(BUSYBOX, root / "bin/busybox")
        for name in ("cat", "dd", "sleep"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "few").write_bytes(bytes(PAGE))
        with open(root / "many", "wb") as file:
            for n in range(CACHED_MIB):
                file.write(bytes([1 + n % 255]) * MIB)
        for kind, readonly in (("read-only", True), ("writable", False)):
            root_of = {"path": "/cached", "readonly": readonly}
            path = bundle(verbs.host, f"{verbs.name}-{kind}", "sleep", "100000", change=lambda config, its=root_of: config.update(root=its))
            runs = [first_read(verbs, path, f"{kind}{n}", root / "many") for n in range(REPETITIONS)]
            what = f"{CACHED_MIB} MiB of a {kind} root read: memory for each byte"
            figures.add(what, verbs.name, [on_host + ram for on_host, ram, _ in runs], "")
            for place, values in zip(("the host's page cache", "guest RAM", "the guest's page cache"), zip(*runs)):
                if any(values):
                    figures.add(f"{what}, {place}", verbs.name, list(values), "")


def first_read(verbs, path, name, many):
    """By how much the host's page cache, the guest's RAM on the host and the guest's page cache grow, over the size of the file."""
    forget(many)
    pid = verbs.detached(path, name)

    def read(file):
        verbs.quiet("exec", name, "dd", f"if={file}", "of=/dev/null", "bs=1M")

    def held():
        inside = verbs.ok("exec", name, "cat", "/proc/meminfo")
        machine = verbs.is_machine(name)
        return cached(pathlib.Path("/proc/meminfo").read_text()), memory_of(pid)[0] if machine else 0, cached(inside) if machine else 0

    # All programs have run, and what a guest does after its start is done.
    read("/few")
    held()
    time.sleep(SETTLING_SECONDS)
    before = held()
    read("/many")
    after = held()
    verbs.quiet("delete", "--force", name)
    return [(late - early) / 1024 / CACHED_MIB for early, late in zip(before, after)]


def cached(meminfo):
    """Pages of files on disks, KiB: without those of tmpfs and of shared memory."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+)", meminfo, re.M))
    return int(fields["Cached"]) - int(fields["Shmem"])


def forget(file):
    """Takes a file out of the page cache, and no other: what is measured beside it keeps its pages."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
