"""What containers hold of memory, and what they cost while they do nothing."""

import pathlib
import re
import statistics
import time

from counting import EXITS, IDLE_ONLY, SCHEDULER, between, exits, trace
from verbs import bundle

IDLE_CONTAINERS = 20
IDLE_SECONDS = 10


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-idle", "sleep", "100000")
    idle(verbs, figures, path)


def idle(verbs, figures, path):
    """Containers that do nothing: their memory, and what they cost while they wait."""
    before = available()
    pids = [verbs.detached(path, f"idle{n}") for n in range(IDLE_CONTAINERS)]
    time.sleep(1)
    after = available()
    for field in before:
        sign = -1 if field == "MemAvailable" else 1
        figures.add(f"{IDLE_CONTAINERS} idle containers: {field} each", verbs.name,
                    [round(sign * (after[field] - before[field]) / IDLE_CONTAINERS)], "KiB")
    figures.add(f"{IDLE_CONTAINERS} idle containers: PSS each", verbs.name, [round(statistics.mean(map(pss, pids)))], "KiB")
    if verbs.name == "chiton":
        mappings = memory_of(pids[0])
        guest = max(mappings)
        figures.add("machine process: PSS outside guest RAM", verbs.name, [sum(p for _, p in mappings) - guest[1]], "KiB")
        figures.add("machine process: guest RAM touched", verbs.name, [guest[1]], "KiB")
    with trace(*SCHEDULER, *EXITS, filters=IDLE_ONLY) as events:
        time.sleep(IDLE_SECONDS)
    counted = exits(events)
    busy = between(events, events[0].time, events[-1].time).busy if events else 0.0
    figures.add("idle container: instructions per second", verbs.name, [round(busy / IDLE_SECONDS / IDLE_CONTAINERS, 4)])
    figures.add("idle container: VM exits per second", verbs.name, [round(counted.total / IDLE_SECONDS / IDLE_CONTAINERS, 2)], "")
    for n in range(IDLE_CONTAINERS):
        verbs.quiet("delete", "--force", f"idle{n}")


def available():
    lines = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return {name: int(lines[name].split()[0]) for name in ("MemAvailable", "PageTables", "Slab")}


def memory_of(pid):
    """(Size, Pss) of each mapping, KiB."""
    found, size = [], 0
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0])
        elif name == "Pss":
            found.append((size, int(value.split()[0])))
    return found


def pss(pid):
    return int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
