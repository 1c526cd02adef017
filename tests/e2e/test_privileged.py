"""What root of a guest can try against the host, with every capability, every device and no profile: its kernel as good as taken.

What leads out of a root filesystem is in test_adversarial.py, and what one process of a guest can take from another in
test_isolation.py."""

import os

import pytest

from chiton import alive, only_chiton, ran, wait_for

pytestmark = only_chiton

CAPABILITIES = ["CAP_" + name for name in """AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
    DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
    NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT
    SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM""".split()]

# The result of a call, or the name of its error.
ATTEMPT = """
import ctypes, errno, mmap, random, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what):
    try:
        return what()
    except OSError as e:
        return errno.errorcode[e.errno]
def call(function, *arguments):
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function.__name__)
    return "ok"
def mount(*arguments):
    return attempt(lambda: call(libc.mount, *arguments))
"""


def privileged(config):
    config["process"]["capabilities"] = {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")}
    config["process"]["noNewPrivileges"] = False
    config["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []
    for each in config["mounts"]:
        each["options"] = [option for option in each.get("options", []) if option not in ("ro", "nodev")]


def test_nobody_answers_at_the_ports_of_the_host(container, rootfs):
    """Those that a counter would come to, and others by chance; the machine's control port, and those of a name server, which this
    machine has not got. And nobody comes to a port of the guest."""
    found = ran(container, rootfs, ATTEMPT + """
def dial(port, cid=socket.VMADDR_CID_HOST, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_VSOCK, kind) as s:
        s.settimeout(3)
        s.connect((cid, port))
        return "connected"
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, 5000))
listener.listen()
listener.settimeout(1)
def come():
    try:
        return str(listener.accept())
    except TimeoutError:
        return None
ports = [*range(1000, 1200), *(random.randrange(0xffffffff) for _ in range(50))]
print(json.dumps({
    "host": sorted({attempt(lambda: dial(port)) for port in ports}),
    "others": [attempt(lambda: dial(1024, cid)) for cid in (0, 4, 1 << 20)],
    "packets": attempt(lambda: dial(1024, kind=socket.SOCK_SEQPACKET)),
    "came": come(),
}))
""", privileged)
    assert found["host"] == ["ECONNRESET"], found
    assert "connected" not in [found["packets"], *found["others"]] and found["came"] is None, found


def test_the_guest_has_no_way_to_its_hardware(container, rootfs):
    """No device and no call that shows memory or ports; instructions that leave the guest end the process and not the machine."""
    found = ran(container, rootfs, ATTEMPT + """
def node(major, minor):
    path = f"/dev/shm/{major}-{minor}"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
    return os.open(path, os.O_RDWR)
# mem, kmem, port; kvm, vfio, vhost-vsock; msr, cpuid
nodes = {f"{major}:{minor}": attempt(lambda: node(major, minor))
         for major, minor in ((1, 1), (1, 2), (1, 4), (10, 232), (10, 196), (10, 241), (202, 0), (203, 0))}
# x86_64
numbers = {"iopl": (172, 3), "ioperm": (173, 0x80, 1, 1), "init_module": (175, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0), "kexec_file_load": (320, -1, -1, 0, 0, 0)}
calls = {name: attempt(lambda: call(libc.syscall, *arguments)) for name, arguments in numbers.items()}
def execute(code):
    child = os.fork()
    if child == 0:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code + bytes([0xc3]))  # ret
        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "ok"
instructions = {name: execute(bytes.fromhex(code)) for name, code in {
    "hlt": "f4", "out": "66ba8000ee", "in": "66ba6400ec", "rdmsr": "b974020000" "0f32", "wrmsr": "b974020000" "0f30", "invlpg": "0f0138",
    "mov cr0": "0f22c0", "vmrun": "0f01d8", "vmxon": "f30fc730", "monitor": "0f01c8", "sti": "fb"}.items()}
# A hypercall is for a kernel; whichever of the two this processor has.
hypercalls = [execute(bytes.fromhex("b805000000" + code)) for code in ("0f01d9", "0f01c1")]
print(json.dumps({"nodes": nodes, "calls": calls, "instructions": instructions, "hypercalls": hypercalls, "kcore": os.path.exists("/proc/kcore")}))
""", privileged)
    assert set(found["nodes"].values()) <= {"ENXIO", "ENODEV"}, found
    assert set(found["calls"].values()) == {"ENOSYS"}, found
    assert set(found["instructions"].values()) <= {"SIGSEGV", "SIGILL", "SIGBUS"}, found
    assert set(found["hypercalls"]) <= {"ok", "SIGILL", "SIGSEGV"}, found
    assert not found["kcore"]


@pytest.fixture
def kept(scratch, request):
    """A directory of the host with a file, in a directory with another. Nothing of it may change."""
    above = scratch / f"kept-{request.node.originalname}"
    (above / "shared").mkdir(parents=True)
    (above / "secret").write_text("the host's secret\n")
    (above / "shared/file").write_text("as it was\n")

    def all_of_it():
        return {str(path): (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns,
                            path.read_text() if path.is_file() else sorted(os.listdir(path))) for path in (above, *above.rglob("*"))}
    before = all_of_it()
    yield above
    assert all_of_it() == before
    for path in sorted(above.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    above.rmdir()


def test_a_share_that_is_read_only_on_the_host(container, rootfs, kept):
    """In the guest it can be made writable: the host still says no. Nobody mounts the device again."""
    def change(config):
        privileged(config)
        config["mounts"].append({"destination": "/shared", "type": "bind", "source": str(kept / "shared"), "options": ["bind", "ro"]})
    found = ran(container, rootfs, ATTEMPT + """
MS_REMOUNT, MS_BIND = 32, 4096
os.mkdir("/tree")
mounted = [mount(None, b"/shared", None, MS_REMOUNT | MS_BIND, None), mount(b"chiton", b"/tree", b"virtiofs", 0, None)]
def tries(directory):
    file = directory + "/file"
    yield "write", lambda: os.open(file, os.O_WRONLY)
    yield "append", lambda: os.open(file, os.O_RDWR | os.O_APPEND)
    yield "truncate", lambda: os.truncate(file, 0)
    yield "chmod", lambda: os.chmod(file, 0o4777)
    yield "chown", lambda: os.chown(file, 5, 5)
    yield "utime", lambda: os.utime(file, (0, 0))
    yield "unlink", lambda: os.unlink(file)
    yield "rename", lambda: os.rename(file, directory + "/other")
    yield "link", lambda: os.link(file, directory + "/other")
    yield "symlink", lambda: os.symlink("file", directory + "/other")
    yield "create", lambda: os.open(directory + "/other", os.O_WRONLY | os.O_CREAT)
    yield "mkdir", lambda: os.mkdir(directory + "/other")
    yield "mknod", lambda: os.mknod(directory + "/other", stat.S_IFCHR | 0o600, os.makedev(1, 1))
    yield "xattr", lambda: os.setxattr(file, "user.x", b"x")
    yield "capability", lambda: os.setxattr(file, "security.capability", struct.pack("<5I", 0x2000001, 0xffffffff, 0, 0xffffffff, 0))
results = {name: attempt(what) for name, what in tries("/shared")}
out = {path: attempt(lambda: open(path).read()) for path in ("/shared/../secret", "/shared/../../secret")}
# A handle of what the guest's kernel has never looked up, by its number alone (FILEID_INO64_GEN).
root = os.open("/shared", os.O_RDONLY)
seen = set()
for number in [*range(1, 500), *(random.randrange(1 << 63) for _ in range(200))]:
    handle = struct.pack("<IiIII", 12, 0x81, number >> 32, number & 0xffffffff, 0)
    opened = attempt(lambda: call(libc.open_by_handle_at, root, handle, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    seen.add(opened)
print(json.dumps({"mounted": mounted, "results": results, "out": out, "handles": sorted(seen)}))
""", change)
    assert found["mounted"] == ["ok", "EBUSY"], found
    # A device is refused before anything is looked at.
    assert found["results"].pop("mknod") == "EPERM"
    assert set(found["results"].values()) == {"EROFS"}, found["results"]
    assert set(found["out"].values()) == {"ENOENT"}, found["out"]
    # What is known already, or nothing: not the files of the host that have such numbers.
    assert set(found["handles"]) <= {"ESTALE", "ok"}, found["handles"]


def test_devices_of_the_machine_that_the_guest_resets(chiton, container, rootfs):
    """Drivers let their devices go and take them again, which works; the guest that lets its vsock device go is cut off, and the host
    has no trouble to be rid of it."""
    def change(config):
        privileged(config)
    (rootfs / "reset.py").write_text(ATTEMPT + """
import json, os, sys
devices = "/sys/bus/virtio/devices"
def driver_of(device):
    return os.path.basename(os.path.realpath(f"{devices}/{device}/driver"))
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
found = {}
for device in sorted(os.listdir(devices)):
    found.setdefault(driver_of(device), device)
if sys.argv[1] == "all":
    done = []
    for driver in ("virtio_rng", "virtio_balloon"):
        for _ in range(20):
            write(f"/sys/bus/virtio/drivers/{driver}/unbind", found[driver])
            write(f"/sys/bus/virtio/drivers/{driver}/bind", found[driver])
        done.append(driver)
    os.mknod("/dev/shm/hwrng", 0o20600, os.makedev(10, 183))
    print(json.dumps([done, len(open("/dev/shm/hwrng", "rb", 0).read(16))]))
else:
    driver = next(name for name in found if "vsock" in name)
    write(f"/sys/bus/virtio/drivers/{driver}/unbind", found[driver])
""")
    made = container("sleep", "1000", change=change)
    assert made.output("python3", "/reset.py", "all") == '[["virtio_rng", "virtio_balloon"], 16]\n'
    assert made.output("echo", "there") == "there\n"
    made.exec("python3", "/reset.py", "vsock", timeout=30)
    wait_for(lambda: made.exec("true", timeout=30).returncode != 0)
    made.delete()
    wait_for(lambda: not alive(made.pid))
    assert chiton.status(made.name) is None
