"""Kernel and initramfs of the lab, made once from Debian packages and kept in the cache.

cache/lab/kernel/<package>/   the unpacked kernel package, with its module dependencies computed
cache/lab/<hash>/             initrd: busybox, the `init` beside this file, the modules needed to start
cache/qemu/<hash>/            QEMU, made by qemu.sh from Debian's source

All appear by renaming a finished directory, so two builds at once are safe.
"""

import glob
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass

HERE = os.path.dirname(os.path.realpath(__file__))
# The plain flavour: the cloud flavour has no 9p. Unsigned: the image as such, not a wrapper of it.
KERNEL_SERIES = "linux-image-6.12."
KERNEL_NAME = re.compile(r"linux-image-6\.12\.(\d+)\+deb\d+-amd64-unsigned")
# Loaded from the initramfs, with what they depend on, by the list that names them; any other can be loaded later.
MODULES = {"first": ("9p", "9pnet_virtio", "overlay", "virtio_blk", "ext4"), "later": ("kvm_amd",)}
# command (or file) -> Debian package
NEEDS = {
    # For its firmware, and the libraries of the one in the cache.
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "mkfs.ext4": "e2fsprogs",
}


class LabError(Exception):
    """The lab itself cannot be set up or has failed; the text says what and where."""


@dataclass(frozen=True)
class Image:
    """QEMU and what it starts: paths of the kernel and the initramfs, and the module tree for /lib/modules."""

    qemu: str
    kernel: str
    initrd: str
    modules: str
    release: str


def cache_dir():
    """The directory of everything expensive that the tests make."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(os.environ.get("CHITON_CACHE") or os.path.join(base, "chiton"), "lab")
    os.makedirs(path, exist_ok=True)
    return path


def program(name):
    """Path of a program; the system directories count even where PATH lacks them."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if not found:
        raise LabError(f"{name} is not installed (Debian package {NEEDS.get(name, name)})")
    return found


def prepare(say):
    """Makes the image, or finds it in the cache. `say` is called with a line before anything slow."""
    _install_missing(say)
    kernel_dir = _kernel(say)
    vmlinuz = glob.glob(os.path.join(kernel_dir, "boot", "vmlinuz-*"))[0]
    release = os.path.basename(vmlinuz).removeprefix("vmlinuz-")
    return Image(
        qemu=_qemu(),
        kernel=vmlinuz,
        initrd=_initrd(kernel_dir, release),
        modules=os.path.join(kernel_dir, "lib", "modules", release),
        release=release,
    )


def _qemu():
    made = subprocess.run([os.path.join(HERE, "qemu.sh")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise LabError("QEMU cannot be made")
    return made.stdout.strip()


def _run(*command, **kwargs):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def _install_missing(say):
    missing = []
    for name, package in NEEDS.items():
        try:
            program(name)
        except LabError:
            missing.append(package)
    if not missing:
        return
    if os.geteuid() != 0:
        raise LabError(f"install these Debian packages first: {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    install = ("apt-get", "install", "-y", "--no-install-recommends", *missing)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    try:
        _run(*install, env=environment)
    except LabError:  # the package lists may be absent or old
        _run("apt-get", "update")
        _run(*install, env=environment)


def _newest(names):
    """The newest of kernel package names, or None."""
    found = [(int(match[1]), name) for name in names if (match := KERNEL_NAME.fullmatch(name))]
    return max(found)[1] if found else None


def _kernel(say):
    root = os.path.join(cache_dir(), "kernel")
    os.makedirs(root, exist_ok=True)
    have = _newest(os.listdir(root))
    if have:
        return os.path.join(root, have)
    names = ("apt-cache", "pkgnames", KERNEL_SERIES)
    package = _newest(_run(*names).split())
    if not package:
        say("updating the package lists")
        _run("apt-get", "update")
        package = _newest(_run(*names).split())
    if not package:
        raise LabError(f"no package {KERNEL_SERIES}*-amd64-unsigned in the configured package sources")
    say(f"fetching the kernel of the lab, {package}")
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=root) as work:
        tree = os.path.join(work, "tree")
        _download(package, work)
        (deb,) = glob.glob(os.path.join(work, "*.deb"))
        _run("dpkg", "-x", deb, tree)
        (release,) = os.listdir(os.path.join(tree, "lib", "modules"))
        _run(program("depmod"), "-b", tree, release)
        return _publish(tree, os.path.join(root, package))


def _download(package, directory):
    # As the calling user: the sandbox user of apt cannot write here.
    command = ("apt-get", "download", "-o", "APT::Sandbox::User=root", package)
    try:
        _run(*command, cwd=directory)
    except LabError:  # an old package list names versions that are gone
        _run("apt-get", "update")
        _run(*command, cwd=directory)


def _publish(finished, target):
    """Renames a finished directory into place; one that came first is as good."""
    os.chmod(finished, 0o755)
    try:
        os.rename(finished, target)
    except OSError:
        if not os.path.isdir(target):
            raise
    return target


def _initrd(kernel_dir, release):
    busybox = program("busybox")
    digest = hashlib.sha256()
    for path in (os.path.join(HERE, "init"), os.path.join(HERE, "image.py"), busybox):
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    digest.update(os.path.basename(kernel_dir).encode())
    root = cache_dir()
    target = os.path.join(root, digest.hexdigest()[:16])
    if not os.path.isdir(target):
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=root) as work:
            tree = os.path.join(work, "tree")
            os.mkdir(tree)
            with open(os.path.join(tree, "initrd"), "wb") as out:
                _write_initrd(out, busybox, kernel_dir, release)
            _publish(tree, target)
    return os.path.join(target, "initrd")


def _write_initrd(out, busybox, kernel_dir, release):
    archive = Newc(out)
    for directory in ("dev", "proc", "sys", "bin", "lab", "lab/modules"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name, source in (("bin/busybox", busybox), ("init", os.path.join(HERE, "init"))):
        with open(source, "rb") as file:
            archive.add(name, stat.S_IFREG | 0o755, file.read())
    for list_name, modules in MODULES.items():
        names = []
        for path in _with_dependencies(modules, kernel_dir, release):
            names.append(os.path.basename(path).removesuffix(".xz"))
            with (lzma.open if path.endswith(".xz") else open)(path, "rb") as file:
                archive.add(f"lab/modules/{names[-1]}", stat.S_IFREG | 0o644, file.read())
        archive.add(f"lab/modules/{list_name}", stat.S_IFREG | 0o644, ("\n".join(names) + "\n").encode())
    archive.end()


def _with_dependencies(modules, kernel_dir, release):
    """Paths of modules and of what they need, in the order of insertion."""
    order = []
    for name in modules:
        shown = _run(program("modprobe"), "-d", kernel_dir, "-S", release, "--show-depends", name)
        for line in shown.splitlines():
            kind, path = line.split()[:2]
            if kind == "insmod" and path not in order:
                order.append(path)
    return order


class Newc:
    """Writer of the cpio format `newc` (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self, out):
        self.out = out
        self.inode = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.inode += 1
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, nlink, mtime, size, device (2), rdev (2), name size, checksum
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self.out.write(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))

    def end(self):
        self.add("TRAILER!!!", 0)
