"""What every end-to-end test starts from: the binary under test, a real Debian root, a bundle, and a check for leftovers."""

import contextlib
import functools
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from chiton import Bundle, Container, Runtime, cgroups, left_behind, standing  # noqa: E402

_numbers = itertools.count()

# When no test may begin any more. E2E_SECONDS is what `run` gives them.
_deadline = time.monotonic() + float(os.environ.get("E2E_SECONDS", "inf"))

BINARIES = {"chiton": os.environ["CHITON"], "runc": "/usr/sbin/runc"}

# The files that take longest: where several labs share the tests, these are taken first, so that no lab ends long before another.
LONG = ("test_docker", "test_podman", "test_exec", "test_network", "test_conmon", "test_adversarial", "test_crashes", "test_mounts",
        "test_volumes", "test_verbs", "test_terminals", "test_seccomp", "test_resources", "test_containerd", "test_cri")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Leaves out, without a word, the tests of a file that another lab has taken. When the time is up, none begins: the report of those
    that ran would be lost with the lab."""
    late = time.monotonic() > _deadline
    if late:
        item.session.shouldfail = f"the time was up before {item.nodeid}"
    return True if late or not ours(item.path.stem) else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Shows with a test that fails what the processes are at: what it has waited for in vain may be one of them."""
    report = (yield).get_result()
    if report.failed:
        report.sections.append(("processes", standing()))


@functools.cache
def ours(name):
    """Takes a file for this lab. E2E_TAKEN is a directory that all labs share."""
    taken = os.environ.get("E2E_TAKEN")
    if taken:
        try:
            os.mkdir(os.path.join(taken, name))
        except FileExistsError:
            return False
    return True


@pytest.fixture(scope="session")
def scratch():
    """A directory on a file system with everything a root filesystem needs."""
    base = "/scratch" if os.environ.get("CHITON_LAB") == "lab" else None
    path = tempfile.mkdtemp(prefix="chiton-e2e-", dir=base)
    yield pathlib.Path(path)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def debian(scratch):
    """Debian's own packages, unpacked once."""
    root = scratch / "debian"
    root.mkdir()
    subprocess.run(["tar", "-xpf", os.environ["CHITON_ROOTFS"], "-C", root, "--numeric-owner"], check=True)
    return root


# What the root filesystem is on decides which id maps a machine process has (docs/security.md).
ID_MAPS = ("shifted", "identity")


@pytest.fixture
def on_a_root(debian):
    """Makes a change to a configuration that gives the machine process these id maps: its root filesystem is an overlay, as it is without
    a change, or the directory that was unpacked, which all tests share and so nobody writes to."""

    def on_a_root(id_maps, change=None):
        def both(config):
            if id_maps == "shifted":
                config["root"] = {"path": str(debian), "readonly": True}
            if change:
                change(config)
        return both

    return on_a_root


@pytest.fixture(params=ID_MAPS)
def id_maps(request):
    """Each sort of id maps."""
    return request.param


@contextlib.contextmanager
def clean(binary, scratch, kind=Runtime):
    """A runtime with an empty state root. Nothing may be left of any container at the end."""
    runtime = kind(binary, scratch / f"state-{next(_numbers)}")
    before = cgroups()
    yield runtime
    left = left_behind(runtime, before)
    subprocess.run(["pkill", "-KILL", "-f", str(runtime.root)], check=False)
    assert left == []


@pytest.fixture
def chiton(scratch):
    with clean(BINARIES["chiton"], scratch) as runtime:
        yield runtime


@pytest.fixture
def runc(scratch):
    with clean(BINARIES["runc"], scratch) as runtime:
        yield runtime


@pytest.fixture(params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def runtime(request):
    """Each of E2E_RUNTIMES, one after the other: what a test that takes it expects is what runc does."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def rootfs(scratch, debian):
    """A writable root filesystem of the test's own: an overlay on the unpacked one, as engines make it."""
    base = scratch / f"overlay-{next(_numbers)}"
    for name in ("upper", "work", "root"):
        (base / name).mkdir(parents=True)
    options = f"lowerdir={debian},upperdir={base}/upper,workdir={base}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, base / "root"], check=True)
    yield base / "root"
    subprocess.run(["umount", base / "root"], check=True)
    shutil.rmtree(base)


@pytest.fixture
def bundle(scratch, rootfs):
    """Makes bundles over the test's root filesystem."""
    made = []

    def make(*args):
        made.append(Bundle(scratch / f"bundle-{next(_numbers)}", rootfs, args))
        return made[-1]

    yield make
    for each in made:
        shutil.rmtree(each.path)


@pytest.fixture
def container(runtime, bundle):
    """Makes detached containers of a program (see Container); they are deleted at the end."""
    made = []

    def container(*args, change=None, **kwargs):
        its = bundle(*args)
        if change:
            change(its.config)
        made.append(Container(runtime, f"test-{next(_numbers)}", its.save(), **kwargs))
        return made[-1]

    yield container
    for each in made:
        # Shown with a test that fails.
        with contextlib.suppress(OSError):
            print(f"log of {each.name}: {(each.runtime.root / each.name / 'log').read_text()}")
        each.delete()


@pytest.fixture
def run(chiton, bundle):
    """Runs a program in a container of its own, in the foreground; what `subprocess.run` gives."""

    def run(*args, change=None, **kwargs):
        made = bundle(*args)
        if change:
            change(made.config)
        made.save()
        return chiton("run", "--bundle", made.path, f"run-{next(_numbers)}", **kwargs)

    return run


@pytest.fixture
def script(run, rootfs):
    """Runs a Python script in a container and expects it to succeed; its output."""

    def script(text, **kwargs):
        (rootfs / "script.py").write_text(text)
        done = run("python3", "/script.py", **kwargs)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return script
