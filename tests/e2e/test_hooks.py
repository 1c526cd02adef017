"""Hooks, in the place, in the order and with the state that the specification has."""

import json
import os

SCRIPT = '''read -r state; echo "$0 $state" >> {log}; readlink /proc/self/ns/net >> {log}.net; exit {code}'''


def hooked(config, log, failing=None):
    """Gives a configuration one hook of each kind that the host runs; each appends its kind and state to `log`."""
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    config["hooks"] = {kind: [{
        "path": "/bin/sh",
        "args": ["sh", "-c", SCRIPT.format(log=log, code=7 if kind == failing else 0), kind],
        "env": ["PATH=/usr/bin:/bin"],
    }] for kind in kinds}


def told(log):
    """What the hooks have been told: kind and state, in order."""
    return [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1])) for line in log.read_text().splitlines()]


def test_each_kind_in_its_time(chiton, bundle, scratch):
    made = bundle("sleep", "1000")
    log = made.path / "log"
    hooked(made.config, log)
    made.save()
    pid_file = made.path / "pid"
    chiton.ok("create", "--bundle", made.path, "--pid-file", pid_file, "h", stdout=None, stderr=None)
    pid = int(pid_file.read_text())
    assert [(kind, state["status"], state["pid"]) for kind, state in told(log)] == [
        (kind, "creating", pid) for kind in ("prestart", "createRuntime", "createContainer")]
    networks = (made.path / "log.net").read_text().split()
    assert networks == [os.readlink("/proc/self/ns/net")] * 2 + [os.readlink(f"/proc/{pid}/ns/net")]
    assert networks[0] != networks[2]
    chiton.ok("start", "h")
    kind, state = told(log)[-1]
    assert (kind, state["status"], state["pid"]) == ("poststart", "running", pid)
    chiton.ok("delete", "--force", "h")
    kind, state = told(log)[-1]
    assert (kind, state["status"], state["id"], state["bundle"]) == ("poststop", "stopped", "h", str(made.path))
    assert "pid" not in state and len(told(log)) == 5


def test_a_create_that_a_hook_fails_is_undone(chiton, bundle):
    made = bundle("true")
    log = made.path / "log"
    hooked(made.config, log, failing="createContainer")
    made.save()
    done = chiton("create", "--bundle", made.path, "h")
    assert done.returncode == 1 and "error running createContainer hook #0" in done.stderr, done.stderr
    assert [kind for kind, _ in told(log)] == ["prestart", "createRuntime", "createContainer", "poststop"]


def test_a_container_does_not_outlive_a_poststart_hook_that_fails(chiton, bundle):
    made = bundle("sleep", "1000")
    log = made.path / "log"
    hooked(made.config, log, failing="poststart")
    made.save()
    for verbs in (("run", "--detach", "--bundle", made.path, "h"),), (("create", "--bundle", made.path, "h"), ("start", "h")):
        for verb in verbs[:-1]:
            chiton.ok(*verb, stdout=None, stderr=None)
        done = chiton(*verbs[-1])
        assert done.returncode == 1 and "error running poststart hook #0" in done.stderr, done.stderr
        assert told(log)[-1][0] == "poststop" and chiton.status("h") is None
        log.unlink()


def in_the_container(text, **hook):
    return {"path": "/bin/sh", "args": ["sh", "-c", text], **hook}


def test_start_container_hooks(run, rootfs):
    """In the container, as its user, after `start` has been asked for and before the program."""
    def hooks(config):
        config["process"]["env"].append("OF=the program")
        config["hooks"] = {"startContainer": [
            in_the_container("read -r state; echo \"$state\" > /tmp/state; id -u > /tmp/first; hostname >> /tmp/first; echo $OF >> /tmp/first"),
            in_the_container("echo $OF > /tmp/second; uname -r >> /tmp/second", env=["PATH=/usr/bin:/bin", "OF=its own"]),
        ]}
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["hostname"] = "of-the-guest"

    (rootfs / "tmp").chmod(0o1777)
    done = run("sh", "-c", "cat /tmp/first /tmp/second; uname -r", change=hooks)
    assert done.returncode == 0, done.stderr
    uid, hostname, first, second, *kernels = done.stdout.splitlines()
    assert (uid, hostname, first, second) == ("1000", "of-the-guest", "the program", "its own")
    assert kernels[0] == kernels[1] != os.uname().release
    state = json.loads((rootfs / "tmp/state").read_text())
    assert (state["status"], state["pid"]) == ("created", 1)


def test_a_start_container_hook_that_fails(run, rootfs):
    def hooks(config):
        config["hooks"] = {"startContainer": [in_the_container("echo words >&2; exit 3"), in_the_container("touch /second")]}

    done = run("touch", "/program", change=hooks)
    assert done.returncode == 1 and "error running startContainer hook #0: exit status 3: words" in done.stderr, (done.returncode, done.stderr)
    assert not (rootfs / "second").exists() and not (rootfs / "program").exists()
