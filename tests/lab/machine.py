"""One run of the lab: a QEMU machine with a software CPU that runs one job and is gone.

The job, its output and its exit code travel through virtio-console ports (see `init`), each a socket pair
between QEMU and this process: exact bytes, no files. The scratch disk is a file without a name. QEMU dies with
this process whatever kills it, so nothing can be left behind.
"""

import base64
import ctypes
import os
import resource
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field

import image
from image import LabError

TIMEOUT_CODE = 124
# Of Debian's packages, for a QEMU that is none of them.
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
CONSOLE_KEEP = 16 * 1024
CONSOLE_SHOWN_LINES = 40
PR_SET_PDEATHSIG = 1  # Linux include/uapi/linux/prctl.h


@dataclass
class Options:
    """How to start the lab; sizes in MiB, times in seconds."""

    memory: int
    smp: int = 1
    count: bool = False
    plugin: str | None = None
    selinux: bool = False
    timeout: float | None = None
    tmp: int = 2048
    scratch: int = 6144
    out: str | None = None
    bind: list = field(default_factory=list)
    verbose: bool = False
    terminal: bool = False


def run(options, command, say):
    """Runs `command` in a fresh lab; returns its exit code (128 + N for a signal, 124 for the timeout)."""
    files = image.prepare(say)
    start, used = time.monotonic(), _processor_time()
    with Machine(options, files) as machine:
        code = machine.run_job(command)
    say(f"took {time.monotonic() - start:.0f} s, {_processor_time() - used:.0f} s of a processor")
    return code


def _processor_time():
    """Seconds that the processes which this one has started and seen end have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _pair():
    ours, theirs = socket.socketpair()
    return ours, theirs


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _scratch_disk(size_mib):
    """An open file without a name that holds an empty ext4 file system, without checksums: a CPU that is emulated is slow at them."""
    fd = os.open(image.cache_dir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.truncate(fd, size_mib << 20)
    made = subprocess.run(
        [image.program("mkfs.ext4"), "-q", "-F", "-m", "0", "-O", "^has_journal,^metadata_csum", "-L", "scratch", f"/proc/self/fd/{fd}"],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise LabError(f"mkfs.ext4 of the scratch disk failed: {made.stderr.strip()}")
    return fd


class Machine:
    """A QEMU process and our ends of its ports."""

    def __init__(self, options, files):
        self.options = options
        self.files = files
        self.process = None
        self.errors = tempfile.TemporaryFile()
        self.ports = {}
        self.console = b""
        self.code = None
        self.control = b""

    def __enter__(self):
        theirs = {}
        for name in ("control", "out", "err", "console"):
            self.ports[name], theirs[name] = _pair()
        disk = _scratch_disk(self.options.scratch)
        fds = {name: end.fileno() for name, end in theirs.items()}
        self.process = subprocess.Popen(
            self._qemu(fds, disk),
            stdin=None if self.options.terminal else subprocess.DEVNULL,
            stdout=None if self.options.terminal else subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=[*fds.values(), disk],
            # Ctrl-C is for this process, which then ends the machine.
            process_group=None if self.options.terminal else 0,
            preexec_fn=_die_with_parent,
        )
        os.close(disk)
        for end in theirs.values():
            end.close()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for end in self.ports.values():
            end.close()
        self.errors.close()

    def _qemu(self, fds, disk):
        options = self.options
        if options.count:
            accel = ["-accel", "tcg,tb-size=1024", "-icount", "shift=0,align=off,sleep=off", "-smp", "1"]
            accel += ["-cpu", "max,-erms"]
        else:
            # Of the models with SVM the one that runs guests fastest: it has no ERMS, with which string moves count byte by byte.
            accel = ["-accel", "tcg,thread=multi,tb-size=1024", "-smp", str(options.smp), "-cpu", "EPYC"]
        command = [self.files.qemu, *accel]
        for directory in FIRMWARE:
            command += ["-L", directory]
        command += ["-machine", "q35", "-m", str(options.memory), "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-kernel", self.files.kernel, "-initrd", self.files.initrd]
        # What is at another address each time would be translated each time (norandmaps).
        parameters = "quiet mitigations=off nokaslr norandmaps no_timer_check console=ttyS0 reboot=t panic=-1 oops=panic"
        command += ["-append", parameters + (" security=selinux" if options.selinux else "")]
        command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on"]
        if options.plugin:
            command += ["-plugin", options.plugin]
        if options.out:
            shared = options.out.replace(",", ",,")
            command += ["-virtfs", f"local,path={shared},mount_tag=out,security_model=none,multidevs=remap"]
        command += ["-drive", f"if=virtio,format=raw,cache=unsafe,discard=unmap,file=/proc/self/fd/{disk}"]
        for name, fd in fds.items():
            command += ["-chardev", f"socket,id={name},fd={fd}"]
        command += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
        if options.terminal:
            command += ["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,nr=0,chardev=terminal"]
        for nr, name in enumerate(("control", "out", "err"), start=1):
            command += ["-device", f"virtserialport,nr={nr},chardev={name},name={name}"]
        return command

    def run_job(self, command):
        """Sends the job and relays what comes until it has ended."""
        text = self._configuration() + self._job(command)
        message = base64.b64encode(os.fsencode(text)) + b"\n"
        self.ports["control"].settimeout(None)
        deadline = None if self.options.timeout is None else time.monotonic() + self.options.timeout
        saved = termios.tcgetattr(0) if self.options.terminal else None
        try:
            return self._relay(message, deadline)
        finally:
            if saved:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)

    def _configuration(self):
        options = self.options
        values = {
            "LAB_RELEASE": self.files.release,
            "LAB_MODULES": self.files.modules,
            "LAB_OUT": options.out or "",
            "LAB_TMP": f"{options.tmp}m",
            "LAB_TTY": "1" if options.terminal else "",
            "LAB_BIND": "\n".join(options.bind),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())

    def _job(self, command):
        environment = dict(os.environ, CHITON_LAB="lab")
        words = [f"{name}={value}" for name, value in environment.items()]
        resize = ""
        if self.options.terminal:
            columns, rows = os.get_terminal_size(0)
            resize = f"/run/lab/busybox stty rows {rows} cols {columns}\n"
        directory = shlex.quote(os.getcwd())
        execute = f"exec /usr/bin/env -i {shlex.join(words)} {shlex.join(command)}\n"
        return f"lab_job() {{\n{resize}cd {directory} || exit 125\n{execute}}}\n"

    def _relay(self, message, deadline):
        with selectors.DefaultSelector() as selector:
            for name, end in self.ports.items():
                end.setblocking(False)
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if name == "control" else 0)
                selector.register(end, events, name)
            while self.code is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._drain()
                    self._show_console(f"killed after {self.options.timeout:g} s")
                    return TIMEOUT_CODE
                for key, events in selector.select(left):
                    if events & selectors.EVENT_WRITE:
                        message = message[key.fileobj.send(message) :]
                        if not message:
                            selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
                    if events & selectors.EVENT_READ and not self._receive(key.data):
                        self._drain()
                        self._machine_ended()
        self._drain()
        return self.code

    def _receive(self, name):
        """Takes what a port has; False when QEMU has closed it."""
        try:
            data = self.ports[name].recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if name == "control":
            self._take_control(data)
        elif name == "console":
            self.console = (self.console + data)[-CONSOLE_KEEP:]
            if self.options.verbose:
                _write(2, data)
        else:
            _write(1 if name == "out" else 2, data)
        return bool(data)

    def _take_control(self, data):
        *lines, self.control = (self.control + data).split(b"\n")
        for line in lines:
            if line.startswith(b"exit "):
                self.code = int(line[5:])

    def _drain(self):
        """Takes what QEMU has already handed over: all of it, once the job has said that it is done."""
        for name in ("out", "err", "console"):
            while True:
                try:
                    waiting = self.ports[name].recv(1, socket.MSG_PEEK)
                except OSError:
                    break
                if not waiting or not self._receive(name):
                    break

    def _machine_ended(self):
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self._show_console("the machine ended by itself")
        self.errors.seek(0)
        errors = self.errors.read().decode(errors="replace").strip()
        raise LabError(f"the machine ended before the job (QEMU exit code {code}) {errors}")

    def _show_console(self, why):
        lines = self.console.decode(errors="replace").replace("\r", "").splitlines()
        for line in lines[-CONSOLE_SHOWN_LINES:]:
            print(f"lab console: {line}", file=sys.stderr)
        print(f"lab: {why}", file=sys.stderr, flush=True)


def _write(fd, data):
    while data:
        data = data[os.write(fd, data) :]
