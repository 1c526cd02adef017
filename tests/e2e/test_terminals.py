"""Terminals: the master is the caller's, the line discipline is the container's, and sizes and hang-ups travel."""

import concurrent.futures
import hashlib
import json
import os
import signal
import subprocess

import pytest

from chiton import alive, ended, subreaper, wait_for
from terminals import ConsoleSocket, Tmux

# Prints its size at the start and whenever it is told that it has another one.
WATCH = """
import os, signal
def show(*_):
    size = os.get_terminal_size(0)
    os.write(1, f"size {size.lines} {size.columns}\\n".encode())
signal.signal(signal.SIGWINCH, show)
show()
while True: signal.pause()
"""
# Says that it has been hung up.
HANGUP = """
import os, signal
def hangup(*_):
    open("/hung-up", "w").close()
    os._exit(5)
signal.signal(signal.SIGHUP, hangup)
print("up", flush=True)
while True: signal.pause()
"""


@pytest.fixture
def console():
    made = ConsoleSocket()
    yield made
    made.close()


@pytest.fixture
def tmux():
    made = Tmux()
    yield made
    made.close()


def interactive(config):
    config["process"]["terminal"] = True
    config["process"]["consoleSize"] = {"height": 31, "width": 101}
    config["process"]["env"] += ["TERM=xterm", "PS1=guest:"]


def watch_size(terminal):
    for rows, columns in ((40, 120), (10, 20), (41, 121)):
        terminal.resize(rows, columns)
        terminal.expect(f"size {rows} {columns}\r\n")


def test_a_shell(container, console, rootfs):
    """create and start with a console socket, then all that one does at a terminal."""
    (rootfs / "watch.py").write_text(WATCH)
    with subreaper():
        c = container("sh", change=interactive, verb=("create", "--console-socket", console.path))
        # The terminal is there before the program runs.
        terminal = console.terminal()
        assert 0 < len(terminal.payload) < 4096
        if c.runtime.name == "chiton":
            assert terminal.payload.startswith(b"/dev/pts/")
        c.verb("start")
        terminal.expect("guest:")
        assert terminal.command("stty size") == "31 101\n"
        assert terminal.command("tty; for n in 0 1 2; do test -t $n && echo yes; done") == "/dev/pts/0\nyes\nyes\nyes\n"
        # /dev/console is the same terminal, and it is the controlling one.
        assert terminal.command("test /dev/console -ef /dev/pts/0 && echo same; echo here >/dev/console; echo there >/dev/tty") \
            == "same\nhere\nthere\n"
        assert terminal.command("ps -o tty= -p $$; stat -c '%a %u %g' /dev/pts/0") == "pts/0\n620 0 5\n"
        # The guest's line discipline: echo, erase, output processing.
        terminal.send("echo abX\x7fc\n")
        assert terminal.expect("abc\r\n\r?guest:").startswith("echo abX\b \bc\r\n")
        terminal.send("stty -echo; echo $((40 + 2))\n")
        terminal.expect("42\r\n")
        terminal.send("echo quiet\n")
        terminal.expect("guest:")
        assert terminal.expect("guest:") == "quiet\r\nguest:"
        terminal.send("stty sane\n")
        terminal.expect("guest:")
        # Keys that are signals and ends.
        for key, code in (("\x03", 130), ("\x1c", 131)):
            terminal.send("(echo u''p; exec sleep 1000)\n")
            terminal.expect("up\r\n")
            terminal.send(key)
            terminal.expect("guest:")
            terminal.send("echo code=$?\n")
            terminal.expect(f"code={code}\r\nguest:")
        terminal.send("cat; echo code=$?\n")
        terminal.send("one\n")
        terminal.expect("one\r\none\r\n")
        terminal.send("\x04")
        terminal.expect("code=0\r\nguest:")
        # Sizes.
        terminal.send("python3 /watch.py\n")
        terminal.expect("size 31 101\r\n")
        watch_size(terminal)
        terminal.send("\x03")
        terminal.expect("guest:")
        assert terminal.command("stty size") == "41 121\n"
        # What is written last is not lost.
        terminal.send("echo las''t; exit 7\n")
        assert terminal.rest().endswith("last\r\n")
        assert ended(c.pid) == 7


def test_ten_mib(container, console):
    c = container("sh", "-c", "stty raw -echo; echo go; exec head -c 10485760", change=interactive,
                  verb=("run", "--detach", "--console-socket", console.path))
    terminal = console.terminal()
    terminal.expect("go\n")
    data = os.urandom(10 << 20)
    received = hashlib.sha256(terminal.seen)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        def feed():
            left = memoryview(data)
            while left:
                left = left[os.write(terminal.fd, left[:1 << 16]):]
        feeding = pool.submit(feed)
        while piece := terminal.read():
            received.update(piece)
        feeding.result()
    assert received.digest() == hashlib.sha256(data).digest()
    wait_for(lambda: not alive(c.pid))


def test_hang_up(container, console, rootfs):
    """The caller closes its master: the program is told as by any terminal that goes away."""
    with subreaper():
        c = container("python3", "-c", HANGUP, change=interactive, verb=("run", "--detach", "--console-socket", console.path))
        terminal = console.terminal()
        terminal.expect("up\r\n")
        terminal.close()
        assert ended(c.pid) == 5
        assert (rootfs / "hung-up").exists()


def test_exec(container, console, rootfs):
    """exec with a terminal, detached: a terminal of its own for each."""
    (rootfs / "hangup.py").write_text(HANGUP)
    c = container("sleep", "1000")
    path, pid_file = c.bundle.path / "process.json", c.bundle.path / "exec-pid"

    def execute(*args, **more):
        path.write_text(json.dumps({"terminal": True, "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0},
                                    "env": ["PATH=/usr/bin:/bin", "PS1=guest:", "TERM=xterm"]} | more))
        done = c.exec(options=("--process", path, "--detach", "--tty", "--console-socket", console.path, "--pid-file", pid_file),
                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert done.returncode == 0
        return console.terminal(), int(pid_file.read_text())

    with subreaper():
        shell, shell_pid = execute("sh")
        watcher, watcher_pid = execute("python3", "-c", WATCH)
        shell.expect("guest:")
        watcher.expect(r"size \d+ \d+\r\n")
        watch_size(watcher)
        assert shell.command("test -t 0 && test -t 1 && test -t 2 && echo yes; echo there >/dev/tty; tty") == "yes\nthere\n" + \
            shell.command("readlink /proc/self/fd/0")
        shell.resize(50, 60)
        wait_for(lambda: shell.command("stty size") == "50 60\n")
        watcher.send("\x03")  # Ctrl-C in one is not seen by the other
        assert "^C" in watcher.rest()
        assert ended(watcher_pid) in (1, -signal.SIGINT)
        shell.send("\x04")
        assert ended(shell_pid) == 0
        # Hang-ups: handled, and not.
        terminal, pid = execute("python3", "/hangup.py")
        terminal.expect("up\r\n")
        terminal.close()
        assert ended(pid) == 5 and (rootfs / "hung-up").exists()
        terminal, pid = execute("sh", "-c", "echo up; exec sleep 1000")
        terminal.expect("up\r\n")
        terminal.close()
        assert ended(pid) == -signal.SIGHUP
        terminal, pid = execute("sh", "-c", "echo up; exec sleep 1000")
        terminal.expect("up\r\n")
        c.verb("kill", "KILL")
        assert ended(pid) == -signal.SIGKILL
        terminal.rest()


def test_what_is_refused(runtime, bundle, container):
    made = bundle("true")
    made.config["process"]["terminal"] = True
    made.save()
    # Each runtime calls itself by its own name.
    without_socket = f"cannot allocate tty if {runtime.name} will detach without setting console socket"
    needless_socket = f"cannot use console socket if {runtime.name} will not detach or allocate tty"

    def refused(text, *args):
        done = runtime(*args)
        assert done.returncode not in (0, None) and text.lower() in done.stderr.lower(), done
        return done.returncode

    assert refused(without_socket, "create", "--bundle", made.path, "refused") == 1
    assert refused(without_socket, "run", "--detach", "--bundle", made.path, "refused") == 1
    assert refused(needless_socket, "run", "--console-socket", "/no/such", "--bundle", made.path, "refused") == 1
    refused("no such file or directory", "create", "--console-socket", "/no/such", "--bundle", made.path, "refused")
    made.config["process"]["terminal"] = False
    made.save()
    assert refused(needless_socket, "create", "--console-socket", "/no/such", "--bundle", made.path, "refused") == 1
    c = container("sleep", "1000")
    assert refused(without_socket, "exec", "--detach", "--tty", c.name, "true") == 255
    assert refused(needless_socket, "exec", "--tty", "--console-socket", "/no/such", c.name, "true") == 255
    assert refused(needless_socket, "exec", "--detach", "--console-socket", "/no/such", c.name, "true") == 255
    refused("no such file or directory", "exec", "--detach", "--tty", "--console-socket", "/no/such", c.name, "true")
    assert c.status == "running" and runtime.status("refused") is None


def test_in_a_real_terminal(runtime, bundle, tmux, rootfs):
    """run and exec in the foreground, at a user's own terminal."""
    (rootfs / "watch.py").write_text(WATCH)
    made = bundle("sh")
    interactive(made.config)
    del made.config["process"]["consoleSize"]
    made.save()
    tmux.run(runtime.command("run", "--bundle", made.path, "front"))
    tmux.expect("guest:")
    tmux.type("stty size; tty; echo $((6 * 7))")
    tmux.expect("25 90\n/dev/pts/0\n42\n")
    tmux.type("python3 /watch.py")
    tmux.expect("size 25 90")
    for columns, rows in ((70, 20), (110, 30)):
        tmux("resize-window", "-x", columns, "-y", rows)
        tmux.expect(f"size {rows} {columns}")
    tmux("send-keys", "C-c")
    tmux.expect("guest:")
    tmux.type("exit 3")
    assert tmux.done() == 3
    # Ended from outside.
    tmux.run(runtime.command("run", "--bundle", made.path, "killed"))
    tmux.expect("guest:")
    runtime.ok("kill", "killed", "KILL")
    assert tmux.done() == 137
    assert runtime.status("front") is None and runtime.status("killed") is None
    # exec beside a container that has no terminal.
    plain = bundle("sleep", "1000").save()
    runtime.ok("run", "--detach", "--bundle", plain.path, "back", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    execute = runtime.command("exec", "--tty", "--env", "PS1=guest:", "--env", "TERM=xterm", "back", "sh")
    tmux.run(execute)
    tmux.expect("guest:")
    tmux.type("stty size; echo $((6 * 8))")
    tmux.expect("30 110\n48\n")
    tmux("resize-window", "-x", 77, "-y", 22)
    tmux.type("sleep 0.2; stty size")
    tmux.expect("22 77\n")
    tmux("send-keys", "C-d")
    assert tmux.done() == 0
    tmux.run(execute)
    # The prompt alone is in the command, too, and runc waits for ever when the container ends while it begins to execute.
    tmux.type("echo $((6 * 9))")
    tmux.expect("54\n")
    runtime.ok("kill", "back", "KILL")
    assert tmux.done() == 137 or runtime.name == "runc"
    runtime.ok("delete", "--force", "back")


def test_a_line_ends_as_the_program_says(runtime, bundle):
    """The terminal that it is shown on makes CR LF of LF, once, and only there."""
    made = bundle("sh", "-c", "stty -a | grep -o -e '-*onlcr'; echo one")
    made.config["process"]["terminal"] = True
    made.save()
    busy = bundle("sleep", "1000").save()
    runtime.ok("run", "--detach", "--bundle", busy.path, "busy", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for command in (["run", "--bundle", made.path, "lines"],
                        ["exec", "--tty", "busy", "sh", "-c", "stty -a | grep -o -e '-*onlcr'; echo one"]):
            master, slave = os.openpty()
            process = runtime.popen(*command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            os.close(slave)
            out, err = process.communicate(timeout=60)
            os.close(master)
            assert (process.returncode, out) == (0, b"-onlcr\none\n"), (command, err)
    finally:
        runtime.ok("delete", "--force", "busy")


def test_who_has_the_master_says_how_a_line_ends(container, console):
    """On a console socket the terminal is as the kernel makes it."""
    container("sh", "-c", "stty -a | grep -o -e '-*onlcr'; read end", change=interactive,
              verb=("run", "--detach", "--console-socket", console.path))
    console.terminal().expect("onlcr\r\n")
