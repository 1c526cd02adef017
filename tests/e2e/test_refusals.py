"""Bad input gets one clear error, a non-zero exit, and leaves nothing (the `chiton` fixture looks)."""

import os
import stat
import subprocess

import pytest


def refused(done, *words):
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr.replace('\\"', '"'), done.stderr  # as runc's text log quotes


def test_no_config(chiton, scratch):
    empty = scratch / "empty"
    empty.mkdir(exist_ok=True)
    refused(chiton("run", "--bundle", empty, "x"), "config.json", "no such file")


def test_broken_json(chiton, bundle):
    made = bundle("true")
    (made.path / "config.json").write_text('{\n  "ociVersion": "1.0.0",\n  "process": }')
    refused(chiton("run", "--bundle", made.path, "x"), "config.json", "line 3", "column 14")


def change(bundle, edit, *args):
    made = bundle(*(args or ("true",)))
    edit(made.config)
    return made.save().path


def test_missing_rootfs(chiton, bundle):
    path = change(bundle, lambda c: c["root"].update(path="/nowhere/rootfs"))
    refused(chiton("run", "--bundle", path, "x"), "/nowhere/rootfs", "no such file")


@pytest.mark.parametrize("program, text", [
    ("no-such-program", 'exec: "no-such-program": executable file not found in $PATH'),
    ("/no/such/program", 'exec: "/no/such/program": stat /no/such/program: no such file or directory'),
    ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
])
def test_missing_executable(chiton, bundle, program, text):
    refused(chiton("run", "--bundle", bundle(program).save().path, "x"), "unable to start container process", text)
    refused(chiton("create", "--bundle", bundle(program).save().path, "x"), "unable to start container process", text)


def test_unknown_namespace(chiton, bundle):
    path = change(bundle, lambda c: c["linux"]["namespaces"].append({"type": "galaxy"}))
    refused(chiton("run", "--bundle", path, "x"), "galaxy")


def test_too_little_memory(chiton, bundle):
    path = change(bundle, lambda c: c["linux"]["resources"].update(memory={"limit": 1 << 20}))
    refused(chiton("run", "--bundle", path, "x"), "memory")


@pytest.mark.parametrize("kind", ["network", "pid"])
def test_what_would_be_the_hosts(chiton, bundle, kind):
    def leave_out(config):
        config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != kind]
    refused(chiton("run", "--bundle", change(bundle, leave_out), "x"), "linux.namespaces", f"none has the type {kind}")


@pytest.mark.parametrize("edit, name", [
    (lambda c: c["linux"].update(seccomp={"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp"),
    (lambda c: c.update(hooks={"poststop": [{"path": "bin/true"}]}), "hooks"),
    (lambda c: c["process"].update(apparmorProfile="no-such-profile"), "process.apparmorProfile"),
    (lambda c: c["linux"]["resources"].update(rdma={"mlx5": {"hcaHandles": 1}}), "linux.resources.rdma"),
])
def test_what_cannot_be_applied_is_named(chiton, bundle, edit, name):
    refused(chiton("run", "--bundle", change(bundle, edit), "x"), name)


@pytest.mark.parametrize("name", ["..", "a/b", "", "sp ace", "x" * 2000])
def test_bad_ids(chiton, bundle, name):
    done = chiton("create", "--bundle", bundle("true").save().path, name)
    assert done.returncode == 1 and done.stderr.strip()


def test_kvm_is_absent(chiton, bundle, scratch):
    """In a mount namespace whose /dev has no kvm, or one that may not be opened."""
    made = bundle("true").save()
    command = " ".join(chiton.command("run", "--bundle", made.path, "x"))
    absent = f"mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec {command}"
    done = subprocess.run(["unshare", "-m", "sh", "-ec", absent], capture_output=True, text=True, timeout=60, check=False)
    refused(done, "/dev/kvm", "no such file")
    denied = f"touch {scratch}/kvm && mount --bind -o nodev {scratch} {scratch} && mknod {scratch}/kvmdev c 10 232 && mount --bind {scratch}/kvmdev /dev/kvm && exec {command}"
    done = subprocess.run(["unshare", "-m", "sh", "-ec", denied], capture_output=True, text=True, timeout=60, check=False)
    os.unlink(scratch / "kvmdev")
    os.unlink(scratch / "kvm")
    refused(done, "/dev/kvm", "permission denied")


def test_check(chiton):
    done = chiton("check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_spec_makes_a_bundle(chiton, scratch):
    path = scratch / "spec"
    path.mkdir(exist_ok=True)
    chiton.ok("spec", "--bundle", path)
    assert stat.S_ISREG((path / "config.json").stat().st_mode)
    refused(chiton("spec", "--bundle", path), "exists")


@pytest.mark.parametrize("source", ["/proc", "/proc/version", "/proc/self/ns/net"])
def test_what_leads_to_the_machine_process(chiton, bundle, source):
    """`explain` says so too."""
    path = change(bundle, lambda c: c["mounts"].append({"destination": "/host/it", "type": "bind", "source": source, "options": ["rbind", "ro"]}))
    refused(chiton("run", "--bundle", path, "x"), ".source: ", f"{source} is of the host's procfs", "a mount of type proc")
    explained = chiton("explain", path)
    assert explained.returncode != 0 and f"{source} is of the host's procfs" in explained.stdout


def test_a_bind_of_all_has_all_but_processes(runtime, bundle):
    made = bundle("sh", "-c", "cat /host/sys/kernel/mm/transparent_hugepage/enabled; head -c 4 /host/bin/sh | od -c -An; head -n1 /host/proc/version; echo done")
    made.config["mounts"].append({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "ro"]})
    done = runtime("run", "--bundle", made.save().path, "x")
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as f:
        enabled = f.read()
    lines = done.stdout.splitlines(keepends=True)
    assert lines[0] == enabled and lines[1].split() == ["177", "E", "L", "F"] and lines[-1] == "done\n", done
    if runtime.name == "runc":
        assert lines[2].startswith("Linux version")
    else:
        assert len(lines) == 3 and "/host/proc/version' for reading: Permission denied" in done.stderr
