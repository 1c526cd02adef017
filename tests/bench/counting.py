"""Counts what happens in the lab under instruction counting, where one instruction takes one nanosecond of every clock.

All by tracefs: scheduler events say when a program began and ended and when nothing was executed, KVM's say what exits a guest had.
"""

import contextlib
import os
import pathlib
import re
from dataclasses import dataclass, field

TRACING = pathlib.Path("/sys/kernel/tracing")
EVENT = re.compile(r"^\s*(?P<task>.+)-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<time>\d+\.\d+): (?P<name>\w+): (?P<rest>.*)$")
SWITCH = re.compile(r"prev_pid=(\d+) .* next_comm=.* next_pid=(\d+)")
BUFFER_KIB = 65536


@dataclass
class Event:
    """One line of the trace; seconds."""

    time: float
    pid: int
    name: str
    rest: str


@dataclass
class Count:
    """What a piece of work cost: millions of instructions executed, and time in which nothing was, in the same unit."""

    busy: float
    idle: float

    def __add__(self, other):
        return Count(self.busy + other.busy, self.idle + other.idle)


@dataclass
class Exits:
    """VM exits."""

    total: int = 0
    user: int = 0
    reasons: dict = field(default_factory=dict)


@contextlib.contextmanager
def trace(*names, filters=None):
    """Records events; gives a list that holds them afterwards."""
    events = []
    (TRACING / "trace_clock").write_text("mono")
    (TRACING / "buffer_size_kb").write_text(str(BUFFER_KIB))
    (TRACING / "trace").write_text("")
    paths = [TRACING / "events" / name for name in names]
    for path in paths:
        (path / "filter").write_text((filters or {}).get(path.name, "0"))
        (path / "enable").write_text("1")
    try:
        yield events
    finally:
        for path in paths:
            (path / "enable").write_text("0")
            (path / "filter").write_text("0")
        for line in (TRACING / "trace").read_text().splitlines():
            found = EVENT.match(line)
            if found:
                events.append(Event(float(found["time"]), int(found["pid"]), found["name"], found["rest"]))
        (TRACING / "trace").write_text("")


SCHEDULER = ("sched/sched_switch", "sched/sched_process_exec", "sched/sched_process_exit")
IDLE_ONLY = {"sched_switch": "prev_pid==0 || next_pid==0"}


def idle(events, begin, end):
    """Seconds between two moments in which the CPU had nothing to execute."""
    total, since = 0.0, None
    for event in events:
        if event.name != "sched_switch":
            continue
        previous, following = map(int, SWITCH.search(event.rest).groups())
        if following == 0:
            since = event.time
        elif previous == 0 and since is not None:
            total += max(0.0, min(event.time, end) - max(since, begin))
            since = None
    if since is not None:
        total += max(0.0, end - max(since, begin))
    return total


def span(events, program, pid):
    """When a program was executed and when its process ended."""
    begin = next(e.time for e in events if e.name == "sched_process_exec" and f"filename={program} " in e.rest + " ")
    return begin, next(e.time for e in events if e.name == "sched_process_exit" and e.pid == pid)


def between(events, begin, end):
    """The cost of what happened between two moments."""
    waited = idle(events, begin, end)
    return Count((end - begin - waited) * 1e3, waited * 1e3)


EXITS = ("kvm/kvm_exit", "kvm/kvm_userspace_exit")


def exits(events):
    """The VM exits of all guests among the events."""
    counted = Exits()
    for event in events:
        if event.name == "kvm_exit":
            counted.total += 1
            reason = re.search(r"reason (\S+)", event.rest)
            reason = reason[1] if reason else "?"
            counted.reasons[reason] = counted.reasons.get(reason, 0) + 1
        elif event.name == "kvm_userspace_exit" and "KVM_EXIT_INTR" not in event.rest:
            counted.user += 1
    return counted


# The host's, without those of the process that drives the benchmark.
REQUESTS = ("raw_syscalls/sys_enter", "exceptions/page_fault_user", "exceptions/page_fault_kernel")


def not_ours():
    """The filters for REQUESTS."""
    return {name.split("/")[1]: f"common_pid != {os.getpid()}" for name in REQUESTS}


@dataclass
class Work:
    """What a program did between two of its marks (marks.h); seconds of the trace, and the cost in millions of instructions."""

    name: str
    count: float
    begin: float
    end: float
    busy: float
    idle: float

    def inside(self, events):
        return [event for event in events if self.begin <= event.time <= self.end]


MARK = re.compile(r"func 4d41524b idx ([0-9a-f]+) ")


def work(output, events):
    """The marked work of a program, by what it printed and, if it ran in a guest, the marks in the trace."""
    marks = {}
    for event in events:
        found = MARK.search(event.rest) if event.name == "kvm_cpuid" else None
        if found:
            marks[int(found[1], 16)] = event.time
    done = []
    for n, line in enumerate(output.splitlines()):
        count, begin, end, name = line.split(" ", 3)
        millions = (int(end) - int(begin)) / 1e6
        begin, end = (marks[2 * n], marks[2 * n + 1]) if marks else (int(begin) / 1e9, int(end) / 1e9)
        waited = idle(events, begin, end) * 1e3
        done.append(Work(name, float(count), begin, end, millions - waited, waited))
    return done


# virtio 1.2, 4.2.2: QueueNotify of a device, each of which has a page.
NOTIFY = re.compile(r"write len 4 gpa 0x[0-9a-f]+050 ")


def notifications(events):
    """How often guests told their devices of new requests."""
    return sum(event.name == "kvm_mmio" and NOTIFY.search(event.rest) is not None for event in events)
