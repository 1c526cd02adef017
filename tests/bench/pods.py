"""What one more container of a pod costs, and what a pod of two holds of memory."""

from chiton import SHARED, joining
from counting import Count
from memory import available
from starts import RUNS, lives
from verbs import bundle

PODS = 10


def measure(verbs, figures):
    first = bundle(verbs.host, f"{verbs.name}-first", "sleep", "100000")
    member(verbs, figures, first)
    idle(verbs, figures, first)


def member(verbs, figures, first):
    """create, start and delete of true as the second container of a pod."""
    pid = verbs.detached(first, "pod")
    path = bundle(verbs.host, f"{verbs.name}-second", "true", change=joining(pid, *SHARED))
    columns = lives(verbs, path, verbs.counted, RUNS + 1)
    verbs.quiet("delete", "--force", "pod")
    for verb, counts in columns.items():
        figures.add_counts(f"second container of a pod: {verb}", verbs.name, counts[1:])
    sums = [sum(parts, Count(0, 0)) for parts in zip(*columns.values())]
    figures.add_counts("second container of a pod: create + start + delete", verbs.name, sums[1:])


def idle(verbs, figures, first):
    """Pods that do nothing, of one container and then of two."""
    before = available()["MemAvailable"]
    pids = [verbs.detached(first, f"pod{n}") for n in range(PODS)]
    one = available()["MemAvailable"]
    for n, pid in enumerate(pids):
        path = bundle(verbs.host, f"{verbs.name}-idle{n}", "sleep", "100000", change=joining(pid, *SHARED))
        verbs.detached(path, f"member{n}")
    two = available()["MemAvailable"]
    figures.add(f"{PODS} pods of one idle container: MemAvailable each", verbs.name, [round((before - one) / PODS)], "KiB")
    figures.add(f"{PODS} pods of two idle containers: MemAvailable each", verbs.name, [round((before - two) / PODS)], "KiB")
    for name in ("member", "pod"):
        for n in range(PODS):
            verbs.quiet("delete", "--force", f"{name}{n}")
