"""Where the instructions of a start go, function by function: `make profile`.

    profile.py run OUT_DIR ROOTFS.tar CHITON              in the lab, under profile.c
    profile.py show OUT_DIR GUEST_SYSTEM_MAP CHITON AGENT  what came of it, by name

Counted is one `chiton run` after another one, from its exec to the first instruction of the container's program.
"""

import bisect
import collections
import ctypes
import mmap
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))

from chiton import Bundle  # noqa: E402
from counting import EXITS, trace  # noqa: E402
from host import Host, libc  # noqa: E402

BEGIN = b"\x0f\x1f\x80BEGN"  # as in profile.c
END = b"\x0f\x1f\x80!END"
RETURN = b"\xc3"
# mov $60, %eax; xor %edi, %edi; syscall
EXIT = b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05"
ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h
PIE = 0x555555554000  # where the kernel puts a position-independent program then
LIBRARIES = 0x7FF000000000
KERNEL = 1 << 63
PHASES = ["until the first KVM_RUN", "guest kernel", "agent and container"]
WORLDS = {"h": "host", "g": "guest"}
SHOWN = 40
# A stretch of boot is shown from this many instructions on.
STRETCH = 100_000


class Marked(Host):
    """What is executed in it begins a profile."""

    def _enter(self, network=None):
        super()._enter(network)
        libc.personality(ADDR_NO_RANDOMIZE)
        self.begin()

    def begin(self):
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(BEGIN + RETURN)
        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def program(code):
    """A program without libraries: an ELF header, one segment, the code (elf(5))."""
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    elf = struct.pack("<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<2I6Q", 1, 5, 0, base, base, size, size, 4096) + code


def run(out, rootfs, chiton):
    out = pathlib.Path(out)
    (out / "lab.symbols").write_text(pathlib.Path("/proc/kallsyms").read_text())
    work = pathlib.Path(tempfile.mkdtemp(prefix="profile-", dir="/tmp"))
    host = Marked(work / "host")
    try:
        root = host.unpack(rootfs)
        (root / "mark").write_bytes(program(END + EXIT))
        (root / "mark").chmod(0o755)
        Bundle(host.path("/bundle"), "/rootfs", ["/mark"]).save()
        binary = host.install(chiton)
        with trace(*EXITS) as events:
            start(host, binary, "traced")
        (out / "exits.txt").write_text("".join(f"{event.name} {event.rest}\n" for event in events))
        start(host, binary, "measured")
    finally:
        host.remove()
        shutil.rmtree(work)


def start(host, binary, name):
    with open(host.path("/run/errors"), "w+b") as errors:
        code = host.popen(binary, "--root", "/run/chiton", "run", "--bundle", "/bundle", name, stderr=errors).wait()
        if code != 0:
            errors.seek(0)
            raise RuntimeError(f"exit {code}: {errors.read().decode()}")


class Symbols:
    """Functions by address."""

    def __init__(self, lines):
        found = (re.match(r"([0-9a-f]+) [tTwW] (\S+)", line) for line in lines)
        table = sorted({(int(each[1], 16), each[2]) for each in found if each})
        self.addresses = [address for address, _ in table]
        self.names = [name for _, name in table]

    def of(self, address):
        at = bisect.bisect_right(self.addresses, address) - 1
        return (self.names[at], self.addresses[at]) if at >= 0 else (f"{address:#x}", address)


def elf_symbols(path):
    """Those of a program, if it has not been stripped."""
    return Symbols(subprocess.run(["nm", "--demangle", path], capture_output=True, text=True, check=False).stdout.replace(" (", "(").splitlines())


def show(out, system_map, chiton, agent):
    out = pathlib.Path(out)
    lab, guest = (Symbols(pathlib.Path(p).read_text().splitlines()) for p in (out / "lab.symbols", system_map))
    programs = {"h": elf_symbols(chiton), "g": elf_symbols(agent)}

    def name(world, address):
        if address >= KERNEL:
            return (lab if world == "h" else guest).of(address)
        if address >= LIBRARIES:
            return "[libraries, vDSO]", LIBRARIES
        return programs[world].of(address - (PIE if world == "h" else 0)) if programs[world].names else ("[program]", 0)

    functions = collections.defaultdict(lambda: [0, 1 << 63])
    for line in (out / "profile.txt").read_text().splitlines():
        phase, world, address, count, first = line.split()
        address = int(address, 16)
        side = WORLDS[world] + (" kernel" if address >= KERNEL else " user")
        function = functions[int(phase), side, name(world, address)[0]]
        function[0] += int(count)
        function[1] = min(function[1], int(first))
    print(f"{sum(count for count, _ in functions.values()) / 1e6:.2f} M instructions in all")
    for phase, title in enumerate(PHASES):
        for side in sorted({key[1] for key in functions if key[0] == phase}):
            rows = sorted(((f[0], f[1], key[2]) for key, f in functions.items() if key[:2] == (phase, side)), reverse=True)
            print(f"\n{title}, {side}: {sum(row[0] for row in rows) / 1e6:.3f} M")
            for count, first, function in rows[:SHOWN]:
                print(f"{count / 1e6:10.3f}  first at {first / 1e6:7.2f}  {function}")
    boot(functions, system_map)
    exits(out, guest)


def exits(out, guest):
    """The VM exits of a whole start, by what the guest was about."""
    counts, user = collections.Counter(), 0
    for line in (out / "exits.txt").read_text().splitlines():
        found = re.search(r"kvm_exit .*reason (\S+) rip (0x[0-9a-f]+)", line)
        if found:
            address = int(found[2], 16)
            counts[found[1], guest.of(address)[0] if address >= KERNEL else "[user]"] += 1
        elif line.startswith("kvm_userspace_exit") and "KVM_EXIT_INTR" not in line:
            user += 1
    print(f"\nVM exits: {sum(counts.values())}, to user space: {user}")
    for (reason, function), count in counts.most_common(SHOWN):
        print(f"{count:6}  {reason:12} {function}")


def boot(functions, system_map):
    """The guest kernel's boot as stretches from one function of its init code to the next."""
    text = pathlib.Path(system_map).read_text()
    begin, end = (int(re.search(rf"([0-9a-f]+) . {name}$", text, re.M)[1], 16) for name in ("_sinittext", "_einittext"))
    init = {m[2] for m in re.finditer(r"([0-9a-f]+) [tT] (\S+)", text) if begin <= int(m[1], 16) < end}
    firsts = sorted((f[1], key[2]) for key, f in functions.items() if key[:2] == (1, "guest kernel") and key[2] in init)
    print("\nguest kernel, from one function of its init code to the next, host included:")
    for (at, function), (following, _) in zip(firsts, firsts[1:]):
        if following - at >= STRETCH:
            print(f"{(following - at) / 1e6:10.3f}  first at {at / 1e6:7.2f}  {function}")


if __name__ == "__main__":
    {"run": run, "show": show}[sys.argv[1]](*sys.argv[2:])
