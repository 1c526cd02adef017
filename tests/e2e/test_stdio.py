"""Standard streams are the caller's own descriptors: every byte, both ends, nothing lost at exit."""

import fcntl
import hashlib
import os
import shlex
import subprocess
import threading

import pytest

from chiton import wait_for

# Reads a thousand lines of eight bytes by turns, in each way that there is, and looks that none is lost.
READERS = """
import os, select, threading
got = []
def take(count, read=lambda count: os.read(0, count)):
    piece = b""
    while len(piece) < count:
        more = read(count - len(piece))
        assert more, "the end"
        piece += more
    got.append(piece)
take(800)
for _ in range(100):
    assert select.select([0], [], [], 30)[0] == [0]
    take(8)
epoll = select.epoll()
epoll.register(0, select.EPOLLIN | select.EPOLLET)
os.set_blocking(0, False)
def now(count):
    while True:
        try:
            return os.read(0, count)
        except BlockingIOError:
            epoll.poll(30)
for _ in range(100):
    take(8, now)
os.set_blocking(0, True)
into, out_of = os.pipe()[::-1]
def spliced(count):
    return os.read(out_of, os.splice(0, into, count))
for _ in range(100):
    take(8, spliced)
lock, lines = threading.Lock(), []
def reader():
    while piece := os.read(0, 8):
        with lock:
            lines.append(piece)
readers = [threading.Thread(target=reader) for _ in range(4)]
[each.start() for each in readers]
[each.join() for each in readers]
assert b"".join(got) == b"".join(b"%07d\\n" % n for n in range(400)), got[-3:]
assert b"".join(sorted(lines)) == b"".join(b"%07d\\n" % n for n in range(400, 1000)), lines[-3:]
print("ok")
"""


def test_50_mib_through_stdin_to_stdout(chiton, bundle):
    made = bundle("cat").save()
    process = chiton.popen("run", "--bundle", made.path, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    block = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def feed():
        for n in range(50):
            piece = n.to_bytes(8, "little") + block[8:]
            sent.update(piece)
            process.stdin.write(piece)
        process.stdin.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    length = 0
    while piece := process.stdout.read(1 << 20):
        received.update(piece)
        length += len(piece)
    feeder.join()
    assert process.wait(60) == 0
    assert length == 50 << 20 and sent.digest() == received.digest()


def test_output_in_flight_at_exit_is_not_lost(chiton, bundle):
    """The program exits while the reader has not even begun."""
    made = bundle("python3", "-c", "import os,sys; sys.stdout.buffer.write(b'x' * 3000000); sys.stdout.flush(); "
                                   "os.write(2, b'y' * 50000); os._exit(7)").save()
    process = chiton.popen("run", "--bundle", made.path, "flight", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (len(out), len(err), process.returncode) == (3000000, 50000, 7)


@pytest.mark.parametrize("command, code", [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("kill -KILL $$", 137),
                                           ("exec sleep 0", 0)])
def test_exit_codes(run, command, code):
    # A shell that is pid 1 can't kill itself: its child does what the container's init reports.
    if "KILL" in command:
        done = run("python3", "-c", "import os,signal,sys\n"
                                    "pid = os.fork()\n"
                                    "if pid == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
                                    "sys.exit(128 + os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * -1)")
    else:
        done = run("sh", "-c", command)
    assert done.returncode == code, done.stderr


def test_death_by_signal_is_the_machines_own(chiton, bundle):
    """Whoever waits for the pid sees a death by the same signal, as with runc."""
    made = bundle("sleep", "1000").save()
    process = chiton.popen("run", "--bundle", made.path, "dies", stdout=subprocess.DEVNULL)
    wait_for(lambda: chiton("state", "dies").returncode == 0 and chiton.state("dies")["status"] == "running")
    chiton.ok("kill", "dies", "KILL")
    assert process.wait(60) == 137


def test_end_of_file_travels_in(run):
    assert run("sh", "-c", "cat; echo done").stdout == "done\n"


def test_a_closed_reader_reaches_the_program(chiton, bundle):
    made = bundle("python3", "-c", """
import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
try:
    while True:
        os.write(1, b"x" * 65536)
except BrokenPipeError:
    sys.exit(42)
""").save()
    process = chiton.popen("run", "--bundle", made.path, "pipe", stdout=subprocess.PIPE)
    process.stdout.read(100000)
    process.stdout.close()
    assert process.wait(60) == 42


def test_output_to_a_file_appends_where_the_caller_stands(chiton, bundle, scratch):
    made = bundle("echo", "second").save()
    with open(scratch / "out", "w+") as out:
        out.write("first\n")
        out.flush()
        chiton("run", "--bundle", made.path, "file", stdout=out, stderr=out)
        out.write("third\n")
        out.flush()
        out.seek(0)
        assert out.read() == "first\nsecond\nthird\n"


def test_the_callers_descriptions_stay_blocking(chiton, bundle):
    made = bundle("true").save()
    read, write = os.pipe()
    assert chiton("run", "--bundle", made.path, "flags", stdin=read, stdout=write, stderr=write).returncode == 0
    for fd in (read, write):
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        os.close(fd)


def test_dev_stdout_can_be_opened(run):
    def user(config):
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
    done = run("sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin", change=user, input="in\n", stdin=None)
    assert (done.stdout, done.stderr) == ("out\nin\n", "err\n")


def test_a_slow_reader_stops_nothing_else(chiton, bundle):
    """While nobody reads the output the container still answers the verbs."""
    made = bundle("sh", "-c", "yes").save()
    process = chiton.popen("run", "--bundle", made.path, "slow", stdout=subprocess.PIPE)
    process.stdout.read(1)
    assert chiton.state("slow")["status"] == "running"
    chiton.ok("kill", "slow", "KILL")
    process.stdout.close()
    assert process.wait(60) == 137


# A loop as people write it, in a shell of its own: `{}` is a command that runs a program which does not read.
LOOP = "n=0; while read line; do n=$((n+1)); {} || exit 9; done; echo $n turns"


@pytest.fixture(params=["file", "pipe"])
def lines(request, scratch):
    """Gives a shell command eleven lines on its standard input; its output."""

    def lines(command):
        (scratch / "lines").write_text("".join(f"line {n}\n" for n in range(11)))
        given = f"{{ {command}; }} <{scratch}/lines" if request.param == "file" else f"cat {scratch}/lines | {{ {command}; }}"
        done = subprocess.run(["sh", "-c", given], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return lines


def shell(runtime, *args):
    return shlex.join(runtime.command(*args))


def test_a_program_that_does_not_read_takes_nothing(runtime, container, bundle, lines):
    """Detached: in the foreground runc copies what is there."""
    made = bundle("sleep", "1000").save()
    run = f"{shell(runtime, 'run', '--detach', '--bundle', made.path, 'quiet')} && {shell(runtime, 'delete', '--force', 'quiet')} </dev/null"
    assert lines(f"head -c 56 >/dev/null; {LOOP.format(run)}").endswith("3 turns\n")
    busy = container("sleep", "1000")
    execute = shell(runtime, "exec", "--detach", busy.name, "sleep", "1")
    assert lines(LOOP.format(execute)) == "11 turns\n"


def test_what_is_not_read_stays(runtime, bundle, rootfs, lines):
    """A shell reads a byte at a time from a pipe; dd reads as much as it says."""
    made = bundle("sh", "-c", "read first; dd bs=7 count=1 >/took 2>/dev/null; echo $first >>/took").save()
    run = shell(runtime, "run", "--detach", "--bundle", made.path, "some")
    over = f"until {shell(runtime, 'state', 'some')} </dev/null | grep -q stopped; do sleep 0.1; done"
    delete = f"{shell(runtime, 'delete', 'some')} </dev/null"
    rest = lines(f"{run} && {over} && {delete} && cat")
    assert rest == "".join(f"line {n}\n" for n in range(2, 11))
    assert (rootfs / "took").read_text() == "line 1\nline 0\n"


def test_readers_of_every_kind_are_served(run, rootfs):
    """Who waits in read, who polls, who must not wait, two at once, and who splices."""
    (rootfs / "readers.py").write_text(READERS)
    feed = "".join(f"{n:07}\n" for n in range(1000))
    done = run("python3", "/readers.py", input=feed, stdin=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"


# Waits on standard input by turns, and says what was told and read: for an event that need not be asked for, and as most do.
WAITERS = """
import os, select
def polled(events):
    poll = select.poll()
    poll.register(0, events)
    return [found for _, found in poll.poll(20000)]
print(os.read(0, 100) if "{first}" else None, flush=True)
print(polled({events}), os.read(0, 100), polled({events}), os.read(0, 100), select.select([0], [], [], 20)[0])
"""


@pytest.mark.parametrize("first", ["", "hello"])
@pytest.mark.parametrize("events", ["0", "select.POLLPRI", "select.POLLIN", "select.POLLIN | select.POLLRDHUP"])
def test_who_waits_for_the_end_is_told(container, first, events):
    """The caller's other end hangs up when nothing is left: POLLHUP, which is told whoever waits for whatever."""
    c = container("sleep", "1000")
    command = c.runtime.command("exec", c.name, "python3", "-c", WAITERS.format(first=first, events=events))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write(first)
    process.stdin.flush()
    assert process.stdout.readline() == f"{first.encode() or None}\n"
    process.stdin.close()
    hung_up = [16]  # POLLHUP
    assert process.stdout.read() == f"{hung_up} b'' {hung_up} b'' [0]\n"
    assert process.wait(30) == 0


def test_what_was_sent_is_there_after_the_end(container):
    c = container("sleep", "1000")
    script = "import os, time, select; time.sleep(1); print(os.read(0, 3), select.select([0], [], [], 20)[0], os.read(0, 9), os.read(0, 9))"
    assert c.exec("python3", "-c", script, input="hello", stdin=None).stdout == "b'hel' [0] b'lo' b''\n"
