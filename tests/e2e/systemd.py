"""A systemd of the tests' own: PID 1 of namespaces of its own, and master of a part of the host's cgroups."""

import os
import pathlib
import subprocess

from chiton import Runtime, wait_for

# It and all that it makes is below; callers are in a cgroup beside what it makes.
CGROUP = pathlib.Path("/sys/fs/cgroup/chiton-systemd")
CALLER = CGROUP / "caller"

# Nothing is started but the manager itself; the message bus only when it is asked for.
UNITS = {
    "test.target": "[Unit]\nDefaultDependencies=no\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n"
                    "ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
}

START = """
echo 0 >{cgroup}/cgroup.procs
exec unshare --cgroup sh -ec '
mount -t proc proc /proc
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/systemd/system
cp {units}/* /run/systemd/system
exec env -i container=chiton-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=test.target \
    --log-target=console --show-status=no'
"""


class Systemd:
    """The manager."""

    def __init__(self, directory):
        CGROUP.mkdir()
        units = directory / "units"
        units.mkdir()
        for name, text in UNITS.items():
            (units / name).write_text(text)
        self.log = directory / "systemd.log"
        with open(self.log, "wb") as log:
            # Mounts that tests make later are seen inside.
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "sh", "-ec",
                 START.format(cgroup=CGROUP, units=units)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_for(children.read_text)
        self.pid = int(children.read_text())
        CALLER.mkdir()
        wait_for(lambda: self("systemctl", "is-active", "test.target").stdout == "active\n", 60)
        # The cgroup of a slice is made with the first unit in it, and stays.
        self.ok("systemd-run", "--quiet", "--scope", "true")

    def command(self, *args):
        """The command that runs another one inside."""
        enter = f'echo 0 >{CALLER}/cgroup.procs; exec nsenter --target {self.pid} --mount --pid --cgroup -- "$@"'
        return ["sh", "-c", enter, "sh", *map(str, args)]

    def __call__(self, *args):
        """Runs a command inside; what `subprocess.run` gives."""
        return subprocess.run(self.command(*args), capture_output=True, text=True, timeout=60, check=False)

    def ok(self, *args):
        """The same for one that must succeed; its output."""
        done = self(*args)
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}{self.log.read_text()}"
        return done.stdout

    def show(self, unit):
        """The properties of a unit."""
        return dict(line.split("=", 1) for line in self.ok("systemctl", "show", unit).splitlines())

    def is_loaded(self, unit):
        """Whether there is such a unit."""
        return self.show(unit)["LoadState"] == "loaded"

    def close(self):
        """Ends it and all that runs in it."""
        self.process.kill()
        self.process.wait()
        wait_for(lambda: "populated 0" in (CGROUP / "cgroup.events").read_text())
        for directory, _, _ in os.walk(CGROUP, topdown=False):
            os.rmdir(directory)


def inside(systemd):
    """A kind of runtime whose verbs run inside, with --systemd-cgroup."""
    class Inside(Runtime):
        def command(self, *args):
            return systemd.command(self.binary, "--root", self.root, "--systemd-cgroup", *args)
    return Inside
