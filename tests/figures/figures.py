"""What a container start costs, counted and not timed: run by `make figures` in the lab under instruction counting, where a
microsecond of virtual time is a thousand executed instructions, whatever else the machine does.

    figures.py CHITON ROOTFS.tar

All that is measured lies on a tmpfs, and the first run is not counted.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))

from chiton import Bundle, Chiton, alive, wait_for  # noqa: E402

RUNS = 5
TRACING = pathlib.Path("/sys/kernel/tracing")


def main():
    binary, rootfs = sys.argv[1:]
    work = pathlib.Path(tempfile.mkdtemp(prefix="chiton-figures-", dir="/tmp"))
    try:
        root = work / "rootfs"
        root.mkdir()
        subprocess.run(["tar", "-xpf", rootfs, "-C", root, "--numeric-owner"], check=True)
        copy = work / "chiton"
        shutil.copy2(binary, copy)
        chiton = Chiton(copy, work / "state")
        bundle = Bundle(work / "bundle", root, ["true"]).save()
        start(chiton, bundle, work)
        phases(chiton, bundle, work)
        exits(chiton, bundle, work)
        memory(chiton, work, root)
    finally:
        shutil.rmtree(work)


def start(chiton, bundle, work):
    """One run; its timeline in millions of instructions by phase."""
    timeline = work / "timeline.json"
    chiton.ok("--timeline", timeline, "run", "--bundle", bundle.path, "figures")
    return {p["phase"]: p["microseconds"] / 1000 for p in json.loads(timeline.read_text())}


def phases(chiton, bundle, work):
    runs = [start(chiton, bundle, work) for _ in range(RUNS)]
    totals = [sum(run.values()) for run in runs]
    print(f"exec of `chiton run` to the container's first instruction, millions of instructions, {RUNS} runs")
    for phase in runs[0]:
        values = [run[phase] for run in runs]
        print(f"   {phase:<30} {min(values):8.2f} to {max(values):8.2f}, median {statistics.median(values):8.2f}")
    print(f"   {'in all':<30} {min(totals):8.2f} to {max(totals):8.2f}, median {statistics.median(totals):8.2f}")


def exits(chiton, bundle, work):
    """VM exits from the first entry to the agent's connection, by the tracepoints of KVM."""
    (TRACING / "trace_clock").write_text("mono")
    (TRACING / "buffer_size_kb").write_text("16384")
    events = ["kvm_exit", "kvm_userspace_exit", "kvm_entry"]
    for event in events:
        (TRACING / "events/kvm" / event / "enable").write_text("1")
    (TRACING / "trace").write_text("")
    run = start(chiton, bundle, work)
    for event in events:
        (TRACING / "events/kvm" / event / "enable").write_text("0")
    length = (run["guest kernel"] + run["agent"]) / 1000
    first, total, user, reasons = None, 0, 0, {}
    for line in (TRACING / "trace").read_text().splitlines():
        found = re.match(r".*\s(\d+\.\d+): (kvm_\w+): (.*)", line)
        if not found:
            continue
        time, event, rest = float(found[1]), found[2], found[3]
        first = time if first is None else first
        if time > first + length:
            break
        if event == "kvm_exit":
            total += 1
            reason = re.search(r"reason (\S+)", rest)
            reason = reason[1] if reason else "?"
            reasons[reason] = reasons.get(reason, 0) + 1
        elif event == "kvm_userspace_exit":
            user += 1
    print(f"VM exits until the agent is ready: {total}, {user} of them to user space")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:8]:
        print(f"   {reason:<30} {count:6}")


def memory(chiton, work, root):
    """PSS of the machine process outside guest RAM, with an idle container."""
    bundle = Bundle(work / "idle", root, ["sleep", "1000"]).save()
    chiton.ok("run", "--detach", "--bundle", bundle.path, "idle", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = chiton.state("idle")["pid"]
    mappings, size = [], 0
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0])
        elif name == "Pss":
            mappings.append((size, int(value.split()[0])))
    guest = max(mappings)
    rest = sum(pss for _, pss in mappings) - guest[1]
    print(f"machine process: PSS outside guest RAM {rest} KiB; guest RAM {guest[0]} KiB, {guest[1]} KiB of it touched")
    chiton.ok("kill", "idle", "KILL")
    wait_for(lambda: not alive(pid))
    chiton.ok("delete", "idle")


main()
