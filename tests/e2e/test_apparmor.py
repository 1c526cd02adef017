"""AppArmor: the host's profiles confine the container's processes, which another kernel runs."""

import contextlib
import json
import pathlib
import re
import subprocess

import pytest

from chiton import Container, only_chiton
from test_privileged import privileged

ROOT = pathlib.Path("/sys/kernel/security/apparmor")
RULES = "file, capability, network, mount, umount, pivot_root, signal, ptrace, unix,"

PROFILES = f"""
profile chiton-one flags=(attach_disconnected,mediate_deleted) {{
  {RULES}
  deny /deny/** w,
  deny /secret r,
  deny capability chown,
  profile inner flags=(attach_disconnected,mediate_deleted) {{
    {RULES}
    deny /inner/** w,
  }}
}}
profile chiton-two flags=(attach_disconnected,mediate_deleted) {{
  {RULES}
  deny /two/** w,
}}
"""

# What a process may do under a profile, and which one it says that it has.
LOOK = """cat /proc/self/attr/current /proc/self/attr/apparmor/current; for dir in deny two inner ok; do
    (echo x > /$dir/x) 2>/dev/null && echo "$dir"; done; cat /secret 2>&1; chown 1 /ok 2>&1; true"""

ALL = ["deny", "two", "inner", "ok"]


@contextlib.contextmanager
def loaded(text):
    """Profiles that the host has meanwhile."""
    subprocess.run(["apparmor_parser", "-K", "-r"], input=text, text=True, check=True)
    yield
    subprocess.run(["apparmor_parser", "-R"], input=text, text=True, check=True)


@pytest.fixture(scope="module", autouse=True)
def profiles():
    if not ROOT.exists():
        pytest.skip("AppArmor is not active on this host")
    with loaded(PROFILES):
        yield


@pytest.fixture
def files(rootfs):
    """What the profiles are about."""
    for name in ALL:
        (rootfs / name).mkdir()
    (rootfs / "secret").write_text("told\n")


def confined(profile, more=lambda config: None):
    def change(config):
        config["process"]["apparmorProfile"] = profile
        more(config)
    return change


def expected(profile, *denied, told=True):
    lines = [f"{profile} (enforce)" if profile != "unconfined" else profile] * 2
    lines += [name for name in ALL if name not in denied]
    return [*lines, "told" if told else "cat: /secret: Permission denied"]


ONE = [*expected("chiton-one", "deny", told=False), "chown: changing ownership of '/ok': Operation not permitted"]


def looked(container, change, args=("sh", "-c", LOOK)):
    made = container(*args, change=change)
    made.ends()
    return (made.bundle.path / "output").read_text().splitlines()


def test_a_profile_confines_the_init(container, files):
    assert looked(container, confined("chiton-one")) == ONE


@pytest.mark.parametrize("profile", ["unconfined", ""])
def test_without_one_nothing_is_confined(container, files, profile):
    assert looked(container, confined(profile)) == expected("unconfined")


def test_beside_ids_capabilities_namespaces_and_a_filter(container, files, rootfs):
    """Whoever the process is by then: the profile is there from the first instruction of the program, and for all that it executes."""
    (rootfs / "ok").chmod(0o777)
    (rootfs / "deny").chmod(0o777)

    def more(config):
        config["process"] |= {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": False,
                              "capabilities": {"bounding": [], "effective": [], "permitted": []}}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]}
    script = "cat /proc/self/attr/current; (echo x > /deny/x) 2>&1; echo x > /ok/x && grep -c . /proc/self/attr/current"
    found = looked(container, confined("chiton-one", more), ("sh", "-c", script))
    assert found == ["chiton-one (enforce)", "sh: 1: cannot create /deny/x: Permission denied", "1"]

    def mapped(config):
        more(config)
        config["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            config["linux"][kind] = [{"containerID": 0, "hostID": 0, "size": 2000}]
        config["process"]["noNewPrivileges"] = True
    assert looked(container, confined("chiton-one", mapped), ("sh", "-c", script)) == found


def test_an_exec_has_the_containers_profile_or_its_own(container, files):
    made = container("sleep", "1000", change=confined("chiton-one"))
    look = ("sh", "-c", LOOK)
    assert made.output(*look).splitlines() == ONE
    assert made.output(*look, options=["--apparmor", "chiton-one"]).splitlines() == ONE
    assert made.output(*look, options=["--apparmor", "chiton-two"]).splitlines() == expected("chiton-two", "two")
    assert made.output(*look, options=["--apparmor", "unconfined"]).splitlines() == expected("unconfined")
    assert made.output("cat", "/proc/1/attr/current") == "chiton-one (enforce)\n"


def test_an_exec_has_a_profile_where_the_container_has_none(container, files):
    made = container("sleep", "1000")
    assert made.output("sh", "-c", LOOK, options=["--apparmor", "chiton-one"]).splitlines() == ONE
    assert made.output("cat", "/proc/self/attr/current") == "unconfined\n"


def test_a_profile_that_the_host_does_not_have(runtime, container, bundle):
    """The words are what callers look for."""
    words = re.compile("apparmor failed to apply profile: .*: no such file or directory")
    made = bundle("true")
    made.config["process"]["apparmorProfile"] = "no-such-profile"
    done = runtime("run", "--bundle", made.save().path, "missing")
    assert done.returncode == 1 and words.search(done.stderr), done.stderr
    assert runtime.status("missing") is None
    runs = container("sleep", "1000", change=confined("chiton-one"))
    done = runs.exec("true", options=["--apparmor", "no-such-profile"])
    assert done.returncode != 0 and words.search(done.stderr), done.stderr
    assert runs.output("cat", "/proc/self/attr/current") == "chiton-one (enforce)\n"


@only_chiton
def test_what_of_a_name_is_not_supported(runtime, bundle):
    for profile, words in [(":ns:chiton-one", "namespaces of policies"), ("chiton-one//&chiton-two", "stacks of profiles"),
                           ("chiton-one//inner", "profiles inside of others")]:
        made = bundle("true")
        made.config["process"]["apparmorProfile"] = profile
        done = runtime("run", "--bundle", made.save().path, "x")
        assert done.returncode == 1 and "process.apparmorProfile" in done.stderr and words in done.stderr, done.stderr


@only_chiton
def test_the_guests_kernel_has_the_policy_and_the_container_no_way_to_it(container, files):
    def change(config):
        privileged(config)
        config["process"]["apparmorProfile"] = "chiton-two"
    made = container("sleep", "1000", change=change)
    # The profile is the container's, not that of the machine process.
    assert pathlib.Path(f"/proc/{made.pid}/attr/current").read_text() == "unconfined\n"
    assert "securityfs" not in made.output("cat", "/proc/self/mounts")
    # What root of the guest makes of its own kernel is its own affair: here it tells what that has.
    script = "mount -t securityfs none /mnt && cat /mnt/lsm && echo && cat /mnt/apparmor/profiles"
    found = made.output("sh", "-c", script, options=["--apparmor", "unconfined"]).split()
    assert found == ["capability,landlock,apparmor", "chiton-two", "(enforce)"]


@pytest.fixture
def fake(scratch):
    """A command in a mount namespace where the policy of chiton-one is this one."""
    tree = scratch / "apparmor"

    def fake(command, policy, **kwargs):
        profile = tree / "policy" / "profiles" / "chiton-one.1"
        profile.mkdir(parents=True, exist_ok=True)
        (profile / "name").write_text("chiton-one\n")
        (profile / "raw_data").write_bytes(policy)
        script = f'mount --bind {tree} {ROOT} && exec "$@"'
        return subprocess.run(["unshare", "-m", "sh", "-ec", script, "sh", *command], capture_output=True, text=True, timeout=60, check=False,
                              stdin=subprocess.DEVNULL, **kwargs)

    return fake


@only_chiton
def test_a_policy_that_the_guests_kernel_cannot_load(runtime, container, bundle, fake):
    real = next(each for each in (ROOT / "policy" / "profiles").iterdir() if each.name.startswith("chiton-one."))
    real = (real / "raw_data").read_bytes()
    made = bundle("cat", "/proc/self/attr/current")
    made.config["process"]["apparmorProfile"] = "chiton-one"
    run = runtime.command("run", "--bundle", made.save().path, "x")
    # The way there is the right one.
    assert fake(run, real).stdout == "chiton-one (enforce)\n"
    runs = container("sleep", "1000")
    execute = runtime.command("exec", "--apparmor", "chiton-one", runs.name, "cat", "/proc/self/attr/current")
    for policy, why in [(b"nothing of the kind", ""), (real[:-100], ""), (real.replace(b"version", b"vorsion", 1), ""),
                        (bytes(256 * 1024 + 1), "more than 262144 bytes")]:
        for command in (run, execute):
            done = fake(command, policy)
            assert done.returncode not in (0, 127) and done.stdout == "", (policy[:20], command)
            assert "chiton-one" in done.stderr and "process.apparmorProfile" in done.stderr and why in done.stderr, done.stderr
        assert runtime.status("x") is None
    assert fake(execute, real).stdout == "chiton-one (enforce)\n"


@only_chiton
def test_a_host_that_does_not_show_its_policy(runtime, bundle):
    """Securityfs is not mounted. What does without a profile does so there, too."""
    hidden = ["unshare", "-m", "sh", "-ec", 'umount /sys/kernel/security && exec "$@"', "sh"]

    def call(*args):
        return subprocess.run([*hidden, *runtime.command(*args)], capture_output=True, text=True, timeout=60, check=False,
                              stdin=subprocess.DEVNULL)
    done = call("check")
    assert done.returncode != 0 and [line for line in done.stdout.splitlines() if "AppArmor" in line], done.stdout
    made = bundle("true").save()
    assert call("run", "--bundle", made.path, "x").returncode == 0
    made.config["process"]["apparmorProfile"] = "chiton-one"
    done = call("run", "--bundle", made.save().path, "x")
    assert done.returncode == 1 and "process.apparmorProfile" in done.stderr and str(ROOT) in done.stderr, done.stderr


def test_features(runtime):
    assert json.loads(runtime.ok("features"))["linux"]["apparmor"] == {"enabled": True}


@only_chiton
def test_explain(runtime, bundle):
    for profile, word in [("chiton-one", "guest"), ("unconfined", "nothing"), ("no-such-profile", "refused")]:
        made = bundle("true")
        made.config["process"]["apparmorProfile"] = profile
        lines = dict(line.split(maxsplit=1) for line in runtime("explain", made.save().path).stdout.splitlines())
        assert lines["process.apparmorProfile"].split(":")[0] == word
