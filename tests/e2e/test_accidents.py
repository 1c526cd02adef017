"""What a stranger runs into: full disks, closed descriptors, limits that bite, terminals, machines shot at awkward moments."""

import concurrent.futures
import json
import os
import pathlib
import pty
import signal
import subprocess

import pytest

from chiton import GRAB, Runtime, alive, ended, only_chiton, subreaper, wait_for


@pytest.fixture
def small(scratch):
    """A file system of 1 MiB."""
    path = scratch / "small"
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_no_room_for_the_state(chiton, bundle, small):
    made = bundle("true").save()
    other = Runtime(chiton.binary, small / "root")
    (small / "root").mkdir()
    fill(small / "fill")
    done = other("run", "--bundle", made.path, "x")
    assert done.returncode == 1 and "no space left" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    (small / "fill").unlink()
    assert other.ok("list", "-q") == ""
    other.ok("run", "--bundle", made.path, "x")


def test_the_machine_process_logs_what_it_cannot_record(chiton, bundle, small, scratch):
    """A start that a full disk keeps from being recorded is a line in the caller's log, and the container runs."""
    made = bundle("sleep", "1000").save()
    log = scratch / "machine.log"
    other = Runtime(chiton.binary, small / "root")
    other.ok("--log", log, "--log-format", "json", "create", "--bundle", made.path, "x", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert (small / "root/x/log").read_text() == log.read_text() == ""
    fill(small / "fill")
    other.ok("start", "x")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["level"], line["msg"]) for line in lines] == [
        ("warning", "cannot record the start: No space left on device (os error 28)")]
    (small / "fill").unlink()
    assert other.ok("exec", "x", "echo", "there") == "there\n"
    other.ok("delete", "--force", "x")
    log.unlink()


def test_no_room_in_a_volume(run, small):
    def change(config):
        config["mounts"].append({"destination": "/small", "type": "bind", "source": str(small), "options": ["bind"]})
    done = run("sh", "-c", "head -c 3000000 /dev/zero >/small/file; echo $?; rm /small/file; echo ok >/small/again; cat /small/again",
               change=change)
    assert done.stdout == "1\nok\n" and "No space left" in done.stderr, done.stderr


def test_closed_descriptors(chiton, bundle):
    made = bundle("sh", "-c", "cat; echo out; echo err >&2; exit 4").save()
    command = " ".join(chiton.command("run", "--bundle", made.path, "closed"))
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], timeout=60, check=False)
    assert done.returncode == 4
    done = subprocess.run(["sh", "-c", f"{command} 0>/dev/null"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")


def test_a_terminal_as_standard_streams(chiton, bundle):
    """Without process.terminal the caller's terminal is passed on like any other descriptor."""
    made = bundle("sh", "-c", "read line; echo \"got $line\"").save()
    master, slave = pty.openpty()
    process = chiton.popen("run", "--bundle", made.path, "tty", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, b"hello\n")
    assert process.wait(60) == 0
    output = b""
    while b"got hello" not in output:
        output += os.read(master, 1000)
    os.close(master)


def test_a_memory_limit_bites_in_the_guest(run):
    def limit(config):
        config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
    done = run("python3", "-c", GRAB, change=limit)
    assert done.returncode == 137, done.stderr


GREEDY = f"""
import os, time
def wait(name):
    while not os.path.exists(name): time.sleep(0.05)
wait("/first")
child = os.fork()
if child == 0:
    open("/proc/self/oom_score_adj", "w").write("1000")
    {GRAB}
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
open("/.child", "w").write(str(status))
os.rename("/.child", "/child")
wait("/second")
{GRAB}
"""


def test_callers_hear_of_want_of_memory(container, rootfs):
    """In the stream of events, once for a child that is killed and once for the container; and as Podman does, by a file."""
    def limit(config):
        config["linux"]["resources"]["memory"] = {"limit": 64 << 20}
    with subreaper():
        c = container("python3", "-c", GREEDY, change=limit)
        events = c.runtime.popen("events", "--interval", "100ms", c.name, stdout=subprocess.PIPE, text=True)
        assert json.loads(events.stdout.readline())["type"] == "stats"  # it listens
        (rootfs / "first").touch()
        wait_for((rootfs / "child").exists)
        assert (rootfs / "child").read_text() == "-9"
        event = next(event for event in map(json.loads, events.stdout) if event["type"] == "oom")
        assert event["id"] == c.name
        assert c.status == "running"
        oom = c.bundle.path / "oom"
        if c.runtime.name == "chiton":  # runc's callers look into the cgroup for themselves
            oom.unlink()
        (rootfs / "second").touch()
        assert ended(c.pid) == -signal.SIGKILL
        assert "oom" in [json.loads(line)["type"] for line in events.stdout]
        assert events.wait(30) == 0
        assert oom.exists() == (c.runtime.name == "chiton")


@only_chiton
def test_an_update_that_fails_changes_nothing(container):
    """The guest has set two limits when it finds that it cannot set the third."""
    c = container("sleep", "1000", change=lambda config: config["linux"]["resources"].update(pids={"limit": 20}, cpu={"shares": 1024}))

    def limits():
        return c.output("cat", *(f"/sys/fs/cgroup/{name}" for name in ("cpu.weight", "pids.max", "hugetlb.2MB.max"))).split()

    def update(**resources):
        return c.runtime("update", "--resources", "-", c.name, stdin=None, input=json.dumps(resources))

    before = limits()
    assert before == ["100", "20", "max"]
    done = update(cpu={"shares": 2048}, pids={"limit": 30}, unified={"hugetlb.2MB.max": "few"})
    assert done.returncode == 1 and "hugetlb.2MB.max" in done.stderr, done
    assert limits() == before
    done = update(cpu={"shares": 512}, pids={"limit": 30}, unified={"hugetlb.2MB.max": "0"})
    assert done.returncode == 0, done
    assert limits() == ["59", "30", "0"]


def test_a_pids_limit_bites_in_the_guest(script):
    def limit(config):
        config["linux"]["resources"]["pids"] = {"limit": 10}
    assert script("""
import os, time
children = []
try:
    for n in range(20):
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        children.append(pid)
except OSError as e:
    print(len(children), e.strerror)
""", change=limit) == "9 Resource temporarily unavailable\n"


def test_errors_are_logged_as_callers_read_them(chiton, bundle, scratch):
    made = bundle("no-such-program").save()
    log = scratch / "log.json"
    done = chiton("--log", log, "--log-format", "json", "create", "--bundle", made.path, "x")
    assert done.returncode == 1
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["level"] == "error" and "executable file not found in $PATH" in last["msg"]


def test_a_machine_shot_before_its_start(chiton, bundle):
    made = bundle("true").save()
    chiton.ok("create", "--bundle", made.path, "shot", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = chiton.state("shot")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid))
    assert chiton("start", "shot").returncode == 1
    assert chiton.state("shot")["status"] == "stopped"
    chiton.ok("delete", "shot")


def test_a_frozen_machine_is_killed(chiton, bundle):
    """A machine that answers nothing still obeys SIGKILL."""
    made = bundle("sleep", "1000").save()
    chiton.ok("run", "--detach", "--bundle", made.path, "frozen", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = chiton.state("frozen")["pid"]
    os.kill(pid, signal.SIGSTOP)
    chiton.ok("kill", "frozen", "KILL")
    assert not alive(pid)
    chiton.ok("delete", "frozen")


@only_chiton
def test_a_machine_that_stands_still_is_not_waited_for(container, scratch):
    """No verb waits for a guest without a limit, and the container can be deleted all the same."""
    stopped = [container("sleep", "1000") for _ in range(3)]
    for made in stopped:
        os.kill(made.pid, signal.SIGSTOP)
    # One verb on each that takes the lock, for which the next one would wait as well.
    one, two, three = (made.name for made in stopped)
    verbs = [("ps", one), ("exec", one, "true"), ("kill", one, "USR1"), ("events", "--stats", one),
             ("pause", two), ("update", "--pids-limit", "50", three)]
    runtime = stopped[0].runtime

    def run(verb):
        # Not a pipe: the descriptors of an exec wait in the socket for as long as the machine does.
        with open(scratch / f"{verb[0]}-error", "w+") as error:
            done = runtime(*verb, timeout=55, stdout=error, stderr=error)
            error.seek(0)
            return done.returncode, error.read()
    with concurrent.futures.ThreadPoolExecutor(len(verbs)) as pool:
        for verb, (code, words) in zip(verbs, pool.map(run, verbs)):
            assert code != 0 and "the guest did not answer within 30 seconds" in words, (verb, code, words)
    for made in stopped:
        made.delete()


def test_a_shot_foreground_verb_leaves_the_container(chiton, bundle):
    """As with runc: the container is the machine process, not the verb."""
    made = bundle("sleep", "1000").save()
    verb = chiton.popen("run", "--bundle", made.path, "left", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: chiton("state", "left").returncode == 0 and chiton.state("left")["status"] == "running")
    verb.kill()
    verb.wait()
    assert chiton.state("left")["status"] == "running"
    chiton.ok("delete", "--force", "left")


def test_a_network_namespace_by_path(chiton, bundle):
    subprocess.run(["unshare", "-n", "true"], check=True)
    holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
    try:
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own)
        made = bundle("sleep", "1000")
        for namespace in made.config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = f"/proc/{holder.pid}/ns/net"
        made.save()
        chiton.ok("run", "--detach", "--bundle", made.path, "net", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pid = chiton.state("net")["pid"]
        assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{holder.pid}/ns/net")
        chiton.ok("delete", "--force", "net")
    finally:
        holder.kill()
        holder.wait()


def test_unknown_capabilities_are_ignored_with_a_warning(run):
    def change(config):
        config["process"]["capabilities"]["bounding"].append("CAP_TIME_TRAVEL")
        config["galaxy"] = "unknown properties are nothing to tell the container's standard error"
    done = run("true", change=change)
    assert done.returncode == 0 and "CAP_TIME_TRAVEL" in done.stderr and "galaxy" not in done.stderr


def test_two_containers_on_one_tree(chiton, bundle, rootfs):
    one, two = (bundle("sleep", "1000").save() for _ in range(2))
    for name, made in (("one", one), ("two", two)):
        chiton.ok("run", "--detach", "--bundle", made.path, name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listed = {c["id"]: c["status"] for c in json.loads(chiton.ok("list", "--format", "json"))}
    assert listed == {"one": "running", "two": "running"}
    for name in listed:
        chiton.ok("delete", "--force", name)
    assert pathlib.Path(rootfs / "etc").is_dir()
