"""What it costs a virtual machine monitor to boot our kernel with an init that does nothing, beside what it costs Chiton.

A monitor is a shell script that is executed as

    SCRIPT KERNEL INITRAMFS MIB COMMAND_LINE

and becomes (`exec`) the monitor, which ends when the guest resets. A line `# needs: FILE...` in it names all that it uses: programs, which
are in PATH then, and other files, which keep their paths. KERNEL has both ways in: the 64-bit one and PVH's.
"""

import pathlib
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "lab"))

from counting import EXITS, IDLE_ONLY, MARK, REQUESTS, SCHEDULER, between, exits, not_ours, trace  # noqa: E402
from image import Newc  # noqa: E402
from verbs import bundle  # noqa: E402

REPETITIONS = 3
MIB = 512
# As guest-kernel/README.md has it, without the devices.
COMMAND_LINE = "reboot=t rcupdate.rcu_expedited=1 tsc=reliable swiotlb=noforce noreplace-smp dummy.numdummies=0 movable_node rootfstype=ramfs"
FIRST_RUN = "boot: exec to the first KVM_RUN"
KERNEL = "boot: first KVM_RUN to the guest's first instruction in user mode"
MARKED = {"kvm_cpuid": "function == 0x4d41524b"}

PT_LOAD, PT_NOTE = 1, 4
PHDR64, PHDR32 = "<IIQQQQQQ", "<8I"
XEN_ELFNOTE_PHYS32_ENTRY = 18


def prepare(host, kernel, programs):
    """The kernel and the initramfs that all monitors boot."""
    place = host.path("/boot")
    place.mkdir()
    (place / "kernel").write_bytes(with_pvh(pathlib.Path(kernel).read_bytes(), (programs / "pvh").read_bytes()))
    with open(place / "initramfs", "wb") as out:
        archive = Newc(out)
        archive.add("init", 0o100755, (programs / "init").read_bytes())
        archive.end()
    host.install("/bin/sh")


def with_pvh(kernel, start):
    """The kernel's ELF image with the code of pvh.c, itself one, and the note that points to it."""
    image = bytearray(kernel)
    count, = struct.unpack_from("<H", image, 56)
    table, = struct.unpack_from("<Q", image, 32)
    first = min(struct.unpack_from(PHDR64, image, table + 56 * n)[2] for n in range(count))

    def add(kind, flags, address, data, size):
        nonlocal count
        image.extend(bytes(-len(image) % 4096))
        if table + 56 * (count + 1) > first:
            raise ValueError("the kernel's image has no place for another program header")
        struct.pack_into(PHDR64, image, table + 56 * count, kind, flags, len(image), address, address, len(data), size, 4)
        image.extend(data)
        count += 1

    begin, headers = struct.unpack_from("<II", start, 24)
    for n in range(struct.unpack_from("<H", start, 44)[0]):
        kind, offset, _, address, length, size, flags, _ = struct.unpack_from(PHDR32, start, headers + 32 * n)
        if kind == PT_LOAD:
            add(PT_LOAD, flags, address, start[offset:offset + length], size)
    note = struct.pack("<III4sQ", 4, 8, XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", begin)
    add(PT_NOTE, 4, 0, note, len(note))
    struct.pack_into("<H", image, 56, count)
    return image


class Monitor:
    """A script on the small host."""

    def __init__(self, host, name, script):
        self.host, self.name = host, name
        self.script = host.path(f"/bin/vmm-{name}")
        shutil.copy2(script, self.script)
        for line in self.script.read_text().splitlines():
            if line.startswith("# needs:"):
                for needed in map(pathlib.Path, line.split()[2:]):
                    self._install(needed)

    def _install(self, path):
        if path.stat().st_mode & 0o111:
            self.host.install(path)
        else:
            target = self.host.path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def boot(self):
        """Boots the guest to its end; the monitor's pid."""
        with open(self.host.path("/run/errors"), "w+b") as errors:
            process = self.host.popen(f"/bin/{self.script.name}", "/boot/kernel", "/boot/initramfs", MIB, COMMAND_LINE, stderr=errors)
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"{self.name}: exit {process.returncode}: {errors.read().decode()}")
        return process.pid

    def measure(self, figures):
        self.boot()
        marks, ends = [], []
        for _ in range(REPETITIONS):
            with trace(*SCHEDULER, "kvm/kvm_cpuid", filters=IDLE_ONLY | MARKED) as events:
                pid = self.boot()
            begin = executed(events, pid)
            marks.append(between(events, begin, marked(events)))
            ends.append(between(events, begin, next(e.time for e in events if e.name == "sched_process_exit" and e.pid == pid)))
        runs = first_runs(figures, self.name, self.boot)
        figures.add(KERNEL, self.name, [mark.busy - run.busy for mark, run in zip(marks, runs)])
        figures.add_counts("boot: exec to the guest's first instruction in user mode", self.name, marks)
        figures.add_counts("boot: exec to exit", self.name, ends)
        with trace(*EXITS, "kvm/kvm_cpuid", filters=MARKED) as events:
            self.boot()
        end = marked(events)
        figures.add_exits("boot until user mode", self.name, exits([e for e in events if e.time <= end and e.name != "kvm_cpuid"]))


def chiton(verbs, figures):
    """The same moments of `chiton run`, whose timeline says when its agent's first instruction was."""
    path = bundle(verbs.host, f"{verbs.name}-boot", "true")
    verbs.quiet("run", "--bundle", path, "boot")
    first_runs(figures, verbs.name, lambda: verbs.quiet("run", "--bundle", path, "boot"))
    kernels, counts = [], []
    for _ in range(REPETITIONS):
        kernels.append(verbs.timeline("run", "--bundle", path, "boot")["guest kernel"])
    figures.add(KERNEL, verbs.name, kernels)
    for _ in range(REPETITIONS):
        with trace(*EXITS, "kvm/kvm_entry") as events:
            kernel = verbs.timeline("run", "--bundle", path, "boot")["guest kernel"]
        begin = next(e.time for e in events if e.name == "kvm_entry")
        counts.append(exits([e for e in events if e.time <= begin + kernel / 1e3 and e.name != "kvm_entry"]))
    counts.sort(key=lambda each: each.total)
    figures.add_exits("boot until user mode", verbs.name, counts[len(counts) // 2])


def first_runs(figures, name, boot):
    """From exec to the first KVM_RUN: instructions, and what is asked of the host's kernel."""
    runs, asked = [], []
    for _ in range(REPETITIONS):
        with trace(*SCHEDULER, "kvm/kvm_entry", filters=IDLE_ONLY) as events:
            pid = boot()
        runs.append(between(events, executed(events, pid), first_entry(events)))
    for _ in range(REPETITIONS):
        with trace(*SCHEDULER, *REQUESTS, "kvm/kvm_entry", filters=IDLE_ONLY | not_ours()) as events:
            pid = boot()
        names = [e.name for e in events if executed(events, pid) <= e.time <= first_entry(events)]
        asked.append((names.count("sys_enter"), names.count("page_fault_user") + names.count("page_fault_kernel")))
    figures.add_counts(FIRST_RUN, name, runs)
    calls, faults = zip(*asked)
    figures.add(f"{FIRST_RUN}: system calls", name, calls, "")
    figures.add(f"{FIRST_RUN}: page faults", name, faults, "")
    return runs


def executed(events, pid):
    """When a process became what it is."""
    return [e.time for e in events if e.name == "sched_process_exec" and e.pid == pid][-1]


def first_entry(events):
    return next(e.time for e in events if e.name == "kvm_entry")


def marked(events):
    for event in events:
        if event.name == "kvm_cpuid" and MARK.search(event.rest):
            return event.time
    raise RuntimeError("the guest has not come to its init")
