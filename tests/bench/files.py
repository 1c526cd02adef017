"""What file operations cost in a running container."""

import itertools
import statistics

from counting import EXITS, IDLE_ONLY, SCHEDULER, exits, notifications, trace, work
from verbs import bundle

RUNS = 3
FILES = 200
LARGE_MIB = 16
NO_SUCH_WORK = 3
DROP = "/proc/sys/vm/drop_caches"


def prepare(host, programs):
    """What is measured with, in the root filesystem that all runtimes use."""
    place = host.path("/rootfs/bench")
    (place / "many").mkdir(parents=True)
    for n in range(FILES):
        (place / "many" / f"{n:03}").write_bytes(bytes([1 + n]) * 8192)
    (place / "large").write_bytes(bytes(range(256)) * (LARGE_MIB << 12))
    for program in programs:
        (place / program.name).write_bytes(program.read_bytes())
        (place / program.name).chmod(0o755)


def measure(verbs, figures, numbers=None):
    """All of fileops' works, or those of some numbers."""
    path = bundle(verbs.host, f"{verbs.name}-files", "sleep", "100000", change=writable_sysctls)
    libraries = verbs.host.path("/rootfs/usr/lib/x86_64-linux-gnu").glob("*.so*")
    library = max((each for each in libraries if not each.is_symlink()), key=lambda each: each.stat().st_size)
    command = ["/bench/fileops", "/bench", f"/usr/lib/x86_64-linux-gnu/{library.name}", "/usr/bin/python3"]
    verbs.detached(path, "files")
    for number in numbers or itertools.count():
        if not one(verbs, figures, [*command, number]):
            break
    verbs.quiet("delete", "--force", "files")


def one(verbs, figures, command):
    """Some work, several times. Whether there is work of this number."""
    machine = verbs.is_machine("files")
    if machine:
        command.append(DROP)
    figures_of = {}
    for n in range(RUNS + 1):
        with trace(*SCHEDULER, "kvm/kvm_cpuid", filters=IDLE_ONLY) as events:
            output = verbs.ok("exec", "files", *command, codes=(0, NO_SUCH_WORK))
        if not output:
            return False
        if n == 0:
            continue  # the first run is not counted
        for each in work(output, events):
            figures_of.setdefault(each.name, []).append(each)
    counted = []
    if machine:
        with trace(*SCHEDULER, *EXITS, "kvm/kvm_cpuid", "kvm/kvm_mmio", filters=IDLE_ONLY) as events:
            output = verbs.ok("exec", "files", *command)
        counted = [(each, each.inside(events)) for each in work(output, events)]
    for name, runs in figures_of.items():
        busy = [each.busy / each.count * 1e3 for each in runs]
        figures.add(name, verbs.name, busy, "k")
        idle = [each.idle / each.count * 1e3 for each in runs]
        if statistics.median(idle) > 0.05 * statistics.median(busy):
            figures.add(f"{name}, idle", verbs.name, idle, "k")
    for each, inside in counted:
        add_exits(figures, verbs, each, inside)
    return True


def writable_sysctls(config):
    config["linux"]["readonlyPaths"].remove("/proc/sys")


def add_exits(figures, verbs, each, events):
    counted = exits(events)
    figures.add(f"{each.name}: VM exits", verbs.name, [counted.total / each.count], "")
    figures.add(f"{each.name}: VM exits to user space", verbs.name, [counted.user / each.count], "")
    figures.add(f"{each.name}: notifications", verbs.name, [notifications(events) / each.count], "")
