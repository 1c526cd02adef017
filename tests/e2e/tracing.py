"""Which system calls the threads of a process make, counted by the host's kernel (tracefs, Documentation/trace/histogram.rst)."""

import collections
import contextlib
import pathlib
import re
import subprocess

ROOT = pathlib.Path("/sys/kernel/tracing")
ENTRIES = 1 << 14
LINE = re.compile(r"\{ common_pid: +(\d+), (\w+): +(-?\w+) \} hitcount: +(\d+)")


class Calls:
    """Counts calls by thread and number, and for some calls by thread and the value of an argument, of all processes."""

    def __init__(self, arguments):
        """`arguments`: pairs of a call's name and the number of an argument, from 0."""
        if not (ROOT / "events").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", ROOT], check=True)
        self.sources = {None: ("raw_syscalls/sys_enter", "id")}
        for call, number in arguments:
            event = f"syscalls/sys_enter_{call}"
            fields = re.findall(r"field:[^;]*?(\w+);", (ROOT / "events" / event / "format").read_text())
            # Behind the fields that all events have, and the call's number.
            own = fields[fields.index("__syscall_nr") + 1:]
            self.sources[call, number] = (event, own[number])

    def _triggers(self, prefix, suffix=""):
        for event, field in self.sources.values():
            (ROOT / "events" / event / "trigger").write_text(f"{prefix}hist:keys=common_pid,{field}:size={ENTRIES}{suffix}\n")

    @contextlib.contextmanager
    def counted(self):
        """What is called meanwhile is added to the dictionary that this gives, afterwards: by None or (call, argument's number), how
        often which pair of a thread's id and the call's number or the argument's value was seen."""
        found = {source: collections.Counter() for source in self.sources}
        self._triggers("")
        try:
            yield found
            for source, (event, _) in self.sources.items():
                text = (ROOT / "events" / event / "hist").read_text()
                assert "Dropped: 0" in text, text.splitlines()[-4:]
                for thread, _, value, hits in LINE.findall(text):
                    found[source][int(thread), int(value, 0)] += int(hits)
        finally:
            self._triggers("!")
