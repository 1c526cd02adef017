"""exec: more processes in a running container, as callers of runc start, signal and wait for them."""

import concurrent.futures
import hashlib
import json
import os
import signal
import subprocess

import pytest

from chiton import CAPABILITIES, alive, ended, only_chiton, processes, subreaper, wait_for, without

# `/proc/PID/status` fields that tell what a process may do.
RIGHTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


def status(text):
    return dict(line.split(":", 1) for line in text.replace("\t", " ").splitlines() if ":" in line)


def rights(text):
    return {key: " ".join(value.split()) for key, value in status(text).items() if key in RIGHTS}


def caps(*names):
    numbers = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
               "NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18, "MKNOD": 27, "SETFCAP": 31, "SYS_TIME": 25}
    return f"{sum(1 << numbers[name.removeprefix('CAP_')] for name in names):016x}"


def test_streams_and_exit_codes(container):
    c = container("sleep", "1000")
    done = c.exec("sh", "-c", "cat; echo err >&2; exit 7", input="in\n", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")
    for code in (0, 1, 255):
        assert c.exec("sh", "-c", f"exit {code}").returncode == code
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
        assert c.exec("sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number
    for program, text in {
        "no-such": 'exec: "no-such": executable file not found in $PATH',
        "/no/such": 'exec: "/no/such": stat /no/such: no such file or directory',
        "/etc/passwd": 'exec: "/etc/passwd": permission denied',
    }.items():
        done = c.exec(program)
        assert done.returncode == 255 and done.stdout == "", done
        assert f"exec failed: unable to start container process: {text}" in done.stderr.replace('\\"', '"')  # as runc's text log quotes
    assert c.exec("true", "-x", "--detach", "--", "-t").returncode == 0  # the program's own arguments
    assert c.status == "running"


def test_what_is_wrong_is_said_in_the_words_of_runc(container, rootfs):
    (rootfs / "rubbish").write_text("rubbish")
    (rootfs / "rubbish").chmod(0o755)
    (rootfs / "no-interpreter").write_text("#!/no/such\n")
    (rootfs / "no-interpreter").chmod(0o755)
    c = container("sleep", "1000")
    # What versions of runc agree upon.
    for options, program, code, text in (
        (["--cwd", "/no/such"], "pwd", 255, 'container process: chdir to cwd ("/no/such") set in config.json failed: no such file or directory'),
        (["--cwd", "/etc/passwd"], "pwd", 255, 'chdir to cwd ("/etc/passwd") set in config.json failed: not a directory'),
        (["--cwd", "relative"], "pwd", 255, "exec failed: Cwd must be an absolute path"),
        (["--user=nobody"], "id", 255, 'strconv.Atoi: parsing "nobody": invalid syntax'),
        (["--user=0:wheel"], "id", 255, 'strconv.Atoi: parsing "wheel": invalid syntax'),
        (["-g=-1"], "id", 255, "exec failed: additional-gids must be a positive number -1"),
        (["--cgroup", "../other"], "id", 255, "unable to create new parent process: ../other is not a sub cgroup path"),
        (["--cgroup", "missing"], "id", 255, "/missing"),
        (["--process", "/no/such"], "id", 255, "exec failed: open /no/such: no such file or directory"),
        (["--frob"], "id", 1, "flag provided but not defined: -frob"),
        (["--preserve-fds", "x"], "id", 1, 'invalid value "x" for flag -preserve-fds: parse error'),
        ([], "/rubbish", None, "exec /rubbish: exec format error"),  # 1 of Debian's runc, 255 of a newer one
        ([], "/no-interpreter", None, "exec /no-interpreter: no such file or directory"),
    ):
        done = c.exec(program, options=options)
        assert done.returncode == code if code else done.returncode in (1, 255), (options, program, done)
        assert text in done.stderr.replace('\\"', '"'), (options, program, done.stderr)
    done = c.runtime("exec", c.name)
    assert done.returncode == 255 and "cannot be empty" in done.stderr, done


def test_more_than_a_mebibyte_of_environment(container):
    def change(config):
        config["process"]["env"] += [f"V{number}=" + "x" * 1000 for number in range(1500)]

    c = container("sleep", "1000", change=change)
    assert c.output("sh", "-c", 'env | grep -c "^V.*xxx$"; echo ${#1}', "sh", "y" * 120000) == "1500\n120000\n"


def test_how_ends_of_streams_travel(container):
    c = container("sleep", "1000")
    assert c.output("sh", "-c", "cat; echo done") == "done\n"
    # The caller closes its end: the program reads to the end and answers.
    process = c.runtime.popen("exec", c.name, "sh", "-c", "n=$(wc -c); echo $n", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"x" * 100000)
    process.stdin.close()
    assert process.stdout.read() == b"100000\n" and process.wait(30) == 0
    # Nobody reads any more.
    process = c.runtime.popen("exec", c.name, "yes", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.read(100000)
    process.stdout.close()
    assert process.wait(30) in (1, 128 + signal.SIGPIPE)


@only_chiton
def test_50_mib(container):
    """More than all buffers on the way hold, a hundred times."""
    c = container("sleep", "1000")
    process = c.runtime.popen("exec", c.name, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    block = os.urandom(1 << 20)
    expected = hashlib.sha256()
    for _ in range(50):
        expected.update(block)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        def feed():
            for _ in range(50):
                process.stdin.write(block)
            process.stdin.close()
        feeding = pool.submit(feed)
        received = hashlib.sha256()
        while piece := process.stdout.read(1 << 20):
            received.update(piece)
        feeding.result()
    assert process.wait(30) == 0 and received.digest() == expected.digest()


def test_options(container):
    def change(config):
        config["process"]["noNewPrivileges"] = False
        config["process"]["env"].append("OWN=container")
        config["process"]["cwd"] = "/usr"
    c = container("sleep", "1000", change=change)
    assert c.output("pwd") == "/usr\n"
    assert c.output("pwd", options=("--cwd", "/var/lib")) == "/var/lib\n"
    environment = c.output("env", options=("--env", "A=1", "--env", "B=2 3", "--env=OWN=exec")).splitlines()
    assert {"A=1", "B=2 3"} <= set(environment)
    # Both are in the environment; a program that looks for one finds the last.
    assert c.output("sh", "-c", "echo $OWN", options=("--env=OWN=exec",)) == "exec\n"
    assert c.output("sh", "-c", "echo $HOME $OWN") == "/root container\n"

    everything = caps(*CAPABILITIES)
    root = {"Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "", "CapInh": "0" * 16, "CapPrm": everything, "CapEff": everything,
            "CapBnd": everything, "CapAmb": "0" * 16, "NoNewPrivs": "0", "Seccomp": "0"}
    assert rights(c.output("cat", "/proc/self/status")) == root
    assert rights(c.output("cat", "/proc/1/status")) == root
    assert rights(c.output("cat", "/proc/self/status", options=("--no-new-privs",)))["NoNewPrivs"] == "1"
    user = rights(c.output("cat", "/proc/self/status", options=("--user", "1000:1001", "-g", "5", "-g", "44")))
    assert user == root | {"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "5 44",
                           "CapPrm": "0" * 16, "CapEff": "0" * 16}
    more = caps(*CAPABILITIES, "SYS_TIME")
    assert rights(c.output("cat", "/proc/self/status", options=("--cap", "CAP_SYS_TIME")))["CapEff"] == more
    bad = c.exec("true", options=("--user", "nobody"))
    assert bad.returncode == 255 and "nobody" in bad.stderr


def test_a_process_file(container):
    def change(config):
        config["process"]["noNewPrivileges"] = False
    c = container("sleep", "1000", change=change)
    wanted = {
        "terminal": False, "user": {"uid": 7, "gid": 8, "additionalGids": [9, 10]}, "cwd": "/tmp",
        "args": ["sh", "-c", "cat /proc/self/status /proc/self/limits; pwd; echo $ONE; echo $HOME"],
        "env": ["PATH=/usr/bin:/bin", "ONE=two"], "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                         "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    }
    path = c.bundle.path / "process.json"
    path.write_text(json.dumps(wanted))
    text = c.output(options=("--process", path))
    assert rights(text) == {
        "Uid": "7 7 7 7", "Gid": "8 8 8 8", "Groups": "9 10", "CapInh": caps("KILL"), "CapPrm": caps("KILL"),
        "CapEff": caps("KILL"), "CapBnd": caps("KILL", "CHOWN"), "CapAmb": caps("KILL"), "NoNewPrivs": "1", "Seccomp": "0"}
    lines = text.splitlines()
    # In Debian's runc Go's own start raises the soft limit to the hard one.
    soft = "99" if c.runtime.name == "runc" else "77"
    assert [soft, "99"] in [line.split()[3:5] for line in lines if line.startswith("Max open files")]
    # The user has no directory of its own in passwd(5): 7 is lp.
    assert lines[-3:] == ["/tmp", "two", "/var/spool/lpd"]
    path.write_text("{")
    assert c.exec(options=("--process", path)).returncode == 255
    assert "no such file" in c.exec(options=("--process", "/no/such.json")).stderr.lower()


def test_it_is_in_the_container(container):
    """The same namespaces, root, cgroup and limits as the container's init."""
    def change(config):
        config["process"]["oomScoreAdj"] = 100
        config["process"]["rlimits"].append({"type": "RLIMIT_NPROC", "soft": 50, "hard": 60})
    c = container("sleep", "1000", change=change)
    look = ("for n in cgroup ipc mnt net pid user uts; do readlink /proc/$0/ns/$n; done; readlink /proc/$0/root; "
            "cat /proc/$0/cgroup /proc/$0/oom_score_adj; grep -v Pending /proc/$0/limits; cat /proc/$0/mountinfo")
    init = c.output("sh", "-c", look, "1")
    assert c.output("sh", "-c", look, "self") == init
    assert "Max processes             50                   60" in init
    assert c.output("sh", "-c", "hostname; cat /proc/1/comm; echo $PPID") == "chiton\nsleep\n0\n"
    assert c.output("sh", "-c", "ls /proc/self/fd | wc -l") == "4\n"  # the three, and ls's own


def detached(c, *args, **kwargs):
    """Executes a program without waiting for it; the pid that stands for it."""
    file = c.bundle.path / "exec-pid"
    kwargs = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | kwargs
    done = c.exec(*args, options=("--detach", "--pid-file", file), **kwargs)
    assert done.returncode == 0, done
    return int(file.read_text())


def test_detached(container, rootfs):
    """A child of the subreaper, that takes signals and ends for the process."""
    c = container("sleep", "1000")
    trap = """
import os, signal, sys
def handler(number, frame):
    open("/got", "a").write(f"{number}\\n")
    if number == signal.SIGUSR2: os._exit(9)
numbers = [1, 2, 3, 10, 12, 14, 15, 21, 23, 28, 34, 64]
for n in numbers: signal.signal(n, handler)
open("/ready", "w").close()
while True: signal.pause()
"""
    with subreaper():
        for script, code in (("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", -15), ("kill -KILL $$", -9)):
            assert ended(detached(c, "sh", "-c", f"sleep 0.3; {script}")) == code
        pid = detached(c, "python3", "-c", trap)
        wait_for(lambda: (rootfs / "ready").exists())
        for number in (1, 2, 3, 10, 14, 15, 21, 23, 28, 34, 64):
            os.kill(pid, number)
            wait_for(lambda: (rootfs / "got").exists() and str(number) in (rootfs / "got").read_text().split())
        os.kill(pid, signal.SIGUSR2)
        assert ended(pid) == 9
        # SIGKILL cannot be passed on: the stub's death is the process's.
        pid = detached(c, "sleep", "4321")
        assert "4321" in c.output("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -9
        wait_for(lambda: "sleep 4321" not in c.output("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))
        # It holds nothing of the caller's that it was not given.
        pid = detached(c, "sleep", "4321")
        assert os.getpgid(pid) == os.getsid(pid) == pid
        assert str(pid) in (c.cgroup / "cgroup.procs").read_text().split()
        # Who looks for the container's network at the process that is the exec's finds it.
        network = os.readlink(f"/proc/{pid}/ns/net")
        assert network == os.readlink(f"/proc/{c.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        # The container's end is its end.
        c.verb("kill", "KILL")
        assert ended(pid) == -9
    wait_for(lambda: not alive(c.pid))


def test_signals_of_a_foreground_exec(container):
    c = container("sleep", "1000")
    process = c.runtime.popen("exec", c.name, "sh", "-c", "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done",
                              stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "usr1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 3
    process = c.runtime.popen("exec", c.name, "sh", "-c", "echo up; exec sleep 1000", stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_the_containers_end(container):
    c = container("sleep", "1000")
    process = c.runtime.popen("exec", c.name, "sh", "-c", "echo up; exec sleep 1000", stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    c.verb("kill", "KILL")
    assert process.wait(30) == 137
    wait_for(lambda: not alive(c.pid))
    done = c.exec("true")
    assert done.returncode == 255 and "exec failed: cannot exec in a stopped container" in done.stderr
    missing = c.runtime("exec", "no-such-container", "true")
    assert missing.returncode == 255 and "container does not exist" in missing.stderr


def test_a_paused_container(container):
    c = container("sleep", "1000")
    c.verb("pause")
    done = c.exec("true")
    assert done.returncode == 255
    assert "cannot exec in a paused container (use --ignore-paused to override)" in done.stderr
    # It waits with all that is in the container.
    process = c.runtime.popen("exec", "--ignore-paused", c.name, "sh", "-c", "echo ran; exit 4", stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert c.status == "paused"
    c.verb("resume")
    assert process.stdout.read() == b"ran\n" and process.wait(30) == 4


def test_background_children(container):
    """What an exec'd program leaves behind runs on, and is not killed by writing."""
    c = container("sleep", "1000")
    done = c.exec("sh", "-c", "(sleep 1; echo late; echo alive >/background) & echo first", timeout=30)
    assert done.returncode == 0 and done.stdout.startswith("first\n")
    wait_for(lambda: c.exec("cat", "/background").stdout == "alive\n")


LOOK = """
import glob, json, os
def read(path):
    try: return open(path).read()
    except OSError: return ""
texts = [read(path) for path in glob.glob("/proc/[0-9]*/status") if path != f"/proc/{os.getpid()}/status"]
print(json.dumps({"processes": sorted(text.split()[1] for text in texts if "VmRSS" in text),  # threads of the kernel have none
                  "descriptors": len(os.listdir("/proc/1/fd")),
                  "memory": int(read("/proc/1/status").split("RssAnon:")[1].split()[0])}))
"""


# More than a number of one byte counts.
IN_A_ROW = 300


@only_chiton
@pytest.mark.timeout(600)
def test_fifty_at_once_and_hundreds_in_a_row(container):
    """Nothing is left of them: on the host, in the machine process, in the guest, in its agent."""
    def change(config):
        # The agent is to be seen, and looked into.
        without(config, "pid")
        config["process"]["capabilities"] = {kind: [*names, "CAP_SYS_PTRACE"] for kind, names in config["process"]["capabilities"].items()}
    c = container("sleep", "1000", change=change)

    def inside():
        """The processes of the guest, the descriptors of its agent, and the agent's memory in KiB."""
        found = json.loads(c.output("python3", "-c", LOOK))
        return found["processes"], (found["descriptors"], found["memory"])

    def count():
        """What there is, and the agent's memory, when all that ends has ended."""
        wait_for(lambda: inside()[0] == ["init", "sleep"])
        wait_for(lambda: processes(c.runtime) == [c.pid])
        assert (c.cgroup / "cgroup.procs").read_text().split() == [str(c.pid)]
        # The loop, a vCPU, KVM's own, and as many as four that serve files, which are made when there is work for them.
        assert len(os.listdir(f"/proc/{c.pid}/task")) <= 7
        machine = len(os.listdir(f"/proc/{c.pid}/fd"))
        descriptors, memory = inside()[1]
        return (descriptors, machine, sorted(os.listdir(c.runtime.root / c.name))), memory

    def one(number):
        done = c.exec("sh", "-c", f"read line; echo {number} $line; exit {number}", input="hello\n", stdin=None, timeout=120)
        return done.returncode, done.stdout

    c.output("true")
    one(0)  # the files of a program that the guest knows are open in the machine
    before, _ = count()
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [(n, f"{n} hello\n") for n in range(50)]
    after, memory = count()
    assert after == before
    command = " ".join(c.runtime.command("exec", c.name, "true"))
    loop = f"i=0; while [ $i -lt {IN_A_ROW} ]; do {command} || exit 1; i=$((i+1)); done"
    assert subprocess.run(["sh", "-c", loop], stdin=subprocess.DEVNULL, timeout=500, check=False).returncode == 0
    after, grown = count()
    assert after == before
    # The fifty took more at once than one does, so what it grows by now was not given back: a quarter of a KiB each is the most.
    assert grown < memory + IN_A_ROW / 4, "KiB of the agent's own"


def test_the_session_keyring(container):
    """The container's processes have one, whoever they are, and another container has another."""
    # keyctl(2): syscall 250; add_key(2): 248; -3 is the session keyring, 10 KEYCTL_SEARCH, 11 KEYCTL_READ, 22 KEYCTL_GET_PERSISTENT.
    calls = ("import ctypes, errno, sys\n"
             "libc = ctypes.CDLL(None, use_errno=True)\n"
             "def call(*args):\n"
             "    got = libc.syscall(*args)\n"
             "    return got if got >= 0 else errno.errorcode[ctypes.get_errno()]\n"
             "def find():\n"
             "    key = call(250, 10, -3, b'user', b'chiton:key', 0)\n"
             "    value = ctypes.create_string_buffer(20)\n"
             "    return value.value.decode() if isinstance(key, int) and call(250, 11, key, value, 20) == 6 else key\n")
    add = calls + "print(call(248, b'user', b'chiton:key', b'secret', 6, -3) > 0)"
    find = calls + "print(find())"
    one, other = container("sleep", "1000"), container("sleep", "1000")
    assert one.output("python3", "-c", add) == "True\n"
    assert one.output("python3", "-c", find) == "secret\n"
    assert one.output("python3", "-c", find, options=["--user", "1000:1000"]) == "secret\n"
    assert other.output("python3", "-c", find) == "ENOKEY\n"
    assert one.output("python3", "-c", calls + "print(call(250, 22, -1, -2) > 0)") == "True\n"
