"""What containers hold of memory, and what they cost while they do nothing."""

import pathlib
import re
import statistics
import subprocess
import time
from dataclasses import dataclass

from counting import EXITS, IDLE_ONLY, SCHEDULER, between, exits, trace
from verbs import bundle

IDLE_CONTAINERS = 20
SETTLING_SECONDS = 20
IDLE_SECONDS = 10
REPETITIONS = 3
LOAD_MIB = 256


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-idle", "sleep", "100000")
    idle(verbs, figures, path)
    given_back(verbs, figures, path)


def idle(verbs, figures, path):
    """Containers that do nothing: their memory, and what they cost while they wait."""
    before = available()
    pids = [verbs.detached(path, f"idle{n}") for n in range(IDLE_CONTAINERS)]
    time.sleep(1)
    after = available()
    for field in before:
        sign = 1 if field in TABLES else -1
        figures.add(f"{IDLE_CONTAINERS} idle containers: {field} each", verbs.name,
                    [round(sign * (after[field] - before[field]) / IDLE_CONTAINERS)], "KiB")
    figures.add(f"{IDLE_CONTAINERS} idle containers: PSS each", verbs.name, [round(statistics.mean(map(pss, pids)))], "KiB")
    if verbs.is_machine("idle0"):
        guest, others = memory_of(pids[0])
        figures.add("machine process: PSS outside guest RAM", verbs.name, [others], "KiB")
        figures.add("machine process: guest RAM touched", verbs.name, [guest], "KiB")
    # What a guest has to tell of free memory after its start, it has told by then.
    time.sleep(SETTLING_SECONDS)
    with trace(*SCHEDULER, *EXITS, filters=IDLE_ONLY) as events:
        time.sleep(IDLE_SECONDS)
    counted = exits(events)
    busy = between(events, events[0].time, events[-1].time).busy if events else 0.0
    figures.add("idle container: instructions per second", verbs.name, [round(busy / IDLE_SECONDS / IDLE_CONTAINERS, 4)])
    figures.add("idle container: VM exits per second", verbs.name, [round(counted.total / IDLE_SECONDS / IDLE_CONTAINERS, 2)], "")
    for reason, count in counted.reasons.items():
        figures.add(f"idle container: VM exits per second, {reason}", verbs.name, [round(count / IDLE_SECONDS / IDLE_CONTAINERS, 2)], "")
    for n in range(IDLE_CONTAINERS):
        verbs.quiet("delete", "--force", f"idle{n}")


def given_back(verbs, figures, path):
    """A program takes memory and gives it up again: what is missing on the host then, and some seconds later."""
    moments = {"while it is used": [], "when it has been given up": [], f"{IDLE_SECONDS} s later": []}
    guests = []
    for n in range(REPETITIONS):
        name = f"load{n}"
        pid = verbs.detached(path, name)
        time.sleep(SETTLING_SECONDS)
        before = free()
        process = verbs.popen("exec", name, "/bench/load", "take", LOAD_MIB, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if process.stdout.readline() != b"taken\n":
            raise RuntimeError(f"{verbs.name}: no memory was taken")
        found = [free()]
        process.stdin.close()
        process.wait()
        found.append(free())
        time.sleep(IDLE_SECONDS)
        found.append(free())
        for runs, left in zip(moments.values(), found):
            runs.append((before - left) / 1024)
        if verbs.is_machine(name):
            guests.append(memory_of(pid)[0] / 1024)
        verbs.quiet("delete", "--force", name)
    for moment, runs in moments.items():
        figures.add(f"{LOAD_MIB} MiB used and given up: less free, {moment}", verbs.name, runs, "MiB")
    if guests:
        figures.add(f"{LOAD_MIB} MiB used and given up: guest RAM touched, {IDLE_SECONDS} s later", verbs.name, guests, "MiB")


# What grows with what the kernel keeps; SecPageTables are those of KVM.
TABLES = ("PageTables", "SecPageTables", "Slab")


def available():
    """Fields of /proc/meminfo, KiB."""
    lines = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return {name: int(lines[name].split()[0]) for name in ("MemAvailable", "MemFree", *TABLES)}


def free():
    """Memory that is free on the host, KiB: with the pages on lists of a CPU, tens of MiB that MemFree leaves out."""
    listed = re.findall(r"^\s+count:\s+(\d+)", pathlib.Path("/proc/zoneinfo").read_text(), re.M)
    return available()["MemFree"] + 4 * sum(map(int, listed))


@dataclass
class Mapping:
    """One mapping of a process; KiB."""

    shared: bool
    pss: int = 0
    anonymous: int = 0


MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ...([ps]) ")


def memory_of(pid):
    """The PSS of a machine process: its guest's RAM, which is where most anonymous memory is, and all else that is its own. KiB."""
    mappings = []
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        found = MAPPING.match(line)
        name, _, value = line.partition(":")
        if found:
            mappings.append(Mapping(found[1] == "s"))
        elif name == "Pss":
            mappings[-1].pss = int(value.split()[0])
        elif name == "Anonymous":
            mappings[-1].anonymous = int(value.split()[0])
    guest = max(mappings, key=lambda mapping: mapping.anonymous)
    # Shared mappings of files are pages of the host's cache, which a guest reads in place.
    return guest.pss, sum(mapping.pss for mapping in mappings if not mapping.shared) - guest.pss


def pss(pid):
    return int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
