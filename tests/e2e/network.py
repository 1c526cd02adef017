"""Network namespaces of the host."""

import itertools
import json
import subprocess

_numbers = itertools.count()


def command(*args, **kwargs):
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, timeout=60, check=False, **kwargs)
    assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Namespace:
    """A network namespace of the host."""

    def __init__(self):
        self.name = f"chiton-test-{next(_numbers)}"
        self.path = f"/run/netns/{self.name}"
        command("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *args):
        return command("ip", "-n", self.name, *args)

    def run(self, *args):
        return command("ip", "netns", "exec", self.name, *args)

    def ingress(self):
        """The ingress qdiscs in it."""
        return [line for line in self.run("tc", "qdisc", "show").splitlines() if " ingress " in line or " clsact " in line]

    def links(self):
        return sorted(link["ifname"] for link in json.loads(self.ip("-j", "link")))

    def delete(self):
        subprocess.run(["ip", "netns", "delete", self.name], check=False)
