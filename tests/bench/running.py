"""What a running container costs: exec into it, its streams, its end."""

import subprocess

from chiton import alive, wait_for
from counting import EXITS, IDLE_ONLY, SCHEDULER, between, exits, trace
from memory import pss
from verbs import bundle

RUNS = 5
STREAM_MIB = 16


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-running", "sleep", "100000")
    ends = []
    for n in range(RUNS + 1):
        name = f"running{n}"
        pid = verbs.detached(path, name)
        if n == 0:
            executed(verbs, figures, name)
            stream(verbs, figures, name)
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            verbs.quiet("kill", name, "KILL")
            wait_for(lambda pid=pid: not alive(pid))
            verbs.quiet("delete", name)
        begin = next(e.time for e in events if e.name == "sched_process_exec")
        end = [e.time for e in events if e.name == "sched_process_exit"][-1]
        ends.append(between(events, begin, end))
    figures.add_counts("kill + wait + delete", verbs.name, ends[1:])


def executed(verbs, figures, name):
    """exec into a running container, and a detached exec's host process."""
    counts = [verbs.counted("exec", name, "true") for _ in range(RUNS + 1)]
    figures.add_counts("exec of true", verbs.name, counts[1:])
    with trace(*EXITS) as events:
        verbs.quiet("exec", name, "true")
    counted = exits(events)
    if counted.total:
        figures.add_exits("exec of true", verbs.name, counted)
    verbs.quiet("exec", "--detach", "--pid-file", "/run/exec", name, "sleep", "100000")
    if verbs.name == "chiton":
        stub = int(verbs.host.path("/run/exec").read_text())
        figures.add("detached exec: PSS of the host's process", verbs.name, [pss(stub)], "KiB")


def stream(verbs, figures, name):
    """Bytes through an exec's standard output."""
    counts = []
    for _ in range(4):
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            process = verbs.popen("exec", name, "head", "-c", str(STREAM_MIB << 20), "/dev/zero", stdout=subprocess.PIPE)
            while process.stdout.read(1 << 20):
                pass
            process.wait()
        times = [e.time for e in events if e.name == "sched_process_exec"][0], [e.time for e in events if e.name == "sched_process_exit"][-1]
        counts.append(between(events, *times).busy / STREAM_MIB)
    figures.add("exec's stdout, per MiB", verbs.name, counts[1:])
