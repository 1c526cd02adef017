"""linux.seccomp: a profile has the same effect under chiton as under runc, told by what the calls of a program in the container do."""

import errno
import functools
import json
import operator
import pathlib
import re
import struct
import subprocess

import pytest

from chiton import CAPABILITIES, only_chiton

# Debian's golang-github-containers-common: what Podman gives every container.
PODMAN = pathlib.Path("/usr/share/containers/seccomp.json")
NUMBERS = {name: int(number) for name, number in re.findall(
    r"^#define __NR_(\w+) (\d+)$", pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text(), re.M)}

# Makes each call of the list on standard input, [number, arguments...], in a child of its own; prints the list of
# errno, 0 for success, or "signal N". i386 calls have a negative number. First the process's own state.
CALLS = r"""
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
# mov eax, [rdi] via arguments: eax = first argument, then int 0x80 with ebx = ecx = edx = -1, and back with rbx as it was.
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53 89f8 83cbff 83c9ff 83caff cd80 5b c3"))
i386 = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
def call(number, *args):
    if number < 0:
        result = i386(-number)
        return -result if -4096 < result < 0 else 0
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg % (1 << 64)) for arg in args))
    return ctypes.get_errno() if result == -1 else 0
def apart(args):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"%d" % call(*args))
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 100)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return "signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(text)
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print(json.dumps([status["Seccomp"], status["Seccomp_filters"], status["NoNewPrivs"]]))
print(json.dumps([apart(args) for args in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def calls(runtime, bundle, rootfs):
    """What calls, each (name or number, arguments...), do under a profile: the process's state, and their results."""
    (rootfs / "calls.py").write_text(CALLS)

    def calls(profile, wanted, **process):
        numbers = [[NUMBERS.get(name, name), *args] for name, *args in wanted]
        made = bundle("python3", "/calls.py", json.dumps(numbers))
        made.config["linux"]["seccomp"] = profile
        made.config["process"] |= process
        done = runtime("run", "--bundle", made.save().path, "filtered")
        assert done.returncode == 0, done.stderr
        status, results = map(json.loads, done.stdout.splitlines())
        return status, results

    return calls


def rule(action, *names, args=(), **more):
    """`args`: (index, operator, value, second value)."""
    args = [{"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": (*two, 0)[0]} for index, op, value, *two in args]
    return {"names": list(names), "action": f"SCMP_ACT_{action}"} | ({"args": args} if args else {}) | more


def profile(*rules, default="ALLOW", **more):
    return {"defaultAction": f"SCMP_ACT_{default}", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": list(rules)} | more


NOWHERE = -1  # a descriptor that is not open: EBADF if the call is allowed


@pytest.mark.parametrize("first", [False, True])
def test_a_profile_from_before_newer_calls(calls, first):
    """The program is found and executed without them, whether the filter is loaded first or last."""
    newer = ("faccessat2", "close_range", "statx")
    _, results = calls(profile(rule("ERRNO", *newer)), [(name, NOWHERE, 0, 0, 0, 0) for name in newer],
                       noNewPrivileges=not first)
    assert results == [errno.EPERM] * len(newer)


def test_actions(calls):
    table = {
        ("fchmod", NOWHERE, 0): (rule("ERRNO", "fchmod"), errno.EPERM),
        ("fchown", NOWHERE, 0, 0): (rule("ERRNO", "fchown", errnoRet=77), 77),
        ("ftruncate", NOWHERE, 0): (rule("ERRNO", "ftruncate", errnoRet=0), 0),
        ("readahead", NOWHERE, 0, 0): (rule("LOG", "readahead"), errno.EBADF),
        ("fadvise64", NOWHERE, 0, 0, 0): (rule("ALLOW", "fadvise64"), errno.EBADF),
        ("flock", NOWHERE, 1): (rule("KILL", "flock"), "signal 31"),
        ("fsync", NOWHERE): (rule("KILL_THREAD", "fsync"), "signal 31"),
        ("fdatasync", NOWHERE): (rule("KILL_PROCESS", "fdatasync"), "signal 31"),
        ("syncfs", NOWHERE): (rule("TRAP", "syncfs"), "signal 31"),
        # Nobody traces.
        ("fchdir", NOWHERE): (rule("TRACE", "fchdir", errnoRet=5), errno.ENOSYS),
        ("listen", NOWHERE, 0): (rule("ERRNO", "no_such_call", "listen"), errno.EPERM),
        ("shutdown", NOWHERE, 0): (None, errno.EBADF),
        (-20,): (None, "signal 31"),  # i386: an architecture that is not named
    }
    wanted = profile(*(rule for rule, _ in table.values() if rule))
    state, results = calls(wanted, table)
    assert state == ["2", "1", "1"]
    assert dict(zip(table, results)) == {call: result for call, (_, result) in table.items()}


OPERATORS = [
    # Operator, values of the rule, arguments that match, arguments that do not.
    ("EQ", (5,), (5,), (4, 6, 5 + (1 << 32))),
    ("NE", (5,), (4, 6, 5 + (1 << 32)), (5,)),
    ("LT", (5,), (0, 4), (5, 6, 1 << 32)),
    ("LE", (5,), (0, 5), (6, 1 << 32)),
    ("GE", (1 << 33,), (1 << 33, 1 << 34, -1), ((1 << 33) - 1, 0)),
    ("GT", (1 << 33,), ((1 << 33) + 1, -1), (1 << 33, 0)),
    ("MASKED_EQ", (0xF0, 0x30), (0x30, 0x3F, 0x1030), (0x20, 0x70, 0)),
]
# Calls whose second argument does not matter when the first is no descriptor.
SECOND = ("fchmod", "fchown", "readahead", "fadvise64", "fallocate", "listen", "shutdown")


def test_conditions_on_arguments(calls):
    rules = [rule("ERRNO", name, args=[(1, op, *values)], errnoRet=100 + n)
             for n, (name, (op, values, _, _)) in enumerate(zip(SECOND, OPERATORS))]
    # All conditions of a rule have to hold; of several rules for a call, one.
    rules += [rule("ERRNO", "fsetxattr", args=[(3, "EQ", 1), (4, "EQ", 2)], errnoRet=120),
              rule("ERRNO", "fsetxattr", args=[(3, "EQ", 9)], errnoRet=120)]
    wanted = {}
    for n, (name, (_, _, yes, no)) in enumerate(zip(SECOND, OPERATORS)):
        wanted |= {(name, NOWHERE, value, 0, 0): 100 + n for value in yes}
        wanted |= {(name, NOWHERE, value, 0, 0): errno.EBADF for value in no}
    for last, result in {(1, 2): 120, (9, 0): 120, (9, 2): 120, (1, 0): None, (0, 2): None}.items():
        wanted[("fsetxattr", NOWHERE, 0, 0, *last)] = result
    _, results = calls(profile(*rules), wanted)
    found = dict(zip(wanted, results))
    assert {call: result for call, result in found.items() if wanted[call] is not None} == {
        call: result for call, result in wanted.items() if result is not None}
    assert all(found[call] != 120 for call, result in wanted.items() if result is None)


def test_architectures(calls):
    """i386 calls of a 64-bit program: allowed where the architecture is named, by the same rules under their own numbers."""
    i386 = {"fchmod": -94, "getpid": -20}
    wanted = profile(rule("ERRNO", "fchmod", errnoRet=77), architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    state, results = calls(wanted, [("fchmod", NOWHERE, 0), (i386["fchmod"],), (i386["getpid"],), ("fchown", NOWHERE, 0, 0)])
    assert state[:2] == ["2", "1"] and results == [77, 77, 0, errno.EBADF]


def podman():
    """Podman's profile as it gives it to runtimes: for x86-64 and the capabilities of our containers."""
    source = json.loads(PODMAN.read_text())

    def applies(entry):
        includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
        return (set(includes.get("caps") or ()) <= set(CAPABILITIES) and not set(excludes.get("caps") or ()) & set(CAPABILITIES)
                and ("amd64" in (includes.get("arches") or ["amd64"])) and "amd64" not in (excludes.get("arches") or ()))

    names = ("names", "action", "args", "errnoRet")
    return {"defaultAction": source["defaultAction"], "defaultErrnoRet": source["defaultErrnoRet"],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{name: entry[name] for name in names if entry.get(name)} for entry in source["syscalls"] if applies(entry)]}


@pytest.mark.parametrize("default", [errno.ENOSYS, None])
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_podmans_profile(calls, default, no_new_privileges):
    """Each call that it does not allow fails as it says."""
    wanted = podman()
    if default is None:
        del wanted["defaultErrnoRet"]
    allowed = {name for entry in wanted["syscalls"] if entry["action"] == "SCMP_ACT_ALLOW" for name in entry["names"]}
    named = {name for entry in wanted["syscalls"] for name in entry["names"]}
    newest = max(NUMBERS.get(name, 0) for name in named)
    # With another default than ENOSYS, calls that are newer than all of the profile's fail with ENOSYS: C libraries look for that.
    expected = {(name, -1, -1, -1, -1, -1, -1): default or (errno.EPERM if number <= newest else errno.ENOSYS)
                for name, number in NUMBERS.items() if name not in named}
    expected |= {(name, -1, -1, -1, -1, -1, -1): entry["errnoRet"] for entry in wanted["syscalls"]
                 if entry["action"] == "SCMP_ACT_ERRNO" and "args" not in entry for name in entry["names"] if name in NUMBERS and name not in allowed}
    expected |= {("personality", 0x0008): 0, ("personality", 0x20000): 0, ("personality", 0x40000): default or errno.EPERM,
                 ("getpid",): 0, ("socket", 16, 3, 9): errno.EINVAL, (600,): errno.ENOSYS, (-20,): 0}
    if "CAP_AUDIT_WRITE" in CAPABILITIES:
        del expected[("socket", 16, 3, 9)]
    assert len(expected) > 40
    state, results = calls(wanted, expected, noNewPrivileges=no_new_privileges)
    assert state == ["2", "1", str(int(no_new_privileges))]
    assert dict(zip(expected, results)) == expected


def loaded(trace):
    """The programs that were loaded according to strace(1), each a list of (code, true, false, k) as in struct sock_filter."""
    number = lambda text: functools.reduce(operator.or_, (int(part, 0) for part in text.split("|")))  # noqa: E731
    for program in re.findall(r"\{len=\d+, filter=\[(.*?)\]\}", trace):
        found = re.findall(r"BPF_(?:STMT|JUMP)\(([^,)]+), ([^,)]+)(?:, ([^,)]+), ([^,)]+))?\)", program)
        yield [(number(code), number(true or "0"), number(false or "0"), number(k)) for code, k, true, false in found]


def verdict(program, data):
    """What a program returns for a struct seccomp_data, given as its 32-bit words."""
    accumulator = at = 0
    while True:
        code, true, false, k = program[at]
        at += 1
        if code == 0x20:  # load a word
            accumulator = data[k // 4]
        elif code == 0x54:  # and
            accumulator &= k
        elif code == 0x06:  # return
            return k
        elif code == 0x05:  # jump
            at += k
        else:  # jump if equal, greater, greater or equal, any bit set
            holds = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge, 0x45: operator.and_}[code](accumulator, k)
            at += true if holds else false


@only_chiton
def test_the_filter_is_runcs(runtime, runc, bundle, scratch):
    """The program that the guest loads and the one that Debian's runc loads for the same profile return the same for every call, of each
    architecture, with arguments around all that are compared with."""
    made = bundle("true")
    trace = scratch / "seccomp-trace"
    for wanted in (podman(), profile(*(rule("ERRNO", name, args=[(1, op, *values)]) for name, (op, values, _, _) in zip(SECOND, OPERATORS))),
                   profile(rule("ERRNO", "fchmod"), default="LOG")):
        made.config["linux"]["seccomp"] = wanted
        made.save()
        runs = ["strace", "-f", "-v", "-X", "raw", "-e", "trace=prctl,seccomp", "-o", trace, *runc.command("run", "--bundle", made.path, "x")]
        assert subprocess.run(runs, stdin=subprocess.DEVNULL, timeout=100, check=False).returncode == 0
        theirs, = loaded(trace.read_text())
        ours = list(struct.iter_unpack("<HBBI", bytes.fromhex(json.loads(runtime.ok("explain", "--json", made.path))["seccomp"]["program"])))
        values = {arg[key] for entry in wanted["syscalls"] for arg in entry.get("args") or () for key in ("value", "valueTwo") if key in arg}
        arguments = {n % (1 << 64) for value in values for n in (value - 1, value, value + 1, value | 1 << 32)} | {0}
        compared = [[value & 0xffffffff, value >> 32] * 6 for value in sorted(arguments)]
        for arch, first in ((0xc000003e, 0), (0xc000003e, 1 << 30), (0x40000003, 0), (0xc00000b7, 0)):
            for call in [*range(first, first + 600), 0xffffffff]:
                for words in compared if first == 0 and arch == 0xc000003e else compared[:2]:
                    data = [call, arch, 0, 0, *words]
                    assert verdict(ours, data) == verdict(theirs, data), (hex(arch), call, words)


def test_exec_is_filtered_as_well(container, rootfs):
    (rootfs / "calls.py").write_text(CALLS)

    def filtered(config):
        config["linux"]["seccomp"] = profile(rule("ERRNO", "fchmod", errnoRet=77))
    c = container("sleep", "1000", change=filtered)
    calls = json.dumps([[NUMBERS["fchmod"], -1, 0], [NUMBERS["fchown"], -1, 0, 0]])
    state, results = map(json.loads, c.output("python3", "/calls.py", calls).splitlines())
    assert state == ["2", "1", "1"] and results == [77, errno.EBADF]


@pytest.mark.parametrize("wrong, text", [
    (profile(default="FROB"), "SCMP_ACT_FROB"),
    (profile(rule("FROB", "fchmod")), "SCMP_ACT_FROB"),
    (profile(rule("ERRNO", "fchmod", args=[(1, "FROB", 1)])), "SCMP_CMP_FROB"),
    (profile(architectures=["SCMP_ARCH_FROB"]), "SCMP_ARCH_FROB"),
    (profile(rule("NOTIFY", "write")), "SCMP_ACT_NOTIFY"),
    (profile(default="NOTIFY"), "NOTIFY"),
    (profile(flags=["SECCOMP_FILTER_FLAG_FROB"]), "flag"),
])
def test_what_is_wrong_is_named(runtime, bundle, wrong, text):
    made = bundle("true")
    made.config["linux"]["seccomp"] = wrong
    done = runtime("run", "--bundle", made.save().path, "wrong")
    assert done.returncode == 1 and runtime.status("wrong") is None
    assert text.lower() in done.stderr.lower(), done.stderr


@only_chiton
def test_notification_is_refused(runtime, bundle):
    """The guest's calls are the guest's: nobody on the host could answer them."""
    made = bundle("true")
    made.config["linux"]["seccomp"] = profile(rule("NOTIFY", "mknod"), listenerPath="/run/x")
    done = runtime("run", "--bundle", made.save().path, "wrong")
    assert done.returncode == 1 and "linux.seccomp" in done.stderr
