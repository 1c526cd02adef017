"""What the start of a container costs: run, and create, start and delete apart."""

from chiton import alive, wait_for
from counting import EXITS, Count, exits, trace
from verbs import bundle

RUNS = 5
REPETITIONS = 3


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-true", "true")
    run(verbs, figures, path)
    apart(verbs, figures, path)
    requests(verbs, figures, path)
    if verbs.name == "chiton":
        phases(verbs, figures, path)


def run(verbs, figures, path):
    """`run` of true."""
    wholes, marks = [], []
    for n in range(RUNS + 1):
        whole, mark = verbs.counted("run", "--bundle", path, f"run{n}", mark="filename=/usr/bin/true ")
        wholes.append(whole)
        marks.append(mark)
    if all(marks):
        figures.add_counts("run: exec to first instruction", verbs.name, marks[1:])
    figures.add_counts("run: exec to exit", verbs.name, wholes[1:])


def apart(verbs, figures, path):
    """create, start, wait and delete of true, each by itself."""
    columns = lives(verbs, path, verbs.counted, RUNS + 1)
    for verb, counts in columns.items():
        figures.add_counts(verb, verbs.name, counts[1:])
    sums = [sum(parts, Count(0, 0)) for parts in zip(*columns.values())]
    figures.add_counts("create + start + delete", verbs.name, sums[1:])


def requests(verbs, figures, path):
    """What the verbs ask of the host's kernel."""
    runs = [verbs.requests("run", "--bundle", path, f"run{n}") for n in range(REPETITIONS)]
    for verb, counts in {"run": runs, **lives(verbs, path, verbs.requests, REPETITIONS)}.items():
        calls, faults = zip(*counts)
        figures.add(f"{verb}: system calls of the host", verbs.name, calls, "")
        figures.add(f"{verb}: page faults of the host", verbs.name, faults, "")


def lives(verbs, path, measure, times):
    """What `measure` says of create, start and delete of a container, some times."""
    columns = {"create": [], "start": [], "delete": []}
    for n in range(times):
        name = f"life{n}"
        columns["create"].append(measure("create", "--bundle", path, "--pid-file", "/run/pid", name))
        pid = int(verbs.host.path("/run/pid").read_text())
        columns["start"].append(measure("start", name))
        wait_for(lambda pid=pid: not alive(pid))
        columns["delete"].append(measure("delete", name))
    return columns


def phases(verbs, figures, path):
    """Chiton's own timeline of a start, and the exits of it."""
    runs = [verbs.timeline("run", "--bundle", path, f"phases{n}") for n in range(RUNS + 1)]
    for phase in runs[0]:
        figures.add(f"start: {phase}", verbs.name, [each[phase] for each in runs[1:]])
    figures.add("run: exec to first instruction", verbs.name, [sum(each.values()) for each in runs[1:]])
    with trace(*EXITS) as events:
        verbs.quiet("run", "--bundle", path, "exits")
    figures.add_exits("run", verbs.name, exits(events))
