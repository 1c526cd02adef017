"""What callers pass into a container beside the standard streams: descriptors, and the wish to hear when it is ready."""

import contextlib
import os
import socket
import subprocess
import threading

from chiton import ended, only_chiton, subreaper

# Descriptors 3 to 6: a pipe to read from, one to write to, a socket, and /dev/null.
PROGRAM = r"""
import os, socket, stat
assert sorted(map(int, os.listdir("/proc/self/fd")))[:-1] == [0, 1, 2, 3, 4, 5, 6], os.listdir("/proc/self/fd")
assert [stat.S_IFMT(os.fstat(n).st_mode) for n in (3, 4, 5)] == [stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK]
assert (os.read(6, 1), os.write(6, b"x")) == (b"", 1)
count = 0
while piece := os.read(3, 65536):
    count += len(piece)
os.write(4, b"%d\n" % count)
os.close(4)
os.write(5, os.read(5, 100).upper())
socket.socket(fileno=os.dup(5)).shutdown(socket.SHUT_WR)
rest = b""
while piece := os.read(5, 100):
    rest += piece
print(rest.decode(), flush=True)
"""


def passing(runtime, descriptors, *args, environment="", **kwargs):
    """Starts a verb that inherits the descriptors from number 3 on. They are closed here."""
    passed = []
    for number, fd in enumerate(descriptors, 103):
        passed.append(os.dup2(fd, number, inheritable=True))
        os.close(fd)
    moves = " ".join(f"{number - 100}<&{number} {number}<&-" for number in passed)
    command = ["bash", "-c", f'exec {moves}; {environment} exec "$@"', "bash", *runtime.command(*args)]
    try:
        return subprocess.Popen(command, pass_fds=passed, **({"stdin": subprocess.DEVNULL} | kwargs))
    finally:
        for number in passed:
            os.close(number)


def converse(start, ends=True):
    """Runs PROGRAM by `start`, which is given its descriptors, and is its other side. `ends`: nobody but the program has the pipes."""
    (in_reader, in_writer), (out_reader, out_writer) = os.pipe(), os.pipe()
    ours, theirs = socket.socketpair()
    process = start([in_reader, out_writer, theirs.detach(), os.open("/dev/null", os.O_RDWR)])
    with open(in_writer, "wb") as feed, open(out_reader, "rb") as answer, ours:
        ours.settimeout(60)
        feed.write(b"x" * 300000)
        feed.close()
        assert answer.readline() == b"300000\n"
        # What is closed in the container is closed here, while the program goes on.
        assert not ends or answer.read() == b""
        ours.sendall(b"word")
        assert ours.recv(100) == b"WORD"
        # One direction ends, the other goes on.
        assert ours.recv(100) == b""
        ours.sendall(b"the rest")
        ours.shutdown(socket.SHUT_WR)
        return process


def lets_go(runtime):
    """Whether a verb that waits for the program has closed what it has passed on. runc keeps it."""
    return runtime.name == "chiton"


def test_descriptors_of_a_container(runtime, bundle):
    made = bundle("python3", "-c", PROGRAM).save()
    flags = ("--preserve-fds", "4", "--bundle", made.path)
    process = converse(lambda fds: passing(runtime, fds, "run", *flags, "kept", stdout=subprocess.PIPE), lets_go(runtime))
    assert process.communicate(timeout=60)[0] == b"the rest\n" and process.returncode == 0
    # Left alone by the verbs.
    with subreaper(), open(made.path / "output", "w+b") as output:
        def start(fds):
            process = passing(runtime, fds, "create", *flags, "--pid-file", made.path / "pid", "kept", stdout=output, stderr=output)
            assert process.wait(60) == 0
            runtime.ok("start", "kept")
        converse(start)
        assert ended(int((made.path / "pid").read_text())) == 0
        output.seek(0)
        assert output.read() == b"the rest\n"
    runtime.ok("delete", "kept")


def test_descriptors_of_an_exec(runtime, container):
    c = container("sleep", "1000")
    # As many times as there would be of anything that is left over.
    for _ in range(3):
        process = converse(lambda fds: passing(runtime, fds, "exec", "--preserve-fds=4", c.name, "python3", "-c", PROGRAM,
                                               stdout=subprocess.PIPE), lets_go(runtime))
        assert process.communicate(timeout=60)[0] == b"the rest\n" and process.returncode == 0
    pid_file = c.bundle.path / "exec.pid"
    with subreaper(), open(c.bundle.path / "exec.out", "w+b") as output:
        def start(fds):
            process = passing(runtime, fds, "exec", "--detach", "--pid-file", pid_file, "--preserve-fds", "4", c.name, "python3", "-c",
                              PROGRAM, stdout=output, stderr=output)
            assert process.wait(60) == 0
        converse(start)
        assert ended(int(pid_file.read_text())) == 0
        output.seek(0)
        assert output.read() == b"the rest\n"


def test_data_in_flight_when_the_program_exits(runtime, container, bundle):
    c = container("sleep", "1000")
    made = bundle("python3", "-c", "import os; os.write(3, b'x' * 60000); os.write(4, b'y' * 60000); os._exit(7)").save()
    program = made.config["process"]["args"]
    for command in (("exec", "--preserve-fds=2", c.name, *program), ("run", "--preserve-fds=2", "--bundle", made.path, "flight")):
        reader, writer = os.pipe()
        ours, theirs = socket.socketpair()
        process = passing(runtime, [writer, theirs.detach()], *command)
        # It is all there, though nobody has read it yet.
        assert process.wait(60) == 7
        with open(reader, "rb") as pipe, ours, ours.makefile("rb") as stream:
            ours.settimeout(60)
            assert (len(pipe.read()), len(stream.read())) == (60000, 60000)


@only_chiton
def test_what_is_not_there(runtime, container, bundle):
    """runc passes on what it has at that number itself, if it has something."""
    c = container("sleep", "1000")
    made = bundle("true").save()
    for command, code in ((("run", "--preserve-fds=2", "--bundle", made.path, "absent"), 1), (("exec", "--preserve-fds=2", c.name, "true"), 255)):
        process = passing(runtime, [os.open("/dev/null", os.O_RDONLY)], *command, stderr=subprocess.PIPE, text=True)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code and "unable to stat preserved-fd 1 (of 2)" in said, said
    assert runtime.status("absent") is None


@only_chiton
def test_what_bytes_are_not_all_there_is_to(runtime, container, bundle, scratch):
    """What cannot leave the host is refused by its number and what it is, and nothing is left."""
    c = container("sleep", "1000")
    made = bundle("true").save()
    fifo = scratch / "both"
    os.mkfifo(fifo)

    def listening():
        with socket.socket() as listener:
            listener.listen()
            return os.dup(listener.fileno())

    kinds = {"a regular file": lambda: os.open(made.path / "config.json", os.O_RDONLY),
             "a directory": lambda: os.open("/", os.O_RDONLY),
             "a listening socket": listening,
             "a datagram socket": lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].detach(),
             "a socket that is not connected": lambda: socket.socket().detach(),
             "not a stream (eventfd)": lambda: os.eventfd(0),
             "a character device": lambda: os.open("/dev/kvm", os.O_RDWR),
             "a FIFO that is open for both directions": lambda: os.open(fifo, os.O_RDWR)}
    for what, make in kinds.items():
        for command, code in ((("run", "--preserve-fds=2", "--bundle", made.path, "none"), 1),
                              (("exec", "--preserve-fds=2", c.name, "true"), 255)):
            process = passing(runtime, [os.open("/dev/null", os.O_RDONLY), make()], *command, stderr=subprocess.PIPE, text=True)
            said = process.communicate(timeout=60)[1]
            assert process.returncode == code and f"--preserve-fds: descriptor 4 is {what};" in said, said
            assert len(said.splitlines()) == 1
    process = passing(runtime, [listening()], "run", "--bundle", made.path, "none", environment="LISTEN_PID=$$ LISTEN_FDS=1",
                      stderr=subprocess.PIPE, text=True)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "LISTEN_FDS: descriptor 3 is a listening socket;" in said, said
    done = runtime("run", "--preserve-fds=17", "--bundle", made.path, "none")
    assert done.returncode == 1 and "17 descriptors to preserve exceed the maximum of 16" in done.stderr
    assert runtime.status("none") is None and c.status == "running"
    fifo.unlink()


def test_socket_activation(runtime, bundle):
    """Its descriptors come before those of --preserve-fds; what is meant for another process is none."""
    made = bundle("python3", "-c", "import os\nprint(os.environ.get('LISTEN_FDS'), os.environ.get('LISTEN_PID'), os.getpid(), flush=True)\n"
                  "for n in (3, 4): os.write(n, b'%d' % n)").save()
    for environment, first, names in (("LISTEN_PID=$$ LISTEN_FDS=1", ("--preserve-fds=1",), b"1 1 1\n"),
                                      ("LISTEN_PID=1 LISTEN_FDS=1", ("--preserve-fds=2",), b"None None 1\n")):
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        process = passing(runtime, [theirs.detach(), writer], "run", *first, "--bundle", made.path, "activated",
                          environment=environment, stdout=subprocess.PIPE)
        assert process.communicate(timeout=60)[0] == names and process.returncode == 0
        with open(reader, "rb") as pipe, ours:
            assert (ours.recv(10), pipe.read()) == (b"3", b"4")


class Manager:
    """The service manager's socket: what it is told, in order. A barrier is let through at once."""

    def __init__(self, path):
        self.path, self.told = str(path), []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()
        self.environment = dict(os.environ, NOTIFY_SOCKET=self.path)

    def listen(self):
        while True:
            text, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 8)
            for fd in descriptors:
                os.close(fd)
            if text == b"end":
                return
            self.told.append(text.decode())

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", self.path)
        self.thread.join()
        self.socket.close()
        os.unlink(self.path)

    def take(self):
        told, self.told = self.told, []
        return told


NOTIFIES = r"""
import os, socket, sys, time
path = os.environ["NOTIFY_SOCKET"]
assert path == "/run/notify/notify.sock", path
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(path)
s.send(b"STATUS=on the way")
s.send(b"WATCHDOG=1")
assert any(line.split()[1] == "/run/notify" and "ro" in line.split()[3].split(",") for line in open("/proc/mounts"))
time.sleep(0.5)
print("now", flush=True)
if sys.argv[1] == "ready":
    s.send(b"READY=1\nSTATUS=up")
    print(sys.stdin.readline() if sys.stdin else "", flush=True)
"""


def test_a_manager_hears_that_a_container_is_ready(runtime, bundle, scratch):
    made = bundle("python3", "-c", NOTIFIES, "ready").save()
    # runc has the barrier since 1.2.
    barrier = ["BARRIER=1"] if runtime.name == "chiton" else []
    pid_file, output = made.path / "pid", made.path / "output"
    feed_reader, feed = os.pipe()
    with contextlib.closing(Manager(scratch / "notify")) as manager, open(output, "wb") as file:
        streams = {"stdin": feed_reader, "stdout": file, "stderr": file}
        flags = ("--bundle", made.path, "--pid-file", pid_file)
        runtime.ok("create", *flags, "n", env=manager.environment, **streams)
        assert manager.take() == []
        runtime.ok("start", "n", env=manager.environment)
        # Who starts it waits for it.
        assert output.read_text() == "now\n"
        assert manager.take() == ["READY=1\n", f"MAINPID={pid_file.read_text()}\n"] + barrier
        # Other processes of the container know nothing of it.
        assert runtime.ok("exec", "n", "sh", "-c", "echo $NOTIFY_SOCKET") == "\n"
        runtime.ok("delete", "--force", "n")
        runtime.ok("run", "--detach", *flags, "n", env=manager.environment, **streams)
        assert manager.take() == ["READY=1\n", f"MAINPID={pid_file.read_text()}\n"] + barrier
        runtime.ok("delete", "--force", "n")
        # The verb that stays is what the manager is to watch.
        process = runtime.popen("run", "--bundle", made.path, "n", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=manager.environment)
        assert process.stdout.readline() == b"now\n"
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stdout.read() == b"go\n\n" and process.wait(60) == 0
        assert manager.take() == ["READY=1\n", f"MAINPID={process.pid}\n"] + barrier
        # One that ends without a word.
        made.config["process"]["args"][-1] = "never"
        made.save()
        runtime.ok("create", *flags, "n", env=manager.environment, **streams)
        runtime.ok("start", "n", env=manager.environment)
        runtime.ok("delete", "--force", "n")
        assert manager.take() == []
        # Who starts one that was created without has nothing to hear.
        made.config["process"]["args"] = ["true"]
        made.save()
        runtime.ok("create", *flags, "n", **streams)
        done = runtime("start", "n", env=manager.environment)
        assert done.returncode == 1 and "notif" in done.stderr.lower()
        assert runtime.status("n") == "created" and manager.take() == []
        runtime.ok("delete", "n")
    for fd in (feed_reader, feed):
        os.close(fd)
