"""The benchmark: what containers cost, counted and not timed. Run by `make bench` in the lab under instruction counting.

    bench.py OUT.json ROOTFS.tar CHITON [NAME=RUNTIME...]

All runtimes go through the same verbs in one run of the lab. Figures are millions of instructions, of the host and of the guests
together; time in which nothing is executed is given apart, in the same unit (a microsecond of the lab's clock is a thousand
instructions). All that is measured lies on a tmpfs, and the first run of everything is not counted.
"""

import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))

from chiton import Bundle, alive, wait_for  # noqa: E402
from counting import EXITS, IDLE_ONLY, SCHEDULER, Count, between, exits, trace  # noqa: E402
from host import Host  # noqa: E402

RUNS = 5
IDLE_CONTAINERS = 20
IDLE_SECONDS = 10
STREAM_MIB = 16
# A figure whose runs differ by more than this is marked.
AGREEMENT = 0.005


class Verbs:
    """A runtime on the small host."""

    def __init__(self, host, name, binary):
        self.host, self.name = host, name
        self.binary = host.install(binary)
        self.root = f"/run/{name}"

    def command(self, *args):
        return [self.binary, "--root", self.root, *args]

    def popen(self, *args, **kwargs):
        return self.host.popen(*self.command(*args), **kwargs)

    def ok(self, *args, **kwargs):
        """Runs a verb to its end; its output."""
        process = self.popen(*args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{self.name} {args}: exit {process.returncode}: {output}")
        return output

    def quiet(self, *args):
        """The same without pipes, which a container would inherit; its pid."""
        with open(self.host.path("/run/errors"), "w+b") as errors:
            process = self.popen(*args, stderr=errors)
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"{self.name} {args}: exit {process.returncode}: {errors.read().decode()}")
        return process.pid

    def counted(self, *args, mark=None):
        """What a verb costs from its exec to its exit and, with `mark`, to the exec of that program."""
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            pid = self.quiet(*args)
            time.sleep(0.05)
        begin = next(e.time for e in events if e.name == "sched_process_exec" and f"filename={self.binary} " in e.rest + " ")
        end = next(e.time for e in events if e.name == "sched_process_exit" and e.pid == pid)
        whole = between(events, begin, end)
        if mark is None:
            return whole
        marked = [e.time for e in events if e.name == "sched_process_exec" and mark in e.rest]
        return whole, between(events, begin, marked[-1]) if marked else None


class Figures:
    """Figures by name, with every run's value."""

    def __init__(self):
        self.values = {}

    def add(self, name, runtime, runs, unit="M"):
        self.values.setdefault(name, {"unit": unit, "of": {}})["of"][runtime] = runs

    def print(self, runtimes):
        width = max(map(len, self.values)) + 2
        print(f"{'':{width}}" + "".join(f"{name:>22}" for name in runtimes))
        for name, figure in self.values.items():
            cells = [self._cell(figure["of"].get(runtime)) for runtime in runtimes]
            if any(cells):
                print(f"{name:{width}}" + "".join(f"{cell:>22}" for cell in cells) + f"  {figure['unit']}")

    @staticmethod
    def _cell(runs):
        if not runs:
            return ""
        middle = statistics.median(runs)
        spread = (max(runs) - min(runs)) / middle if middle else 0
        text = f"{middle:.2f}" if isinstance(middle, float) else f"{middle}"
        return text + (f" (±{50 * spread:.1f}%)" if spread > 2 * AGREEMENT else "")


def main():
    out, rootfs, *runtimes = sys.argv[1:]
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    host = Host(work / "host")
    figures = Figures()
    try:
        host.unpack(rootfs)
        names = []
        for runtime in runtimes:
            name, _, binary = runtime.rpartition("=")
            verbs = Verbs(host, name or "chiton", binary)
            names.append(verbs.name)
            measure(verbs, figures)
    finally:
        host.remove()
        shutil.rmtree(work)
    figures.print(names)
    pathlib.Path(out).write_text(json.dumps(figures.values, indent=1))


def bundle(host, name, *args):
    """A bundle on the small host; its path there."""
    inside = f"/bundles/{name}"
    made = Bundle(host.path(inside), "/rootfs", args)
    made.save()
    return inside


def measure(verbs, figures):
    true = bundle(verbs.host, f"{verbs.name}-true", "true")
    sleep = bundle(verbs.host, f"{verbs.name}-sleep", "sleep", "100000")
    run(verbs, figures, true)
    apart(verbs, figures, true)
    if verbs.name == "chiton":
        phases(verbs, figures, true)
    executed(verbs, figures, sleep)
    idle(verbs, figures, sleep)


def add(figures, name, verbs, counts):
    figures.add(name, verbs.name, [count.busy for count in counts])
    figures.add(f"{name}, idle", verbs.name, [count.idle for count in counts])


def run(verbs, figures, path):
    """`run` of true."""
    wholes, marks = [], []
    for n in range(RUNS + 1):
        whole, mark = verbs.counted("run", "--bundle", path, f"run{n}", mark="filename=/usr/bin/true ")
        wholes.append(whole)
        marks.append(mark)
    if all(marks):
        add(figures, "run: exec to first instruction", verbs, marks[1:])
    add(figures, "run: exec to exit", verbs, wholes[1:])


def apart(verbs, figures, path):
    """create, start, wait and delete of true, each by itself."""
    columns = {"create": [], "start": [], "delete": []}
    for n in range(RUNS + 1):
        name = f"apart{n}"
        columns["create"].append(verbs.counted("create", "--bundle", path, "--pid-file", "/run/pid", name))
        pid = int(verbs.host.path("/run/pid").read_text())
        columns["start"].append(verbs.counted("start", name))
        wait_for(lambda pid=pid: not alive(pid))
        columns["delete"].append(verbs.counted("delete", name))
    for verb, counts in columns.items():
        add(figures, verb, verbs, counts[1:])
    sums = [sum(parts, Count(0, 0)) for parts in zip(*columns.values())]
    add(figures, "create + start + delete", verbs, sums[1:])


def phases(verbs, figures, path):
    """Chiton's own timeline of a start, and the exits of it."""
    runs = []
    for n in range(RUNS + 1):
        verbs.quiet("--timeline", "/run/timeline", "run", "--bundle", path, f"phases{n}")
        runs.append({p["phase"]: p["microseconds"] / 1000 for p in json.loads(verbs.host.path("/run/timeline").read_text())})
    for phase in runs[0]:
        figures.add(f"start: {phase}", verbs.name, [each[phase] for each in runs[1:]])
    figures.add("run: exec to first instruction", verbs.name, [sum(each.values()) for each in runs[1:]])
    with trace(*EXITS) as events:
        verbs.quiet("run", "--bundle", path, "exits")
    count_exits(figures, verbs, "run", exits(events))


def count_exits(figures, verbs, what, counted):
    figures.add(f"{what}: VM exits", verbs.name, [counted.total], "")
    figures.add(f"{what}: VM exits to user space", verbs.name, [counted.user], "")
    for reason, count in sorted(counted.reasons.items(), key=lambda item: -item[1])[:8]:
        figures.add(f"{what}: VM exits, {reason}", verbs.name, [count], "")


def executed(verbs, figures, path):
    """exec into a running container, a detached exec's host process, kill and delete."""
    ends = []
    for n in range(RUNS + 1):
        name = f"stop{n}"
        verbs.quiet("run", "--detach", "--bundle", path, "--pid-file", "/run/pid", name)
        pid = int(verbs.host.path("/run/pid").read_text())
        if n == 0:
            counts = [verbs.counted("exec", name, "true") for _ in range(RUNS + 1)]
            add(figures, "exec of true", verbs, counts[1:])
            with trace(*EXITS) as events:
                verbs.quiet("exec", name, "true")
            counted = exits(events)
            if counted.total:
                count_exits(figures, verbs, "exec of true", counted)
            verbs.quiet("exec", "--detach", "--pid-file", "/run/exec", name, "sleep", "100000")
            stub = int(verbs.host.path("/run/exec").read_text())
            if verbs.name == "chiton":
                figures.add("detached exec: PSS of the host's process", verbs.name, [pss(stub)], "KiB")
            stream(verbs, figures, name)
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            verbs.quiet("kill", name, "KILL")
            wait_for(lambda pid=pid: not alive(pid))
            verbs.quiet("delete", name)
        begin = next(e.time for e in events if e.name == "sched_process_exec")
        end = [e.time for e in events if e.name == "sched_process_exit"][-1]
        ends.append(between(events, begin, end))
    add(figures, "kill + wait + delete", verbs, ends[1:])


def stream(verbs, figures, name):
    """Bytes through an exec's standard output."""
    counts = []
    for _ in range(3):
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            process = verbs.popen("exec", name, "head", "-c", str(STREAM_MIB << 20), "/dev/zero", stdout=subprocess.PIPE)
            while process.stdout.read(1 << 20):
                pass
            process.wait()
        times = [e.time for e in events if e.name == "sched_process_exec"][0], [e.time for e in events if e.name == "sched_process_exit"][-1]
        counts.append(between(events, *times).busy / STREAM_MIB)
    figures.add("exec's stdout, per MiB", verbs.name, counts[1:])


def idle(verbs, figures, path):
    """Containers that do nothing: their memory, and what they cost while they wait."""
    before = available()
    pids = []
    for n in range(IDLE_CONTAINERS):
        verbs.quiet("run", "--detach", "--bundle", path, "--pid-file", "/run/pid", f"idle{n}")
        pids.append(int(verbs.host.path("/run/pid").read_text()))
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


if __name__ == "__main__":
    main()
