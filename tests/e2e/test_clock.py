"""The wall clock of a container is the host's: from the first instruction on, and when it is set."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

import pytest

from chiton import wait_for

# Prints how far each file that it makes lies in its future, in ns: on a share, and on a file system of its own.
FUTURE = """
import json, os, time
worst = {}
for directory in ("/", "/dev/shm"):
    for n in range(200):
        path = f"{directory}/made-{n}"
        open(path, "w").close()
        ahead = os.stat(path).st_mtime_ns - time.time_ns()
        worst[directory] = max(worst.get(directory, -1 << 62), ahead)
print(json.dumps(worst))
"""
# Prints the time whenever it is asked, as long as it is asked.
ASKED = """
import sys, time
for line in sys.stdin:
    print(time.time(), flush=True)
"""


@contextlib.contextmanager
def stepped(seconds):
    """The host's clock set by so much, and back at the end."""
    def step(by):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
    step(seconds)
    try:
        yield
    finally:
        step(-seconds)


def test_no_file_lies_in_the_future(runtime, bundle, rootfs):
    """Whoever makes a file finds its time to be past. The host keeps the time of what is on a share."""
    (rootfs / "future.py").write_text(FUTURE)
    made = bundle("python3", "/future.py").save()
    before = time.time()
    worst = json.loads(runtime.ok("run", "--bundle", made.path, "future"))
    assert worst["/"] <= 0 and worst["/dev/shm"] <= 0
    newest = (rootfs / "made-199").stat().st_mtime
    assert before - 1 <= newest <= time.time()


@pytest.fixture
def clock(runtime, bundle):
    """A container that tells the time."""
    made = bundle("python3", "-uc", ASKED).save()
    process = runtime.popen("run", "--bundle", made.path, "clock", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait(60) == 0


def off(ask):
    """How far the container's clock is off, in s; the least of some answers, which take their time."""
    def once():
        before = time.time()
        answer = ask()
        after = time.time()
        return max(before - answer, answer - after, 0)
    return min(once() for _ in range(5))


def test_a_step_of_the_hosts_clock_arrives(clock):
    assert off(clock) < 0.05
    for step in (3600, -7200, 0.3):
        with stepped(step):
            wait_for(lambda: off(clock) < 0.05)
        wait_for(lambda: off(clock) < 0.05)


def test_a_step_while_the_container_is_paused(runtime, clock):
    """The time is right from the first instruction after."""
    assert off(clock) < 0.05
    runtime.ok("pause", "clock")
    with stepped(3600):
        time.sleep(1)
        runtime.ok("resume", "clock")
        assert off(clock) < 0.05
        runtime.ok("pause", "clock")
    time.sleep(1)
    runtime.ok("resume", "clock")
    assert off(clock) < 0.05
