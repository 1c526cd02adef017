"""containerd, alone, with its CRI plugin or below Docker, in a network namespace of its own: addresses, bridges and firewall rules are not the host's."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tarfile

from chiton import wait_for
from network import Namespace

BINARIES = {"chiton": os.environ["CHITON"], "runc": "/usr/sbin/runc"}

# A directory with another version's containerd, containerd-shim-runc-v2 and ctr, in place of the distribution's.
PROGRAMS = os.environ.get("E2E_CONTAINERD", "/usr/bin")
CTR = f"{PROGRAMS}/ctr"
# 1.6 and so on, as a pair of numbers.
_told = subprocess.run([CTR, "--version"], capture_output=True, text=True, check=True).stdout
VERSION = tuple(map(int, re.search(r"\bv?(\d+)\.(\d+)\.\d", _told).groups()))

CONFIG = """
version = 2
root = "{base}/content"
state = "{base}/tasks"
disabled_plugins = [{disabled}]
[grpc]
  address = "{base}/containerd.sock"
{more}
"""


class Daemons:
    """A directory, a network namespace, and daemons in them that serve until they are told to end."""

    def __init__(self, binary, base):
        self.binary, self.base = binary, base
        self.base.mkdir()
        self.namespace = Namespace()
        self.running = []

    def command(self, *args):
        return ["nsenter", f"--net={self.namespace.path}", *map(str, args)]

    def run(self, *args, timeout=120, **kwargs):
        """Runs a client to its end; what `subprocess.run` gives."""
        kwargs = {"stdin": subprocess.DEVNULL} | kwargs
        return subprocess.run(self.command(*args), capture_output=True, text=True, timeout=timeout, check=False, **kwargs)

    def serve(self, *args, answers):
        """Starts a daemon and waits until it answers."""
        log = self.base / (os.path.basename(args[0]) + ".log")
        with open(log, "ab") as output:
            # containerd looks for its shim there first.
            path = f"{PROGRAMS}:{os.environ['PATH']}"
            daemon = subprocess.Popen(self.command(*args), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"PATH": path})
        self.running.append(daemon)

        def ready():
            assert daemon.poll() is None, log.read_text()
            return answers()

        wait_for(ready, 120)

    def containerd(self, disabled='"io.containerd.grpc.v1.cri"', more=""):
        config = self.base / "containerd.toml"
        config.write_text(CONFIG.format(base=self.base, disabled=disabled, more=more))
        self.serve(f"{PROGRAMS}/containerd", "--config", config, answers=lambda: self.ctr("version").returncode == 0)

    def ctr(self, *args, **kwargs):
        return self.run(CTR, "--address", self.base / "containerd.sock", *args, **kwargs)

    def ctr_ok(self, *args, **kwargs):
        """The same for what must succeed; its standard output."""
        done = self.ctr(*args, **kwargs)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stop(self, daemon):
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        self.running.remove(daemon)

    def left(self):
        """Processes of the runtime below this directory, and its state of containers."""
        real, base, found = os.path.realpath(self.binary), os.fsencode(self.base), []
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "exe") == real and base in (entry / "cmdline").read_bytes():
                    found.append(f"process {entry.name}")
        return found + [str(path) for root in ("runc", "exec/runtime-chiton") for path in (self.base / root).glob("*/*")]

    def close(self):
        """Ends the daemons, the youngest first, and takes away what they leave: mounts, the namespace, parents of cgroups."""
        left = self.left()
        for daemon in reversed(self.running.copy()):
            self.stop(daemon)
        mounts = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.base}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False)
        self.namespace.delete()
        for name in ("default", "docker", "k8s.io"):
            with contextlib.suppress(OSError):
                os.rmdir(f"/sys/fs/cgroup/{name}")
        assert left == []


def image(path, name, tree, config):
    """Makes an archive of an image whose one layer is a directory (the OCI image layout)."""
    layout = path.parent / (path.name + ".layout")
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = layout / "layer"
    subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", layer, "."], check=True)
    layer = add("layer.v1.tar", (layout / "layer").read_bytes())
    (layout / "layer").unlink()
    config = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = add("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]}
    manifest = add("manifest.v1+json", json.dumps(manifest).encode()) | {"annotations": {
        "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1]}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    with tarfile.open(path, "w") as archive:
        for entry in ("oci-layout", "index.json", "blobs"):
            archive.add(layout / entry, entry)
    return path


def small_tree(debian, path):
    """Debian without its /usr, which containers get as a volume: an image of it is soon made."""
    subprocess.run(f"tar -C {debian} --exclude './usr/*' -cf - . | tar -C {path} -xpf - --numeric-owner", shell=True, check=True)
    return path
