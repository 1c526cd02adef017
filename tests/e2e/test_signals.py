"""Signals: each one by number and name, to one and to all, through run and exec's stand-ins, and when nobody listens."""

import contextlib
import os
import select
import signal
import subprocess
import time

import pytest

from chiton import alive, ended, only_chiton, subreaper

# Says which signals come, as "NAME NUMBER" lines; a second process does so as well if there is an argument.
REPORT = """
import os, signal, sys
name = "init"
if len(sys.argv) > 1 and os.fork() == 0:
    name = "child"
def report(number, frame):
    os.write(1, b"%s %d\\n" % (name.encode(), number))
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, report)
os.write(1, b"%s ready\\n" % name.encode())
while True:
    signal.pause()
"""

# What runc calls them (signal(7)).
NAMES = {each.name: int(each) for each in signal.Signals if not each.name.startswith("SIGRT")} | {"SIGSTKFLT": 16}


class Lines:
    """What a program writes to a pipe, line by line, each within a time limit."""

    def __init__(self):
        self.reader, self.writer = os.pipe()
        self.rest = b""

    def ready(self, seconds):
        return b"\n" in self.rest or bool(select.select([self.reader], [], [], seconds)[0])

    def next(self):
        while b"\n" not in self.rest:
            assert self.ready(20), "nothing is written"
            more = os.read(self.reader, 4096)
            assert more, "the program has ended"
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode()

    def some(self, count):
        return sorted(self.next() for _ in range(count))


@pytest.fixture
def lines():
    made = Lines()
    yield made
    for each in (made.reader, made.writer):
        with contextlib.suppress(OSError):
            os.close(each)


@pytest.fixture
def reporting(container, lines, rootfs):
    """A container that reports its signals to `lines`."""
    (rootfs / "report.py").write_text(REPORT)

    def reporting(*args, **kwargs):
        made = container("python3", "-u", "/report.py", *args, stdout=lines.writer, **kwargs)
        assert lines.some(1 + len(args)) == [f"{name} ready" for name in ("child", "init")[1 - len(args):]]
        return made

    return reporting


@pytest.mark.timeout(120)
def test_each_signal(reporting, lines):
    c = reporting()
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        c.verb("kill", number)
        assert lines.next() == f"init {number}"
    for name, number in NAMES.items():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            spelled = (name, name.removeprefix("SIG"), name.lower())[number % 3]
            c.verb("kill", spelled)
            assert lines.next() == f"init {number}", spelled
    c.verb("kill")
    assert lines.next() == "init 15"
    # Stopped, and on again: what came meanwhile is not lost, and the container is running all the time.
    c.verb("kill", "STOP")
    c.verb("kill", "USR1")
    assert not lines.ready(0.3) and c.status == "running"
    c.verb("kill", "CONT")
    assert lines.some(2) == ["init 10", "init 18"]
    # Paused: it comes when the container is resumed.
    c.verb("pause")
    c.verb("kill", "USR2")
    assert not lines.ready(0.3) and c.status == "paused"
    c.verb("resume")
    assert lines.next() == "init 12"
    for bad in ("65", "-1", "SIGFROB", "frob", "SIG", "9x"):
        done = c.runtime("kill", c.name, bad)
        assert done.returncode == 1 and not lines.ready(0), done
    assert c.status == "running"


def test_to_the_first_process_or_all(reporting, lines):
    c = reporting("two")
    c.verb("kill", "USR1")
    assert lines.next() == "init 10" and not lines.ready(0.3)
    c.verb("kill", "--all", "USR2")
    assert lines.some(2) == ["child 12", "init 12"]
    c.verb("kill", "--all", "0")
    c.verb("kill", "--all", "KILL")
    c.ends()
    assert not lines.ready(0)


@only_chiton
def test_more_names(reporting, lines):
    """Of the real-time signals runc knows the numbers only, of others one name."""
    c = reporting()
    for name, number in (("SIGRTMIN", 34), ("RTMIN+3", 37), ("rtmax", 64), ("SIGRTMAX-14", 50),
                         ("SIGIOT", 6), ("CLD", 17), ("SIGPOLL", 29)):
        c.verb("kill", name)
        assert lines.next() == f"init {number}"


def test_the_pid_stands_for_the_program(reporting, lines):
    """What a caller sends to the pid of the pid file reaches the program."""
    c = reporting()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGWINCH):
        os.kill(c.pid, number)
        assert lines.next() == f"init {int(number)}"


def test_run_passes_signals_on(runtime, bundle, rootfs, lines):
    (rootfs / "report.py").write_text(REPORT)
    made = bundle("python3", "-u", "/report.py").save()
    verb = runtime.popen("run", "--bundle", made.path, "fore", stdout=lines.writer)
    assert lines.next() == "init ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        verb.send_signal(number)
        assert lines.next() == f"init {int(number)}"
    runtime.ok("kill", "fore", "KILL")
    assert verb.wait(20) == 128 + signal.SIGKILL
    assert runtime.status("fore") is None


def test_exec_passes_signals_on(container, rootfs, lines):
    (rootfs / "report.py").write_text(REPORT)
    c = container("sleep", "1000")
    verb = c.runtime.popen("exec", c.name, "python3", "-u", "/report.py", stdout=lines.writer)
    assert lines.next() == "init ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        verb.send_signal(number)
        found = lines.next()
        while found == "init 23" and c.runtime.name == "runc":  # SIGURG, by which Go schedules itself
            found = lines.next()
        assert found == f"init {int(number)}"
    c.verb("kill", "KILL")
    assert verb.wait(20) == 128 + signal.SIGKILL


def test_who_ignores_sigterm_is_killed(container):
    with subreaper():
        c = container("sleep", "1000")  # the first process of a pid namespace that has no handler
        c.verb("kill", "TERM")
        c.verb("kill", "INT")
        time.sleep(0.3)
        assert c.status == "running"
        c.verb("kill", "KILL")
        assert ended(c.pid) == -signal.SIGKILL
    assert c.status == "stopped"


@pytest.mark.parametrize("status", ["created", "paused", "stopped by a signal"])
def test_kill_in_each_status(container, status):
    with subreaper():
        c = container("sleep", "1000", verb=("create",) if status == "created" else ("run", "--detach"))
        if status == "paused":
            c.verb("pause")
        elif status != "created":
            c.verb("kill", "STOP")
        c.verb("kill", "KILL")
        assert ended(c.pid) == -signal.SIGKILL
    assert c.status == "stopped"
    c.verb("delete")
    assert c.status is None


def test_a_paused_container_is_deleted_by_force(container):
    c = container("sleep", "1000")
    c.verb("pause")
    c.verb("delete", "--force")
    assert c.status is None and not alive(c.pid)


def test_nobody_answers(container):
    """The container's process is stopped itself: of runc that is the program, of chiton the whole machine. SIGKILL ends it all the same."""
    with subreaper():
        c = container("sleep", "1000")
        os.kill(c.pid, signal.SIGSTOP)
        assert c.status == "running"
        c.verb("kill", "KILL")
        assert ended(c.pid, 5) == -signal.SIGKILL
    assert c.status == "stopped"


@only_chiton
def test_nobody_answers_delete(container):
    c = container("sleep", "1000")
    os.kill(c.pid, signal.SIGSTOP)
    c.verb("delete", "--force")
    assert c.status is None and not alive(c.pid)


def test_signals_that_the_caller_ignores_or_blocks_do_not_matter(runtime, bundle):
    def odd():
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    made = bundle("sh", "-c", "sh -c 'exit 3'; exit $?").save()
    done = runtime("run", "--bundle", made.path, "front", preexec_fn=odd)
    assert (done.returncode, done.stderr) == (3, "")
    made = bundle("sleep", "1000").save()
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    done = runtime("run", "--detach", "--bundle", made.path, "back", preexec_fn=odd, **nowhere)
    assert done.returncode == 0
    assert runtime("exec", "back", "sh", "-c", "sh -c 'exit 4'; exit $?", preexec_fn=odd).returncode == 4
    assert runtime("delete", "--force", "back", preexec_fn=odd).returncode == 0
