"""A runtime on the small host, its verbs counted."""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))

from chiton import Bundle  # noqa: E402
from counting import IDLE_ONLY, REQUESTS, SCHEDULER, between, not_ours, span, trace  # noqa: E402


class Verbs:
    """A runtime on the small host. `machine`: its containers have a kernel of their own."""

    def __init__(self, host, name, binary):
        self.host, self.name = host, name
        self.binary = host.install(binary)
        self.root = f"/run/{name}"
        self._machine = None

    def command(self, *args):
        return [self.binary, "--root", self.root, *args]

    def popen(self, *args, **kwargs):
        return self.host.popen(*self.command(*args), **kwargs)

    def ok(self, *args, **kwargs):
        """Runs a verb to its end; its output."""
        return self.host.ok(*self.command(*args), **kwargs)

    def quiet(self, *args):
        """The same without pipes, which a container would inherit; its pid."""
        with open(self.host.path("/run/errors"), "w+b") as errors:
            process = self.popen(*args, stderr=errors)
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"{self.name} {args}: exit {process.returncode}: {errors.read().decode()}")
        return process.pid

    def detached(self, path, name):
        """Runs a container; the pid that callers get."""
        self.quiet("run", "--detach", "--bundle", path, "--pid-file", "/run/pid", name)
        return int(self.host.path("/run/pid").read_text())

    def counted(self, *args, mark=None):
        """What a verb costs from its exec to its exit and, with `mark`, to the exec of that program."""
        with trace(*SCHEDULER, filters=IDLE_ONLY) as events:
            pid = self.quiet(*args)
            time.sleep(0.05)
        begin, end = span(events, self.binary, pid)
        whole = between(events, begin, end)
        if mark is None:
            return whole
        marked = [e.time for e in events if e.name == "sched_process_exec" and mark in e.rest]
        return whole, between(events, begin, marked[-1]) if marked else None

    def timeline(self, *args):
        """Chiton's own phases of a start, in millions of instructions."""
        self.quiet("--timeline", "/run/timeline", *args)
        return {each["phase"]: each["microseconds"] / 1000 for each in json.loads(self.host.path("/run/timeline").read_text())}

    def requests(self, *args):
        """The system calls and page faults of the host from a verb's exec to its exit, in all processes that it starts."""
        with trace(*SCHEDULER, *REQUESTS, filters=IDLE_ONLY | not_ours()) as events:
            pid = self.quiet(*args)
        begin, end = span(events, self.binary, pid)
        names = [e.name for e in events if begin <= e.time <= end]
        return names.count("sys_enter"), names.count("page_fault_user") + names.count("page_fault_kernel")

    def is_machine(self, container):
        """Whether a running container has a kernel of its own."""
        if self._machine is None:
            theirs = self.ok("exec", container, "cat", "/proc/sys/kernel/random/boot_id")
            self._machine = theirs != pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
        return self._machine


def bundle(host, name, *args, change=None):
    """A bundle on the small host; its path there."""
    inside = f"/bundles/{name}"
    made = Bundle(host.path(inside), "/rootfs", args)
    if change is not None:
        change(made.config)
    made.save()
    return inside
