"""Terminals as callers have them: the other end of a console socket, and a real one to type in."""

import array
import contextlib
import fcntl
import os
import pathlib
import re
import select
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import termios
import time

from chiton import wait_for


class Terminal:
    """The master of a pseudo terminal."""

    def __init__(self, fd, payload=b""):
        self.fd, self.payload, self.seen = fd, payload, b""

    def close(self):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def send(self, text):
        data = text.encode()
        while data:
            data = data[os.write(self.fd, data):]

    def read(self, seconds=30):
        """What comes next, b"" at the end."""
        assert select.select([self.fd], [], [], seconds)[0], f"nothing more comes after {self.seen[-2000:]}"
        try:
            return os.read(self.fd, 1 << 16)
        except OSError:  # EIO: nobody has the slave open
            return b""

    def expect(self, pattern, seconds=30):
        """Reads until the pattern is there; what came up to its end."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern.encode(), self.seen)):
            assert time.monotonic() < end, f"{pattern} is not in {self.seen[-2000:]}"
            piece = self.read(seconds)
            assert piece, f"end before {pattern}: {self.seen[-2000:]}"
            self.seen += piece
        text, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return text.decode()

    def rest(self):
        """All up to the end."""
        while piece := self.read():
            self.seen += piece
        return self.seen.decode()

    def command(self, text):
        """What a shell at the other end prints for a command."""
        self.send(f"echo '<''<'; {text}; echo '>''>'\n")  # quoted twice: the echo of the line does not look like the output
        text = self.expect(r"<<\r\n(?s:.*)>>\r\nguest:")  # with the prompt that the tests set
        return re.search(r"<<\r\n(.*)>>", text, re.DOTALL).group(1).replace("\r\n", "\n")

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


class ConsoleSocket:
    """Takes the masters of terminals that a runtime sends."""

    def __init__(self):
        # Not below the bundle: the path of a socket has at most 107 bytes.
        self.directory = tempfile.mkdtemp(prefix="console-")
        self.path = self.directory + "/socket"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.path)
        self.socket.listen()
        self.socket.settimeout(30)
        self.terminals = []

    def terminal(self):
        connection = self.socket.accept()[0]
        with connection:
            connection.settimeout(30)
            payload, ancillary, _flags, _address = connection.recvmsg(4096, socket.CMSG_SPACE(4 * 8))
            [(level, kind, data)] = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            [fd] = array.array("i", data)
            self.terminals.append(Terminal(fd, payload))
            assert connection.recv(1) == b""  # one message, and no more
        return self.terminals[-1]

    def close(self):
        for each in self.terminals:
            each.close()
        self.socket.close()
        shutil.rmtree(self.directory)


class Tmux:
    """A terminal with a shell in it, that a user sits at."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tmux-"))
        self.start = ["tmux", "-S", str(self.directory / "socket"), "-f", "/dev/null"]
        self("new-session", "-d", "-x", "90", "-y", "25", "env PS1=host: sh")
        self("set-option", "-g", "window-size", "manual")
        self.expect("host:")

    def __call__(self, *args):
        environment = os.environ | {"LC_ALL": "C.UTF-8", "TERM": "xterm"}
        return subprocess.run([*self.start, *map(str, args)], env=environment, capture_output=True, text=True, timeout=30, check=True).stdout

    def type(self, text):
        """Types a line."""
        self("send-keys", "-l", text)
        self("send-keys", "Enter")

    def screen(self):
        return self("capture-pane", "-p", "-S", "-")

    def expect(self, text, seconds=30):
        with contextlib.suppress(AssertionError):
            wait_for(lambda: text in self.screen(), seconds)
        assert text in self.screen(), self.screen()

    def run(self, command):
        """Types a command whose modes and code are kept for `done`."""
        (self.directory / "after").unlink(missing_ok=True)
        self("send-keys", "-R")
        self("clear-history")
        self.type(f"cd {self.directory}; stty -g >before; {shlex.join(command)}; echo $? >code; stty -g >modes; mv modes after")

    def done(self):
        """Waits for the command's end: the terminal is as it was; the exit code."""
        with contextlib.suppress(AssertionError):
            wait_for((self.directory / "after").exists)
        assert (self.directory / "after").exists(), self.screen()
        before, after, code = ((self.directory / name).read_text() for name in ("before", "after", "code"))
        assert after == before
        return int(code)

    def close(self):
        self("kill-server")
        shutil.rmtree(self.directory)
