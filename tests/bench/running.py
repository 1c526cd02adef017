"""What a running container costs: exec into it, its streams, its end."""

import subprocess
import time

from chiton import alive, wait_for
from counting import EXITS, IDLE_ONLY, SCHEDULER, between, exits, trace, work
from memory import pss
from verbs import bundle

RUNS = 5
REPETITIONS = 3
STREAM_MIB = 16
# A guest asks anew for names and attributes that it knows for more than a second: each sixth of a row of execs would, and the others not.
FORGOTTEN_SECONDS = 2


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-running", "sleep", "100000")
    ends = []
    for n in range(RUNS + 1):
        name = f"running{n}"
        pid = verbs.detached(path, name)
        if n == 0:
            executed(verbs, figures, name)
            stream(verbs, figures, name)
            round_trips(verbs, figures, name)
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
    verbs.quiet("exec", name, "true")
    late, soon = [], []
    for _ in range(RUNS):
        time.sleep(FORGOTTEN_SECONDS)
        late.append(verbs.counted("exec", name, "true"))
        soon.append(verbs.counted("exec", name, "true"))
    figures.add_counts("exec of true, soon after another", verbs.name, soon)
    figures.add_counts("exec of true, seconds after another", verbs.name, late)
    with trace(*EXITS) as events:
        verbs.quiet("exec", name, "true")
    counted = exits(events)
    if counted.total:
        figures.add_exits("exec of true, soon after another", verbs.name, counted)
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


def round_trips(verbs, figures, name):
    """A byte to an exec's standard input, and back from its standard output."""
    command = ["/bin/peer", "stdio", *verbs.command("exec", name, "cat")]
    marked(verbs, figures, lambda: verbs.host.ok(*command))


def marked(verbs, figures, run):
    """What `run` executes marks its work: instructions for each unit of it, idle time, VM exits."""
    runs = []
    for _ in range(REPETITIONS):
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            output = run()
        runs.append(work(output, events))
    for each in zip(*runs):
        for kind in ("busy", "idle"):
            name = each[0].name if kind == "busy" else f"{each[0].name}, idle"
            figures.add(name, verbs.name, [getattr(w, kind) / w.count * 1e3 for w in each], "k")
    with trace(*EXITS) as events:
        output = run()
    if events:
        for each in work(output, []):
            counted = exits(each.inside(events))
            figures.add(f"{each.name}: VM exits", verbs.name, [counted.total / each.count], "")
            figures.add(f"{each.name}: VM exits to user space", verbs.name, [counted.user / each.count], "")
