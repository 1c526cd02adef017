"""Executes system calls in a thread of another process, as code would that has taken it over. x86_64.

The thread is stopped by ptrace(2), its registers are set to a system call, and its next stops are that call's entry and exit. In the
end it has its own registers again and goes on with what was interrupted. A call that a seccomp filter traps shows as SIGSYS, which
the tracer keeps from the process: one process serves for many attempts."""

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

# linux/ptrace.h
PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH, PTRACE_SYSCALL = 7, 12, 13, 17, 24
PTRACE_GETEVENTMSG, PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4201, 0x4206, 0x4207
O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE = 1, 2, 4, 8
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_STOP = 1, 2, 3, 128
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000

NUMBERS = {name: int(number) for name, number in re.findall(
    r"^#define __NR_(\w+) (\d+)$", pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text(), re.MULTILINE)}

# Bytes below a thread's stack pointer that its own code never has anything in: past the ABI's red zone of 128, with room for arguments.
BELOW_THE_STACK = 16 << 10


class Registers(ctypes.Structure):
    """struct user_regs_struct (sys/user.h)."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in
                "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs".split()]


class Ended(Exception):
    """The process has ended, with this wait status."""


class Trapped(Exception):
    """A seccomp filter has trapped the call."""


def _ptrace(request, thread, address=0, data=0):
    if _libc.ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


def threads(pid):
    """The threads of a process by their names; of equal names the first."""
    found = {}
    for entry in sorted(pathlib.Path(f"/proc/{pid}/task").iterdir(), key=lambda entry: int(entry.name)):
        found.setdefault((entry / "comm").read_text().strip(), int(entry.name))
    return found


def _mappings(pid):
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, access = line.split()[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        yield start, end, access


class Thread:
    """A thread that is stopped. Made by `stopped`."""

    def __init__(self, pid, thread):
        self.pid, self.thread = pid, thread
        self.memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        self.instruction = self._find_instruction()
        options = O_TRACESYSGOOD | O_TRACEFORK | O_TRACEVFORK | O_TRACECLONE
        _ptrace(PTRACE_SEIZE, thread, 0, options)
        _ptrace(PTRACE_INTERRUPT, thread)
        self._until_interrupted()
        self.own = self._registers()
        self.scratch = (self.own.rsp - BELOW_THE_STACK) & ~0xfff
        assert any(start <= self.scratch and self.own.rsp < end and access.startswith("rw") for start, end, access in _mappings(pid))

    def call(self, name, *arguments, pass_on_trap=False):
        """Executes a system call; its result, with bytes as arguments replaced by their address. OSError is the call's error; Trapped
        that a filter denies it, which the process does not hear of unless said otherwise: then it is left to its signal."""
        registers = Registers.from_buffer_copy(self.own)
        place, values = self.scratch, []
        for argument in arguments:
            if isinstance(argument, (bytes, bytearray)):
                os.pwrite(self.memory, argument, place)
                values.append(place)
                place += (len(argument) + 15) & ~15
                assert place < self.scratch + BELOW_THE_STACK // 2
            else:
                values.append(argument)
        for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), values + [0] * 6):
            setattr(registers, register, value & 0xffffffffffffffff)
        registers.rip, registers.rax, registers.orig_rax = self.instruction, NUMBERS[name], 0xffffffffffffffff
        self._set(registers)
        self._resume(PTRACE_SYSCALL)  # to the entry
        self._resume(PTRACE_SYSCALL)  # to the exit
        result = ctypes.c_longlong(self._registers().rax).value
        if self._is_pending(signal.SIGSYS):
            # It stops for its signal, which it does not get unless it goes on with it.
            _ptrace(PTRACE_CONT, self.thread)
            stop = self._wait()
            assert stop == (signal.SIGSYS, 0), stop
            if pass_on_trap:
                _ptrace(PTRACE_DETACH, self.thread, 0, signal.SIGSYS)
            raise Trapped(name)
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def read(self, length, offset=0):
        """What lies where the first argument of bytes has been."""
        return os.pread(self.memory, length, self.scratch + offset)

    def release(self):
        """Lets the thread go on with its own."""
        try:
            # Only what has been stopped by a signal takes an interrupted system call up again (signal(7)).
            _ptrace(PTRACE_INTERRUPT, self.thread)
            _ptrace(PTRACE_CONT, self.thread)
            self._until_interrupted()
            self._set(self.own)
            _ptrace(PTRACE_DETACH, self.thread)
        except (Ended, ProcessLookupError):
            pass
        finally:
            os.close(self.memory)

    def _find_instruction(self):
        """The address of a `syscall`, which may as well be within another instruction: what follows it is never executed."""
        for start, end, access in _mappings(self.pid):
            if access.startswith("r-x"):
                try:
                    found = os.pread(self.memory, end - start, start).find(b"\x0f\x05")
                except OSError:  # [vsyscall]
                    continue
                if found >= 0:
                    return start + found
        raise AssertionError("no system call in the text")

    def _until_interrupted(self):
        while True:
            number, event = self._wait()
            if event == EVENT_STOP:
                return
            # A signal of its own is none of ours; SIGSYS is of a call that was made for it.
            _ptrace(PTRACE_CONT, self.thread, 0, 0 if event or number in (SYSCALL_STOP, signal.SIGSYS) else number)

    def _resume(self, how):
        """Goes on until the next entry or exit of a system call. A process that is forked on the way ends at once."""
        _ptrace(how, self.thread)
        while True:
            number, event = self._wait()
            if number == SYSCALL_STOP:
                return
            if event in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE):
                self._end_child()
            _ptrace(how, self.thread)

    def _end_child(self):
        child = ctypes.c_ulong()
        _ptrace(PTRACE_GETEVENTMSG, self.thread, 0, ctypes.addressof(child))
        os.waitpid(child.value, WALL)
        os.kill(child.value, signal.SIGKILL)
        os.waitpid(child.value, WALL)

    def _wait(self):
        """The signal and the event of the next stop."""
        _, status = os.waitpid(self.thread, WALL)
        if not os.WIFSTOPPED(status):
            raise Ended(status)
        return status >> 8 & 0xff, status >> 16

    def _registers(self):
        registers = Registers()
        _ptrace(PTRACE_GETREGS, self.thread, 0, ctypes.addressof(registers))
        return registers

    def _set(self, registers):
        _ptrace(PTRACE_SETREGS, self.thread, 0, ctypes.addressof(registers))

    def _is_pending(self, number):
        status = pathlib.Path(f"/proc/{self.pid}/task/{self.thread}/status").read_text()
        return int(re.search(r"^SigPnd:\s*(\w+)$", status, re.MULTILINE)[1], 16) >> number - 1 & 1


@contextlib.contextmanager
def stopped(pid, name):
    """The thread of this name, stopped."""
    thread = Thread(pid, threads(pid)[name])
    try:
        yield thread
    finally:
        thread.release()


def outcome(function):
    """What came of an attempt: the result, an errno's name, or `SIGSYS`."""
    try:
        return function()
    except Trapped:
        return "SIGSYS"
    except OSError as e:
        return errno.errorcode[e.errno]
