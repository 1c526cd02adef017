"""What TCP costs between a container and another network namespace of the host, joined by a veth as clients join them."""

import contextlib
import os
import subprocess

from running import marked
from verbs import bundle

PORT = "7"
OTHER = "bench"


def measure(verbs, figures):
    path = bundle(verbs.host, f"{verbs.name}-tcp", "/bench/peer", "serve", PORT)
    with other_end() as network:
        verbs.quiet("create", "--bundle", path, "--pid-file", "/run/pid", "tcp")
        join(verbs.host.path("/run/pid").read_text())
        verbs.quiet("start", "tcp")
        marked(verbs, figures, lambda: verbs.host.ok("/bin/peer", "tcp", "10.5.0.2", PORT, network=network))
        verbs.quiet("delete", "--force", "tcp")


@contextlib.contextmanager
def other_end():
    """A network namespace."""
    command("ip", "netns", "add", OTHER)
    descriptor = os.open(f"/run/netns/{OTHER}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        command("ip", "netns", "delete", OTHER)


def join(pid):
    """Gives the network namespace of a process an interface with an address, as docker does between create and start."""
    here = ("ip", "-n", OTHER)
    command(*here, "link", "add", "peer0", "type", "veth", "peer", "name", "eth0", "netns", pid)
    inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip")
    for ip, name, address in ((here, "peer0", "10.5.0.1/24"), (inside, "eth0", "10.5.0.2/24")):
        # No IPv6, whose router solicitations would come at any time.
        command(*ip, "link", "set", name, "addrgenmode", "none")
        command(*ip, "addr", "add", address, "broadcast", "+", "dev", name)
        command(*ip, "link", "set", name, "up")


def command(*args):
    # Without a time limit: the clock of the lab leaps ahead whenever all wait for the outside.
    subprocess.run(args, check=True)
