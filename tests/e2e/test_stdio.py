"""Standard streams are the caller's own descriptors: every byte, both ends, nothing lost at exit."""

import fcntl
import hashlib
import os
import subprocess
import threading

import pytest

from chiton import wait_for


def test_200_mib_through_stdin_to_stdout(chiton, bundle):
    made = bundle("cat").save()
    process = chiton.popen("run", "--bundle", made.path, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    block = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def feed():
        for n in range(200):
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
    assert length == 200 << 20 and sent.digest() == received.digest()


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
