"""Every verb once, in order of a container's life: what `make quick` runs of the end-to-end tests."""

import json
import re
import subprocess

from chiton import Runtime, only_chiton, wait_for

# Prints as long as it runs, so that what is suspended can be told; ends with a code of its own.
PROGRAM = ("sh", "-c", "trap 'exit 3' TERM; while sleep 0.05; do echo tick; done")


class Recorder(Runtime):
    """Remembers which verbs were run."""

    def __init__(self, runtime):
        super().__init__(runtime.binary, runtime.root)
        self.verbs = set()

    def command(self, *args):
        self.verbs.add(args[0])
        return super().command(*args)


@only_chiton
def test_every_verb(runtime, bundle, scratch):
    chiton = Recorder(runtime)
    made = bundle(*PROGRAM)
    made.config["linux"]["resources"]["memory"] = {"limit": 128 << 20}
    made.save()
    output = made.path / "output"

    # Without a container.
    # On a busy machine the lab's KVM looks as slow as one that emulates.
    done = chiton("check")
    assert done.returncode == 0 or "KVM emulates" in done.stdout, done
    assert "linux" in json.loads(chiton.ok("features"))
    assert json.loads(chiton.ok("explain", "--json", made.path))["properties"]
    written = scratch / "quick-spec"
    written.mkdir()
    chiton.ok("spec", "--bundle", written)
    assert json.loads((written / "config.json").read_text())["process"]["args"] == ["sh"]

    with open(output, "wb") as out:
        chiton.ok("create", "--bundle", made.path, "life", stdout=out, stderr=out)

    def ticks():
        size = output.stat().st_size
        try:
            wait_for(lambda: output.stat().st_size != size, 2)
        except AssertionError:
            return False
        return True

    assert chiton.status("life") == "created"
    chiton.ok("start", "life")
    assert chiton.status("life") == "running"
    wait_for(ticks)
    assert json.loads(chiton.ok("list", "--format", "json"))[0]["id"] == "life"

    done = chiton("exec", "life", "sh", "-c", "cat; cat /sys/fs/cgroup/memory.max; exit 7", stdin=None, input="in\n")
    assert (done.returncode, done.stdout.split()) == (7, ["in", str(128 << 20)]), done.stderr
    assert "tick" in chiton.ok("ps", "life")
    chiton.ok("update", "--memory", str(96 << 20), "life")
    assert chiton.ok("exec", "life", "cat", "/sys/fs/cgroup/memory.max").split() == [str(96 << 20)]
    assert json.loads(chiton.ok("events", "--stats", "life"))["data"]["memory"]["usage"]["limit"] == 96 << 20
    assert "ok   no_new_privs: set in " in chiton("audit", "life").stdout

    chiton.ok("pause", "life")
    assert chiton.status("life") == "paused" and not ticks()
    chiton.ok("resume", "life")
    assert chiton.status("life") == "running" and ticks()
    for verb in ("checkpoint", "restore"):
        done = chiton(verb, *(["--bundle", made.path] if verb == "restore" else []), "life")
        assert done.returncode == 1 and f"{verb} is not supported" in done.stderr, done.stderr

    chiton.ok("kill", "life", "TERM")
    wait_for(lambda: chiton.status("life") == "stopped")
    chiton.ok("delete", "life")
    assert chiton.status("life") is None

    brief = bundle("sh", "-c", "read line; echo got $line; exit 5").save()
    done = chiton("run", "--bundle", brief.path, "brief", stdin=None, input="it\n")
    assert (done.returncode, done.stdout) == (5, "got it\n"), done.stderr

    help_text = subprocess.run([chiton.binary, "--help"], capture_output=True, text=True, check=True).stdout
    commands = help_text.partition("COMMANDS:\n")[2].partition("\n\n")[0]
    offered = set(re.findall(r"^  (\w+)", commands, re.MULTILINE)) - {"help"}
    assert offered == chiton.verbs
