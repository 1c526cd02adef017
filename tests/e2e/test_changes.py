"""The container's network follows what becomes of its namespace on the host while it runs."""

import os
import pathlib

import pytest

from chiton import joining, only_chiton, wait_for, watchers
from test_network import connect, fill, fill_peer, joins, namespaces, reaches, state  # noqa: F401

pytestmark = pytest.mark.timeout(300)


def administrator(config):
    for kind in ("bounding", "effective", "permitted"):
        config["process"]["capabilities"][kind].append("CAP_NET_ADMIN")


def agrees(container, namespace):
    """The guest has what the host has. What is looked at meanwhile may be on its way."""
    def same():
        found, expected = state(lambda *args: container.output("ip", *args)), state(namespace.ip)
        return found == expected
    try:
        wait_for(same, 20)
    except AssertionError as e:
        raise AssertionError((state(lambda *args: container.output("ip", *args)), state(namespace.ip))) from e


def log(container):
    return (container.runtime.root / container.name / "log").read_text()


@pytest.fixture
def peer(namespaces):  # noqa: F811
    return namespaces()


@pytest.fixture
def filled(namespaces):  # noqa: F811
    """Makes a namespace with an interface, as there is before a container is started, and with a second table of routes."""
    def fill_one(peer, number=5):
        made = namespaces()
        connect(peer, "peer0", made.name, "eth0")
        fill(made.ip, number=number)
        fill_peer(peer, number=number)
        made.ip("route", "add", "blackhole", "203.0.113.0/24", "table", "100")
        made.ip("-6", "route", "add", "blackhole", "2001:db8::/32", "table", "100")
        wait_for(lambda: "tentative" not in made.ip("addr"))
        return made
    return fill_one


@pytest.fixture
def inner(filled, peer):
    return filled(peer)


def come(peer, inner, name="eth1", number=6, mtu=1500):  # noqa: F811
    """An interface as Docker and CNI make it: it comes under another name."""
    connect(peer, f"peer{number}", inner.name, "temporary", mtu=mtu)
    inner.ip("link", "set", "temporary", "name", name)
    fill(inner.ip, name, number)
    fill_peer(peer, f"peer{number}", number)


def test_interfaces_come_and_go(container, inner, peer):
    made = container("sleep", "1000", change=joins(inner.path))
    come(peer, inner, mtu=1400)
    inner.ip("route", "add", "10.66.0.0/16", "via", "10.6.0.1", "src", "10.6.0.2", "metric", "3")
    inner.ip("neigh", "add", "10.6.0.9", "lladdr", "02:00:00:00:00:99", "dev", "eth1", "nud", "permanent")
    inner.ip("route", "add", "default", "via", "10.6.0.1")
    agrees(made, inner)
    reaches(made, peer, 6)
    reaches(made, peer)
    # The default route is another one, an address goes, one comes, and the first interface has another MTU.
    inner.ip("route", "replace", "default", "via", "10.5.0.1")
    inner.ip("addr", "add", "10.7.0.2/24", "dev", "eth1", "label", "eth1:x")
    inner.ip("addr", "del", "fd00:6::2/64", "dev", "eth1")
    inner.ip("link", "set", "eth0", "mtu", "1300")
    inner.ip("rule", "add", "from", "10.7.0.2", "lookup", "100", "priority", "50")
    inner.ip("route", "add", "default", "via", "10.6.0.1", "table", "100")
    agrees(made, inner)
    inner.ip("rule", "del", "from", "10.7.0.2", "lookup", "100", "priority", "50")
    inner.ip("route", "del", "default", "table", "100")
    inner.ip("link", "set", "eth1", "down")
    agrees(made, inner)
    inner.ip("link", "set", "eth1", "up")
    agrees(made, inner)
    inner.ip("link", "delete", "eth1")
    agrees(made, inner)
    reaches(made, peer)
    # More, one after another, than a machine has room for at once.
    for _ in range(12):
        come(peer, inner)
        agrees(made, inner)
        reaches(made, peer, 6)
        inner.ip("link", "delete", "eth1")
        agrees(made, inner)
    # Another name, another address of the interface; and the first one goes, too.
    come(peer, inner)
    agrees(made, inner)
    inner.ip("link", "set", "eth1", "name", "other")
    agrees(made, inner)
    inner.ip("link", "set", "other", "address", "02:00:00:00:be:ef")
    agrees(made, inner)
    reaches(made, peer, 6)
    inner.ip("link", "delete", "eth0")
    agrees(made, inner)
    reaches(made, peer, 6)


@only_chiton
def test_what_the_container_has_done_itself_stays(container, inner, peer):
    def change(config):
        joins(inner.path)(config)
        administrator(config)
    made = container("sleep", "1000", change=change)
    made.output("ip", "route", "add", "10.77.0.0/16", "via", "10.5.0.1")
    made.output("ip", "addr", "del", "fd00:5::2/64", "dev", "eth0")
    come(peer, inner)
    reaches(made, peer, 6)
    # It is gone already, which is no error.
    made.output("ip", "addr", "del", "10.6.0.2/24", "dev", "eth1")
    inner.ip("addr", "del", "10.6.0.2/24", "dev", "eth1")
    inner.ip("addr", "add", "10.6.0.3/24", "dev", "eth1")
    wait_for(lambda: "10.6.0.3/24" in made.output("ip", "addr"), 20)
    assert "10.77.0.0/16 via 10.5.0.1" in made.output("ip", "route") and "fd00:5::2" not in made.output("ip", "addr")
    assert log(made) == ""
    # What cannot be had is said, and the rest is there.
    made.output("ip", "link", "add", "eth2", "type", "dummy")
    come(peer, inner, "eth2", 8)
    wait_for(lambda: "cannot follow a change of the network" in log(made), 20)
    assert "eth2" in log(made) and "file exists" in log(made).lower()
    made.output("ping", "-c1", "-w20", "10.6.0.1")


@only_chiton
def test_what_cannot_be_carried_over_is_said(container, inner, peer):
    made = container("sleep", "1000", change=joins(inner.path))
    inner.ip("tuntap", "add", "vpn0", "mode", "tun")
    inner.ip("addr", "add", "10.9.0.2/24", "dev", "vpn0")
    wait_for(lambda: "network interface vpn0: it is not an Ethernet interface" in log(made), 20)
    connect(peer, "peer9", inner.name, "taken")
    inner.run("tc", "qdisc", "add", "dev", "taken", "clsact")
    fill(inner.ip, "taken", 9)
    wait_for(lambda: "network interface taken: it has somebody else's ingress or clsact qdisc" in log(made), 20)
    come(peer, inner)
    reaches(made, peer, 6)
    # Once it can be joined, it is, with the next change.
    inner.run("tc", "qdisc", "del", "dev", "taken", "clsact")
    inner.ip("addr", "add", "10.9.1.2/24", "dev", "taken")
    fill_peer(peer, "peer9", 9)
    inner.ip("link", "delete", "vpn0")
    agrees(made, inner)
    for number in range(20, 26):
        connect(peer, f"more{number}", inner.name, f"more{number}")
        inner.ip("addr", "add", f"10.{number}.0.2/24", "dev", f"more{number}")
    wait_for(lambda: "has 9 network interfaces" in log(made), 20)
    assert "the machine takes at most 8" in log(made)
    reaches(made, peer, 6)
    assert made.status == "running"


@only_chiton
def test_a_container_that_is_paused_follows_when_it_goes_on(container, inner, peer):
    made = container("sleep", "1000", change=joins(inner.path))
    made.verb("pause")
    come(peer, inner)
    inner.ip("link", "set", "eth0", "mtu", "1300")
    wait_for(lambda: len(inner.ingress()) == 4, 20)
    made.verb("resume")
    agrees(made, inner)
    reaches(made, peer, 6)


@only_chiton
def test_a_watcher_ends_with_its_machine_and_not_the_other_way_round(container, inner, peer):
    first = container("sleep", "1000", change=joins(inner.path))
    [watcher] = watchers(first)
    os.kill(first.pid, 9)
    wait_for(lambda: not pathlib.Path(f"/proc/{watcher}").exists())
    # One of a container that has gone has nothing to do with the next one in the namespace.
    second = container("sleep", "1000", change=joins(inner.path))
    first.delete()
    come(peer, inner)
    reaches(second, peer, 6)
    # Without it the container goes on with what it has.
    os.kill(watchers(second)[0], 9)
    inner.ip("addr", "add", "10.7.0.2/24", "dev", "eth1")
    reaches(second, peer, 6)
    assert "10.7.0.2" not in second.output("ip", "addr") and second.status == "running"
    second.delete()
    assert inner.ingress() == []
    # Where there is no interface, nothing is watched.
    assert watchers(container("sleep", "1000")) == []


@only_chiton
def test_a_member_with_a_network_of_its_own(container, inner, peer, filled, namespaces):  # noqa: F811
    """It and the machine's first container follow what becomes of theirs."""
    beyond = namespaces()
    other = filled(beyond, 9)
    pod = container("sleep", "1000", change=joins(inner.path))
    member = container("sleep", "1000", change=joining(pod.pid, "ipc", "uts", change=joins(other.path)))
    come(peer, inner)
    come(beyond, other, "eth1", 8)
    agrees(pod, inner)
    agrees(member, other)
    reaches(pod, peer, 6)
    reaches(member, beyond, 8)
    member.delete()
    inner.ip("link", "delete", "eth1")
    agrees(pod, inner)
