"""--systemd-cgroup, with a systemd: what becomes of a container is what systemd and the kernel say, inside the systemd's namespaces."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import pytest

from chiton import wait_for
from conftest import BINARIES, clean
from systemd import Systemd, inside

FILES = pathlib.Path("/sys/fs/cgroup/chiton-systemd")


@pytest.fixture(scope="module")
def systemd(scratch):
    directory = scratch / "systemd"
    directory.mkdir()
    with contextlib.closing(Systemd(directory)) as systemd:
        yield systemd
    shutil.rmtree(directory)


@pytest.fixture(params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def runtime(request, scratch, systemd):
    with clean(BINARIES[request.param], scratch, inside(systemd)) as runtime:
        yield runtime


def wants(cgroups_path, **resources):
    """A change of a configuration: its place, and its limits."""
    def change(config):
        if cgroups_path is not None:
            config["linux"]["cgroupsPath"] = cgroups_path
        config["linux"]["resources"].update(resources)
        config["annotations"] = {"org.systemd.property.TimeoutStopSec": "uint64 123",
                                 "org.systemd.property.CollectMode": "'inactive-or-failed'"}
    return change


def test_a_container_is_a_scope(systemd, runtime, container):
    limits = {"memory": {"limit": 200 << 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}}
    c = container("sleep", "1000", verb=("create",), change=wants("my-nested.slice:pre:name", **limits))
    unit, files = "pre-name.scope", FILES / "my.slice/my-nested.slice/pre-name.scope"

    def says(name):
        return (files / name).read_text().strip()

    # Debian's runc has an older line from shares to weights.
    weight, more = {"chiton": ("59", "174"), "runc": ("20", "79")}[runtime.name]
    shown = systemd.show(unit)
    assert {key: shown[key] for key in ("LoadState", "ActiveState", "Transient", "Slice", "ControlGroup", "Delegate", "CollectMode",
                                        "DefaultDependencies", "TimeoutStopUSec", "CPUWeight", "CPUQuotaPerSecUSec", "AllowedCPUs")} == {
        "LoadState": "loaded", "ActiveState": "active", "Transient": "yes", "Slice": "my-nested.slice",
        "ControlGroup": "/my.slice/my-nested.slice/pre-name.scope", "Delegate": "yes", "CollectMode": "inactive-or-failed",
        "DefaultDependencies": "no", "TimeoutStopUSec": "2min 3s", "CPUWeight": weight, "CPUQuotaPerSecUSec": "500ms", "AllowedCPUs": "0"}
    assert {shown[f"{kind}Accounting"] for kind in ("CPU", "Memory", "IO", "Tasks")} == {"yes"}
    # The machine boots without a quota.
    assert (says("cpu.max"), says("cpu.weight"), says("cpuset.cpus")) == ("50000 100000" if runtime.name == "runc" else "max 100000", weight, "0")
    assert says("memory.max") == shown["MemoryMax"] and int(shown["MemoryMax"]) >= 200 << 20
    assert systemd.ok("cat", f"/sys/fs/cgroup{shown['ControlGroup']}/cgroup.procs").split() == [str(c.pid)]

    # Limits that are changed stay so, whatever systemd does with its units.
    c.verb("start")
    assert says("cpu.max") == "50000 100000"
    c.verb("update", "--cpu-quota=30000", "--cpu-share=2048")
    for _ in range(2):
        assert (says("cpu.max"), says("cpu.weight"), says("cpuset.cpus")) == ("30000 100000", more, "0")
        assert says("memory.max") == shown["MemoryMax"]
        systemd.ok("systemctl", "daemon-reload")
        # Systemd looks at what it owns when something happens to it.
        systemd.ok("systemctl", "set-property", "--runtime", unit, "IOWeight=200")
    after = systemd.show(unit)
    assert (after["CPUQuotaPerSecUSec"], after["CPUWeight"]) == ("300ms", more)
    # As are those of the container, which can be a machine of its own.
    assert c.output("cat", "/sys/fs/cgroup/cpu.max") == "30000 100000\n"
    assert c.status == "running"

    c.delete()
    assert not files.exists() and not systemd.is_loaded(unit)
    systemd.ok("systemctl", "stop", "my.slice")


def test_a_scope_ends_with_its_process(systemd, runtime, container):
    for path, unit in ((None, f"{runtime.name}-NAME.scope"), (":pre:short", "pre-short.scope"), ("-.slice:pre:top", "pre-top.scope")):
        c = container("sleep", "1000", change=wants(path))
        unit = unit.replace("NAME", c.name)
        slice = "-.slice" if "top" in unit else "system.slice"
        shown = systemd.show(unit)
        assert (shown["ActiveState"], shown["Slice"]) == ("active", slice)
        files = FILES / shown["ControlGroup"].lstrip("/")
        assert files == FILES / ("" if slice == "-.slice" else slice) / unit and files.is_dir()
        systemd.ok("kill", "-KILL", str(c.pid))
        wait_for(lambda: not systemd.is_loaded(unit) and not files.exists())
        # Its pid is one of the manager's namespace.
        wait_for(lambda: c.status == "stopped")
        # There is nothing left to be removed but the state.
        c.verb("delete")
        # The name is free.
        runtime.ok("create", "--bundle", c.bundle.path, c.name, stdout=None, stderr=None)
        assert systemd.is_loaded(unit)
        c.delete()
        assert not systemd.is_loaded(unit)


def test_on_the_message_bus(systemd, runtime, container):
    """Which is where it is asked for when the manager's own socket is not there."""
    systemd.ok("systemctl", "start", "dbus.service")
    systemd.ok("mv", "/run/systemd/private", "/run/systemd/hidden")
    try:
        c = container("sleep", "1000", change=wants("system.slice:bus:name"))
        assert (FILES / "system.slice/bus-name.scope").is_dir()
        c.verb("update", "--cpu-quota=20000")
        assert (FILES / "system.slice/bus-name.scope/cpu.max").read_text() == "20000 100000\n"
        c.delete()
        assert not (FILES / "system.slice/bus-name.scope").exists()
    finally:
        systemd.ok("mv", "/run/systemd/hidden", "/run/systemd/private")
        systemd.ok("systemctl", "stop", "dbus.service", "dbus.socket")


def test_what_is_refused_leaves_nothing(systemd, runtime, bundle):
    def refused(cgroups_path, text, **annotations):
        made = bundle("true")
        made.config["linux"]["cgroupsPath"] = cgroups_path
        made.config["annotations"] = {key.replace("_", "."): value for key, value in annotations.items()}
        made.save()
        done = runtime("create", "--bundle", made.path, "refused")
        assert done.returncode == 1 and text in done.stderr.replace("\\", ""), done.stderr
        assert runtime.status("refused") is None

    for path in ("/a/b", "a:b", "a.slice:b:c:d"):
        refused(path, f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}" instead')
    for slice in ("a--b.slice", "-a.slice", "a/b.slice"):
        refused(f"{slice}:p:n", f"invalid slice name: {slice}")
    refused(":p:n", "org.systemd.property.After", org_systemd_property_After="nonsense")
    # What systemd itself does not take.
    refused(":p:bad", "NoSuchProperty", org_systemd_property_NoSuchProperty="true")
    assert not systemd.is_loaded("p-bad.scope") and not systemd.is_loaded("p-n.scope")


def test_without_a_systemd(runtime, bundle):
    """A host that runs none is told apart from one that fails."""
    if pathlib.Path("/run/systemd/system").exists():
        pytest.skip("a systemd runs this host")
    outside = runtime.binary, "--root", str(runtime.root), "--systemd-cgroup"
    done = subprocess.run([*outside, "run", "--bundle", bundle("true").save().path, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "systemd not running on this host, cannot use systemd cgroups manager" in done.stderr, done.stderr
