"""create, start, kill, delete: the process model callers rely on, in order, in masses and in accidents."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from chiton import GRAB, Container, alive, processes, wait_for, without


@pytest.fixture
def created(chiton, bundle):
    """Creates containers; the test deletes them."""

    def create(name, *args, **kwargs):
        return Container(chiton, name, bundle(*args).save(), verb=("create",), **kwargs).pid

    return create


def test_life_of_a_container(chiton, created, rootfs):
    pid = created("life", "sh", "-c", "echo ran >/ran; sleep 1000")
    state = chiton.state("life")
    assert (state["status"], state["pid"], state["id"]) == ("created", pid, "life")
    assert not (rootfs / "ran").exists()
    assert [c["id"] for c in json.loads(chiton.ok("list", "--format", "json"))] == ["life"]
    chiton.ok("start", "life")
    wait_for(lambda: (rootfs / "ran").exists())
    assert chiton.state("life")["status"] == "running"
    assert chiton("start", "life").returncode == 1
    assert chiton("delete", "life").returncode == 1
    chiton.ok("kill", "life", "KILL")
    wait_for(lambda: not alive(pid))
    state = chiton.state("life")
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert chiton("kill", "life", "KILL").returncode == 1
    chiton.ok("delete", "life")
    gone = chiton("state", "life")
    assert gone.returncode == 1 and "does not exist" in gone.stderr


def test_the_pid_exits_with_the_containers_code(chiton, bundle):
    """As conmon and the shim do: a subreaper waits for the pid of the pid file."""
    made = bundle("sh", "-c", "exit 33").save()
    code = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)      # PR_SET_CHILD_SUBREAPER
binary, root, path = sys.argv[1:]
chiton = [binary, "--root", root]
subprocess.run([*chiton, "create", "--bundle", path, "--pid-file", path + "/pid", "code"], check=True)
pid = int(open(path + "/pid").read())
subprocess.run([*chiton, "start", "code"], check=True)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
subprocess.run([*chiton, "delete", "code"], check=True)
"""
    done = subprocess.run(["/usr/bin/python3", "-c", code, chiton.binary, chiton.root, made.path],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "33\n", done.stderr


def test_signals_reach_the_program(chiton, created, rootfs):
    pid = created("signals", "python3", "-c", """
import signal, sys, time
def handler(number, frame):
    open("/got", "a").write(f"{number}\\n")
    if number == signal.SIGUSR2: sys.exit(3)
for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2): signal.signal(n, handler)
open("/ready", "w").close()
while True: time.sleep(1000)
""")
    chiton.ok("start", "signals")
    wait_for(lambda: (rootfs / "ready").exists())
    got = rootfs / "got"
    for number, (send, count) in {15: (lambda: chiton.ok("kill", "signals"), 1),
                                  10: (lambda: os.kill(pid, signal.SIGUSR1), 2),
                                  12: (lambda: chiton.ok("kill", "signals", "SIGUSR2"), 3)}.items():
        send()
        wait_for(lambda: got.exists() and len(got.read_text().split()) == count)
        assert got.read_text().split()[-1] == str(number)
    wait_for(lambda: not alive(pid))
    chiton.ok("delete", "signals")


@pytest.mark.timeout(400)
def test_fifty_in_a_row(chiton, created):
    for n in range(50):
        pid = created(f"row-{n}", "true")
        chiton.ok("start", f"row-{n}")
        wait_for(lambda: not alive(pid))
        chiton.ok("delete", f"row-{n}")


@pytest.mark.timeout(300)
def test_ten_at_once(chiton, created):
    def life(n):
        pid = created(f"once-{n}", "sh", "-c", "head -c 1000000 /dev/urandom | sha256sum", timeout=120)
        chiton.ok("start", f"once-{n}", timeout=120)
        wait_for(lambda: not alive(pid), 120)
        chiton.ok("delete", f"once-{n}", timeout=120)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        list(pool.map(life, range(10)))


def test_kill_9_of_the_machine(chiton, created):
    pid = created("shot", "sleep", "1000")
    chiton.ok("start", "shot")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert chiton.state("shot")["status"] == "stopped"
    chiton.ok("delete", "shot")
    assert chiton("delete", "shot").returncode == 1
    chiton.ok("delete", "--force", "shot")


def test_kill_9_of_the_verb_while_it_creates(chiton, bundle):
    made = bundle("sleep", "1000").save()
    for n, delay in enumerate((0.01, 0.05, 0.1, 0.2, 0.3, 0.5)):
        verb = chiton.popen("create", "--bundle", made.path, f"early-{n}", stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
        time.sleep(delay)
        verb.kill()
        verb.wait()
        chiton.ok("delete", "--force", f"early-{n}")
    wait_for(lambda: processes(chiton) == [])


def test_delete_force_ends_a_running_container(chiton, created):
    pid = created("forced", "sleep", "1000")
    chiton.ok("start", "forced")
    chiton.ok("delete", "--force", "forced")
    assert not alive(pid)


def test_delete_of_a_created_container(chiton, created):
    pid = created("unstarted", "true")
    chiton.ok("delete", "unstarted")
    assert not alive(pid)


def test_the_caller_may_go_away(chiton, bundle):
    """A detached container outlives the session that started it."""
    made = bundle("sleep", "1000").save()
    subprocess.run(["setsid", *chiton.command("run", "--detach", "--bundle", made.path, "alone")],
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)
    pid = chiton.state("alone")["pid"]
    assert os.getsid(pid) == pid
    chiton.ok("kill", "alone", "9")
    wait_for(lambda: not alive(pid))
    chiton.ok("delete", "alone")


def test_the_cgroup_holds_the_machine(chiton, bundle):
    made = bundle("sleep", "1000")
    made.config["linux"]["cgroupsPath"] = "/chiton-test/inside"
    made.save()
    chiton.ok("run", "--detach", "--bundle", made.path, "grouped", stdout=None, stderr=None)
    pid = chiton.state("grouped")["pid"]
    cgroup = pathlib.Path("/sys/fs/cgroup/chiton-test/inside")
    assert str(pid) in (cgroup / "cgroup.procs").read_text().split()
    assert int((cgroup / "memory.current").read_text()) > 8 << 20   # guest memory is charged here
    chiton.ok("delete", "--force", "grouped")
    assert not cgroup.exists()
    if cgroup.parent.exists():
        cgroup.parent.rmdir()


def test_one_id_once(chiton, created, bundle):
    created("twin", "true")
    again = chiton("create", "--bundle", bundle("true").save().path, "twin")
    assert again.returncode == 1 and "already exists" in again.stderr
    assert chiton.state("twin")["status"] == "created"
    chiton.ok("delete", "twin")


@pytest.mark.parametrize("name, program", [
    ("reset", "import ctypes; ctypes.CDLL(None).reboot(0x01234567)"),
    ("panic", f"open('/proc/sys/vm/panic_on_oom', 'w').write('2')\n{GRAB}"),
])
def test_the_guest_dies(chiton, bundle, name, program):
    """The process ends, with a message that holds the guest's last words."""
    made = bundle("python3", "-c", program)
    capabilities = made.config["process"]["capabilities"]
    made.config["process"]["capabilities"] = {kind: [*names, "CAP_SYS_BOOT"] for kind, names in capabilities.items()}
    without(made.config, "pid")
    made.config["linux"]["readonlyPaths"] = []
    # Without a limit the machine has as much memory as the host.
    made.config["annotations"]["dev.chiton.memory"] = "256M"
    made.save()
    done = chiton("run", "--bundle", made.path, name)
    assert done.returncode == 255, done.stderr
    assert "virtual machine ended" in done.stderr
    if name == "panic":
        assert "Kernel panic" in done.stderr and "panic_on_oom" in done.stderr


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_cgroup_that_is_in_use_or_frozen(runtime, bundle, verb):
    """Nothing is waited for in there, and nothing is left."""
    made = bundle("true")
    made.config["linux"]["cgroupsPath"] = "/chiton-test/used"
    made.save()
    cgroup = pathlib.Path("/sys/fs/cgroup/chiton-test/used")
    cgroup.mkdir(parents=True)
    holder = subprocess.Popen(["sleep", "1000"])
    try:
        (cgroup / "cgroup.freeze").write_text("1")
        frozen = runtime(verb, "--bundle", made.path, "frozen")
        (cgroup / "cgroup.freeze").write_text("0")
        (cgroup / "cgroup.procs").write_text(str(holder.pid))
        used = runtime(verb, "--bundle", made.path, "used") if runtime.name == "chiton" else None
    finally:
        holder.kill()
        holder.wait()
        for path in (cgroup, cgroup.parent):
            wait_for(lambda: "populated 0" in (path / "cgroup.events").read_text())
            path.rmdir()
    assert frozen.returncode == 1 and "container's cgroup unexpectedly frozen" in frozen.stderr
    # As with runc since 1.2. An earlier one only warns.
    if used:
        assert used.returncode == 1 and "container's cgroup is not empty: 1 process(es) found" in used.stderr
    assert json.loads(runtime.ok("list", "--format", "json")) in ([], None)


def test_pause_and_resume_in_quick_succession(container):
    """A machine has room for few signals that wait (RLIMIT_SIGPENDING), and uses one for each vCPU at most."""
    def change(config):
        config.setdefault("annotations", {})["dev.chiton.vcpus"] = "4"
    c = container("sleep", "1000", change=change)
    waiting = next(line for line in pathlib.Path(f"/proc/{c.pid}/status").read_text().splitlines() if line.startswith("SigQ"))
    now = int(waiting.split()[1].split("/")[0])
    subprocess.run(["prlimit", "--pid", str(c.pid), f"--sigpending={now + 8}"], check=True)
    for _ in range(40):
        c.verb("pause")
        c.verb("resume")
    assert c.output("echo", "there") == "there\n"
