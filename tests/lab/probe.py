"""Decides whether the KVM of this machine runs guest kernel code on hardware.

On some virtual machines /dev/kvm opens and every ioctl succeeds, but the module behind it has no
hardware: it emulates guest kernel code (CPL 0) one instruction at a time. No system boots there. Only
running such code tells the two apart, so that is what the probe does.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import time

# ioctl numbers: Linux include/uapi/linux/kvm.h.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_API_VERSION = 12
KVM_EXIT_HLT = 5

# Sizes and offsets of kvm_regs (rax, rbx, rcx .. r15, rip, rflags), kvm_sregs (starts with the
# kvm_segment cs: u64 base, u32 limit, u16 selector) and kvm_run (u32 exit_reason at byte 8).
REGS = struct.Struct("=18Q")
RCX, RIP, RFLAGS = 2, 16, 17
SREGS_SIZE = 312
CS_BASE, CS_SELECTOR = 0, 12
RUN_EXIT_REASON = 8

# 16-bit code at address 0: 1: dec ecx; jnz 1b; hlt
LOOP = b"\x66\x49\x75\xfc\xf4"
LOOP_INSTRUCTIONS = 2
ITERATIONS = 10_000_000
# The loop is stopped after this many seconds; hardware ends it in a few ms, the emulator never.
LIMIT_S = 0.15
# Millions of instructions per second: an emulating KVM reaches 1 to 3, hardware (nested or not) hundreds.
THRESHOLD = 30


def kvm_speed():
    """Runs the loop in a virtual machine; returns its speed in millions of instructions per second.

    Raises OSError with a text that says what failed.
    """
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    opened = [kvm]
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        if fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION:
            raise OSError("unknown KVM API version")
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        opened.append(vm)
        memory[: len(LOOP)] = LOOP
        view = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(view)
        del view  # the mapping itself stays until it is closed below
        # slot 0, no flags, guest address 0, one page
        fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, mmap.PAGESIZE, address))
        vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
        opened.append(vcpu)
        return _run_loop(kvm, vcpu)
    finally:
        for fd in reversed(opened):
            os.close(fd)
        memory.close()


def _run_loop(kvm, vcpu):
    sregs = bytearray(SREGS_SIZE)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, CS_BASE, 0)
    struct.pack_into("=H", sregs, CS_SELECTOR, 0)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
    regs = [0] * 18
    regs[RCX], regs[RIP], regs[RFLAGS] = ITERATIONS, 0, 2
    fcntl.ioctl(vcpu, KVM_SET_REGS, REGS.pack(*regs))
    size = fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)
    with mmap.mmap(vcpu, size) as run:
        # The interval repeats: a first signal that comes before KVM_RUN must not be the last one.
        previous = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 0.05)
        start = time.thread_time()  # not the wall clock: other load does not count
        try:
            fcntl.ioctl(vcpu, KVM_RUN, 0)
            finished = True
        except InterruptedError:
            finished = False
        finally:
            elapsed = time.thread_time() - start
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        reason = struct.unpack_from("=I", run, RUN_EXIT_REASON)[0]
    if finished and reason != KVM_EXIT_HLT:
        raise OSError(f"the test loop left KVM_RUN with exit reason {reason}")
    after = bytearray(REGS.size)
    fcntl.ioctl(vcpu, KVM_GET_REGS, after)
    left = 0 if finished else REGS.unpack(after)[RCX] & 0xFFFFFFFF
    return (ITERATIONS - left) * LOOP_INSTRUCTIONS / elapsed / 1e6


def judge():
    """Returns (usable, reason)."""
    if not os.path.exists("/dev/kvm"):
        return False, "there is no /dev/kvm"
    try:
        speed = kvm_speed()
    except OSError as error:
        return False, f"/dev/kvm is not usable: {error}"
    measured = f"CPL-0 code runs at {speed:.1f} Minstr/s in /dev/kvm, {THRESHOLD} or more is hardware"
    return speed >= THRESHOLD, measured
