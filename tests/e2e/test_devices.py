"""Devices: the nodes of the configuration, and block devices of the host."""

import contextlib
import ctypes
import os
import pathlib
import struct
import subprocess

import pytest

from chiton import only_chiton, ran, wait_for
from terminals import ConsoleSocket

SIZE = 8 << 20


@pytest.fixture
def loop(scratch, request):
    """Makes loop devices of the host: their path and number."""
    made = []
    # Where it is built in there is nothing to load.
    subprocess.run(["modprobe", "loop"], check=False)

    def loop():
        file = scratch / f"disk-{request.node.name}-{len(made)}"
        with open(file, "wb") as f:
            f.truncate(SIZE)
        done = subprocess.run(["losetup", "--find", "--show", file], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        path = done.stdout.strip()
        made.append((path, file))
        number = os.stat(path).st_rdev
        return path, os.major(number), os.minor(number)
    yield loop
    for path, file in made:
        subprocess.run(["losetup", "--detach", path], check=True)
        file.unlink()


def test_nodes_of_the_configuration(container, rootfs):
    """Of each type, with their mode and owner; the usual ones are there in any case, and work."""
    def change(config):
        config["linux"]["devices"] = [
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6},
            {"path": "/dev/deep/er/unbuffered", "type": "u", "major": 1, "minor": 3},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 7},
            {"path": "/dev/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o600},
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666},
        ]
        config["linux"]["resources"]["devices"].append({"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"})
    found = ran(container, rootfs, """
out = {}
for path in ("mine", "deep/er/unbuffered", "pipe", "full", "null", "zero", "random", "urandom", "tty"):
    s = os.stat(f"/dev/{path}")
    out[path] = [stat.filemode(s.st_mode), s.st_uid, s.st_gid, os.major(s.st_rdev), os.minor(s.st_rdev)]
out["read"] = open("/dev/mine", "rb").read(2).hex()
os.close(os.open("/dev/fuse", os.O_RDWR))
print(json.dumps(out))
""", change)
    assert found == {
        "mine": ["crw-r-----", 5, 6, 1, 5], "deep/er/unbuffered": ["crw-rw-rw-", 0, 0, 1, 3],
        "pipe": ["prw--w--w-", 7, 0, 0, 0], "full": ["crw-------", 0, 0, 1, 7],
        "null": ["crw-rw-rw-", 0, 0, 1, 3], "zero": ["crw-rw-rw-", 0, 0, 1, 5], "random": ["crw-rw-rw-", 0, 0, 1, 8],
        "urandom": ["crw-rw-rw-", 0, 0, 1, 9], "tty": ["crw-rw-rw-", 0, 0, 5, 0], "read": "0000"}


@only_chiton  # runc binds the host's nodes, and mode and owner are theirs
def test_nodes_where_none_can_be_made(container, rootfs):
    """In a user namespace, and on the share: bound, with the mode and owner of the configuration."""
    def change(config):
        linux = config["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 5}, {"containerID": 5, "hostID": 50, "size": 5}]
        config["process"]["user"] = {"uid": 1, "gid": 6}
        mine = {"type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6}
        linux["devices"] = [{"path": "/dev/mine", **mine}, {"path": "/mine", **mine, "fileMode": 0o604, "uid": 7}]
    found = ran(container, rootfs, """
out = {}
for path in ("/dev/mine", "/mine", "/dev/null"):
    s = os.stat(path)
    out[path] = [stat.filemode(s.st_mode), s.st_uid, s.st_gid, os.major(s.st_rdev), os.minor(s.st_rdev)]
out["read"] = open("/dev/mine", "rb").read(2).hex()
print(json.dumps(out))
""", change)
    assert found == {"/dev/mine": ["crw-r-----", 5, 6, 1, 5], "/mine": ["crw----r--", 7, 6, 1, 5],
                     "/dev/null": ["crw-rw-rw-", 0, 0, 1, 3], "read": "0000"}


def test_devices_that_the_guest_does_not_have_are_refused_by_name(chiton, bundle):
    made = bundle("true")
    made.config["linux"]["devices"] = [{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1},
                                       {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]
    done = chiton("run", "--bundle", made.save().path, "refused")
    assert done.returncode == 1 and "/dev/mem" in done.stderr and "/dev/kvm" in done.stderr, done.stderr


def test_a_block_device_that_does_not_exist(chiton, bundle):
    made = bundle("true")
    made.config["linux"]["devices"] = [{"path": "/dev/none", "type": "b", "major": 259, "minor": 77777}]
    done = chiton("run", "--bundle", made.save().path, "refused")
    assert done.returncode == 1 and "block device 259:77777" in done.stderr, done.stderr


def test_block_devices(container, rootfs, loop):
    """What one side writes the other reads; the device rules hold, by the numbers of the host."""
    (first, *number), (second, *second_number), (third, *third_number) = loop(), loop(), loop()
    with open(first, "r+b") as disk:
        disk.write(b"from the host")

    def change(config):
        def device(path, major, minor, **more):
            return {"path": path, "type": "b", "major": major, "minor": minor} | more

        def rule(major, minor, access):
            return {"allow": True, "type": "b", "major": major, "minor": minor, "access": access}
        config["linux"]["devices"] = [device("/dev/disks/first", *number, fileMode=0o640, uid=3, gid=4),
                                      device("/dev/second", *second_number), device("/dev/third", *third_number)]
        config["linux"]["resources"]["devices"] += [rule(*number, "rwm"), rule(*second_number, "r")]
        # Making file systems and mounting them is the container's own affair.
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind] = [*config["process"]["capabilities"][kind], "CAP_SYS_ADMIN"]
    found = ran(container, rootfs, """
def attempt(what):
    try:
        return what() or "ok"
    except OSError as e:
        return e.strerror
s = os.stat("/dev/disks/first")
fd = os.open("/dev/disks/first", os.O_RDWR)
out = {"node": [stat.filemode(s.st_mode), s.st_uid, s.st_gid], "size": os.lseek(fd, 0, os.SEEK_END),
       "read": os.pread(fd, 13, 0).decode()}
os.pwrite(fd, b"from the guest", 4 << 20)
os.pwrite(fd, bytes(range(256)) * 4096, 1 << 20)
os.fsync(fd)
out["read back"] = os.pread(fd, 256 * 4096, 1 << 20) == bytes(range(256)) * 4096
out["beyond"] = attempt(lambda: os.pwrite(fd, b"x", 8 << 20))
out["second"] = attempt(lambda: os.close(os.open("/dev/second", os.O_RDONLY)))
out["second for writing"] = attempt(lambda: os.close(os.open("/dev/second", os.O_RDWR)))
out["third"] = attempt(lambda: os.close(os.open("/dev/third", os.O_RDONLY)))
print(json.dumps(out))
""", change)
    assert found == {"node": ["brw-r-----", 3, 4], "size": SIZE, "read": "from the host", "read back": True,
                     "beyond": "No space left on device", "second": "ok",
                     "second for writing": "Operation not permitted", "third": "Operation not permitted"}
    with open(first, "rb") as disk:
        content = disk.read()
    assert content[:13] == b"from the host" and content[4 << 20:][:14] == b"from the guest"
    assert content[1 << 20:2 << 20] == bytes(range(256)) * 4096


@only_chiton
def test_a_block_device_read_only_for_the_rules_is_so_on_the_host(container, loop):
    _, major, minor = loop()

    def change(config):
        config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
        config["linux"]["resources"]["devices"].append({"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"})
    made = container("sleep", "1000", change=change)
    flags = []
    for entry in os.listdir(f"/proc/{made.pid}/fd"):
        try:
            target = os.readlink(f"/proc/{made.pid}/fd/{entry}")
        except FileNotFoundError:  # of a file that the guest has closed
            continue
        if "disk0" in target:
            with open(f"/proc/{made.pid}/fdinfo/{entry}") as info:
                flags += [int(line.split()[1], 8) & os.O_ACCMODE for line in info if line.startswith("flags")]
    assert flags == [os.O_RDONLY]
    assert made.output("cat", "/sys/block/vda/ro") == "1\n"


def test_a_file_system_on_a_block_device(container, rootfs, loop):
    path, major, minor = loop()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path], check=True)

    def change(config):
        config["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
        config["linux"]["resources"]["devices"].append({"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"})
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind] = [*config["process"]["capabilities"][kind], "CAP_SYS_ADMIN"]
    made = container("sh", "-ec", "mkdir /data; mount -t ext4 /dev/disk /data; echo kept >/data/file; umount /data; mount -t ext4 /dev/disk /data; cat /data/file; umount /data", change=change)
    made.ends()
    assert (made.bundle.path / "output").read_text() == "kept\n"
    made.delete()
    mounted = rootfs / "mnt"
    subprocess.run(["mount", path, mounted], check=True)
    try:
        assert (mounted / "file").read_text() == "kept\n"
    finally:
        subprocess.run(["umount", mounted], check=True)


@contextlib.contextmanager
def denied(name):
    """A cgroup in which no device may be opened: a BPF program (linux/bpf.h) says no to each."""
    def bpf(command, attributes):
        buffer = ctypes.create_string_buffer(attributes, 128)
        fd = ctypes.CDLL(None, use_errno=True).syscall(321, command, buffer, len(buffer))
        assert fd >= 0, os.strerror(ctypes.get_errno())
        return fd

    cgroup = pathlib.Path("/sys/fs/cgroup") / name
    cgroup.mkdir()
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xb7, 0, 0, 0, 0x95, 0, 0, 0))  # r0 = 0; exit
    license = ctypes.create_string_buffer(b"Apache-2.0")
    # BPF_PROG_LOAD of a BPF_PROG_TYPE_CGROUP_DEVICE; BPF_PROG_ATTACH as BPF_CGROUP_DEVICE with BPF_F_ALLOW_MULTI
    program = bpf(5, struct.pack("<IIQQ", 15, 2, ctypes.addressof(code), ctypes.addressof(license)))
    directory = os.open(cgroup, os.O_DIRECTORY)
    bpf(8, struct.pack("<IIII", directory, program, 6, 2))
    os.close(directory)
    os.close(program)
    yield cgroup
    cgroup.rmdir()


@only_chiton  # runc opens devices when it is in the cgroup
@pytest.mark.timeout(200)
def test_device_rules_of_the_cgroup_above_are_not_the_machines(container, rootfs):
    """A client may have put some there that know neither /dev/kvm nor /dev/null. The container has the guest's devices, by its own rules."""
    with denied("chiton-denied") as above:
        attempt = f"echo 0 >{above}/cgroup.procs; : </dev/null"
        done = subprocess.run(["sh", "-c", attempt], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "Operation not permitted" in done.stderr, done.stderr

        def change(config):
            config["linux"]["cgroupsPath"] = "/chiton-denied/plain"
        plain = container("sleep", "1000", change=change)
        assert plain.cgroup == above / "plain"
        assert plain.output("sh", "-c", "echo gone >/dev/null; head -c 2 /dev/zero | od -An -tx1") == " 00 00\n"
        plain.verb("exec", "--detach", "sh", "-c", "echo made >/made")
        wait_for(lambda: (rootfs / "made").exists() and (rootfs / "made").read_text() == "made\n")
        plain.delete()

        def change(config):
            config["linux"]["cgroupsPath"] = "/chiton-denied/terminal"
            config["process"]["terminal"] = True
            config["process"]["env"] += ["PS1=guest:", "TERM=xterm"]
        with contextlib.closing(ConsoleSocket()) as console:
            typed = container("sh", change=change, verb=("run", "--detach", "--console-socket", console.path))
            terminal = console.terminal()
            terminal.expect("guest:")
            assert "/dev/pts/" in terminal.command("tty")
            typed.delete()
