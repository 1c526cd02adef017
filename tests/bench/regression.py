"""Whether a start, or what a container does most often, costs more than the baseline that is committed. Run by `make test` in the lab
under instruction counting.

    regression.py BASELINE.json OUT.json ROOTFS.tar PROGRAMS CHITON

A figure may be 3 % above the baseline. A change that costs more, and is worth it, replaces the baseline with what OUT holds in the same
commit; so does one that saves more. Instructions are executed ones, so neither the machine nor its load matters; compilers and the lab's
kernel do, a little. What the baseline was made with is in it, and is compared when a figure has grown.
"""

import json
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile

import files
import tcp
from counting import EXITS, exits, trace
from figures import Figures
from host import Host
from verbs import Verbs, bundle

RUNS = 2
TOLERANCE = 0.03
# Numbers of fileops' works, and what is looked at of them and of the work with a peer.
FILE_OPERATIONS = (8, 17)
OPERATIONS = ("create, close and unlink", "write 4 KiB over it", "TCP, a byte there and back")
TOOLS = {"rustc": ["rustc", "--version"], "gcc": ["gcc", "--version"], "qemu": ["sed", "-n", "s/^readonly VERSION='\\(.*\\)'/\\1/p", "tests/lab/qemu.sh"]}


def main():
    baseline, out, rootfs, programs, chiton = sys.argv[1:]
    figures = measure(rootfs, [pathlib.Path(programs) / name for name in ("fileops", "peer")], chiton)
    made_with = tools()
    pathlib.Path(out).write_text(json.dumps({"figures": figures, "made with": made_with}, indent=1) + "\n")
    before = json.loads(pathlib.Path(baseline).read_text())
    if before["figures"].keys() != figures.keys():
        sys.exit(f"{baseline} has other figures than these: {', '.join(figures)}")
    grown = []
    for name, value in figures.items():
        change = value / before["figures"][name] - 1
        print(f"{name:40} {value:10} {100 * change:+7.2f} %")
        if change > TOLERANCE:
            grown.append(name)
        elif change < -TOLERANCE:
            print(f"   less than {baseline} says: replace it with {out}")
    if grown:
        for name, version in made_with.items():
            if before["made with"].get(name) != version:
                print(f"the baseline was made with {name} {before['made with'].get(name)}, this with {version}")
        sys.exit(f"more than {TOLERANCE:.0%} above {baseline}: {', '.join(grown)}")


def measure(rootfs, programs, chiton):
    """Millions of instructions and numbers of exits by name, of the cheapest of a few runs: of a machine with the host's memory, and of
    one with 512 MiB, which shows what address space costs. Of a start's phases it has the one that is the guest's alone: how much of
    another the host has done by the program's first instruction, and how much later, its scheduler decides."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="regression-", dir="/tmp"))
    host = Host(work / "host")
    try:
        host.unpack(rootfs)
        verbs = Verbs(host, "chiton", chiton)
        path = bundle(host, "true", "true")
        with trace(*EXITS) as events:
            verbs.quiet("run", "--bundle", path, "exits")
        counted = exits(events)
        runs = [verbs.timeline("run", "--bundle", path, f"phases{n}") for n in range(RUNS)]
        wholes = [verbs.counted("run", "--bundle", path, f"whole{n}").busy for n in range(RUNS)]
        path = bundle(host, "small", "true", change=small)
        smalls = [verbs.counted("run", "--bundle", path, f"small{n}").busy for n in range(RUNS)]
        operations = measure_operations(verbs, programs)
    finally:
        host.remove()
        shutil.rmtree(work)
    return {
        "exec to exit, M": round(min(wholes), 2),
        "exec to exit with 512 MiB, M": round(min(smalls), 2),
        "guest kernel, M": round(min(run["guest kernel"] for run in runs), 2),
        "VM exits": counted.total,
        "VM exits to user space": counted.user,
        **operations,
    }


def measure_operations(verbs, programs):
    """Thousands of instructions of each of OPERATIONS."""
    files.prepare(verbs.host, programs)
    for program in programs:
        verbs.host.install(program)
    figures = Figures()
    files.measure(verbs, figures, FILE_OPERATIONS)
    tcp.measure(verbs, figures)
    return {f"{name}, k": round(statistics.median(figures.values[name]["of"][verbs.name]), 2) for name in OPERATIONS}


def small(config):
    config["annotations"] = {"dev.chiton.memory": "512M"}


def tools():
    found = {"lab's kernel": platform.release()}
    for name, command in TOOLS.items():
        try:
            found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError):
            found[name] = "none"
    return found


if __name__ == "__main__":
    main()
