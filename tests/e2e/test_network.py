"""What CNI, netavark or libnetwork put into the container's network namespace on the host is the container's network."""

import itertools
import json
import os
import subprocess
import textwrap

import pytest

from chiton import only_chiton, wait_for, without
from network import Namespace, command

_numbers = itertools.count()

# `serve`: answers TCP with a checksum and an echo of what it gets, UDP with an echo. `check HOST BYTES DATAGRAM`: its client.
SERVICE = textwrap.dedent("""
    import hashlib, os, socket, sys, threading

    def receive(connection, length):
        data = bytearray()
        while len(data) < length:
            piece = connection.recv(min(1 << 16, length - len(data)))
            assert piece, f"the connection ended after {len(data)} of {length} bytes"
            data += piece
        return bytes(data)

    def answer(connection):
        data = receive(connection, int.from_bytes(receive(connection, 8), "big"))
        connection.sendall(hashlib.sha256(data).digest() + data)
        connection.close()

    def datagrams(udp):
        while True:
            data, peer = udp.recvfrom(1 << 16)
            udp.sendto(data, peer)

    if sys.argv[1] == "serve":
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.bind(("::", 80))
        threading.Thread(target=datagrams, args=[udp], daemon=True).start()
        tcp = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        print("ready", flush=True)
        while True:
            threading.Thread(target=answer, args=[tcp.accept()[0]], daemon=True).start()
    host, size, datagram = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    data = os.urandom(1 << 20) * (size >> 20)
    with socket.create_connection((host, 80), timeout=60) as tcp:
        tcp.sendall(len(data).to_bytes(8, "big") + data)
        assert receive(tcp, 32) == hashlib.sha256(data).digest(), "there"
        assert receive(tcp, size) == data, "back"
    family = socket.getaddrinfo(host, 80)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(60)
        sent = os.urandom(datagram)
        udp.sendto(sent, (host, 80))
        assert udp.recv(1 << 16) == sent, "datagram"
    print("fine")
""")


def state(ip):
    """What a namespace has, `ip` being how to ask it."""
    links = {link["ifname"]: (link["ifindex"], link["address"], link["mtu"], "UP" in link["flags"])
             for link in json.loads(ip("-j", "link")) if link["ifname"] != "lo" and not link["ifname"].startswith("chiton")}
    addresses = {(link["ifname"], a["family"], a["local"], a["prefixlen"], a.get("broadcast"), a["scope"], a.get("label"))
                 for link in json.loads(ip("-j", "addr")) for a in link["addr_info"] if link["ifname"] in links}
    kept = ("type", "dst", "gateway", "dev", "protocol", "scope", "prefsrc", "metric", "metrics", "table", "nexthops")
    routes = []
    for family in ("-4", "-6"):
        for table in ("main", "100"):
            for route in json.loads(ip("-j", family, "route", "show", "table", table) or "[]"):
                hops = [(hop.get("gateway"), hop["dev"], hop["weight"]) for hop in route.pop("nexthops", [])]
                flags = [flag for flag in route["flags"] if flag == "onlink"]
                if route.get("dev") != "lo":
                    routes.append(str(([(key, route[key]) for key in kept if key in route], hops, flags)))
    neighbours = sorted((n["dst"], n["dev"], n["lladdr"]) for n in json.loads(ip("-j", "neigh")) if n["state"] == ["PERMANENT"])
    rules = [str(sorted(rule.items())) for family in ("-4", "-6") for rule in json.loads(ip("-j", family, "rule"))]
    return links, addresses, sorted(routes), neighbours, rules


@pytest.fixture
def namespaces():
    made = []

    def namespace():
        made.append(Namespace())
        return made[-1]

    yield namespace
    for each in made:
        each.delete()


def connect(peer, peer_name, where, name, *, mtu=1500):
    """A veth between a namespace and one that `where` names to ip(8): a pid or a name."""
    command("ip", "-n", peer.name, "link", "add", peer_name, "mtu", mtu, "type", "veth",
            "peer", "name", name, "mtu", mtu, "netns", where)
    peer.ip("link", "set", peer_name, "up")


def fill(ip, name="eth0", number=5):
    """Addresses and routes as CNI's plugins make them."""
    ip("addr", "add", f"10.{number}.0.2/24", "broadcast", "+", "dev", name)
    ip("addr", "add", f"fd00:{number}::2/64", "nodad", "dev", name)
    ip("link", "set", name, "up")


def fill_peer(peer, name="peer0", number=5):
    peer.ip("addr", "add", f"10.{number}.0.1/24", "dev", name)
    peer.ip("addr", "add", f"fd00:{number}::1/64", "nodad", "dev", name)


def joins(path):
    def change(config):
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = str(path)
    return change


def reaches(container, peer, number=5):
    """Packets go in both directions, with IPv4 and IPv6."""
    container.output("ping", "-c1", "-w20", f"10.{number}.0.1")
    container.output("ping", "-c1", "-w20", f"fd00:{number}::1")
    peer.run("ping", "-c1", "-w20", f"10.{number}.0.2")
    peer.run("ping", "-c1", "-w20", f"fd00:{number}::2")


@pytest.mark.timeout(300)
def test_all_that_is_there_before_create(namespaces, container, runtime, rootfs, scratch):
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "eth0", mtu=9000)
    connect(peer, "peer1", inner.name, "data.1", mtu=1280)
    inner.ip("link", "set", "eth0", "address", "02:00:00:00:be:ef")
    fill(inner.ip)
    fill_peer(peer)
    inner.ip("addr", "add", "10.9.0.2/32", "dev", "data.1", "label", "data.1:a")
    inner.ip("addr", "add", "10.8.0.2/24", "dev", "data.1")
    inner.ip("addr", "add", "10.8.0.3/24", "dev", "data.1")
    inner.ip("link", "set", "data.1", "up")
    # What CNI's ptp plugin does: no route to the prefix but by way of the gateway.
    inner.ip("route", "del", "10.5.0.0/24")
    inner.ip("route", "add", "10.5.0.1", "dev", "eth0", "scope", "link", "src", "10.5.0.2")
    inner.ip("route", "add", "10.5.0.0/24", "via", "10.5.0.1", "src", "10.5.0.2")
    inner.ip("route", "add", "default", "via", "10.5.0.1", "mtu", "1400", "metric", "7")
    inner.ip("route", "add", "default", "via", "192.0.2.1", "dev", "data.1", "onlink", "metric", "9")
    inner.ip("route", "add", "198.51.100.0/24", "nexthop", "via", "10.5.0.1", "weight", "2", "nexthop", "via", "10.8.0.1", "weight", "1")
    inner.ip("route", "add", "blackhole", "203.0.113.0/24")
    inner.ip("-6", "route", "add", "default", "via", "fd00:5::1")
    inner.ip("-6", "route", "add", "fd00:77::/64", "dev", "data.1", "metric", "5")
    inner.ip("route", "add", "10.7.0.0/16", "via", "10.5.0.1", "table", "100")
    inner.ip("rule", "add", "from", "10.8.0.2", "lookup", "100", "priority", "50")
    inner.ip("-6", "rule", "add", "to", "fd00:7::/64", "lookup", "100", "priority", "51")
    inner.ip("neigh", "add", "10.8.0.9", "lladdr", "02:00:00:00:00:99", "dev", "data.1", "nud", "permanent")
    inner.ip("neigh", "add", "fd00:5::9", "lladdr", "02:00:00:00:00:98", "dev", "eth0", "nud", "permanent")
    wait_for(lambda: "tentative" not in inner.ip("addr"))
    before = (inner.links(), inner.ingress())

    (rootfs / "service.py").write_text(SERVICE)
    (scratch / "service.py").write_text(SERVICE)
    made = container("python3", "/service.py", "serve", change=joins(inner.path))
    expected = state(inner.ip)
    found = state(lambda *args: made.output("ip", *args))
    for ours, theirs in zip(found, expected):
        assert ours == theirs
    lo = json.loads(made.output("ip", "-j", "addr", "show", "lo"))[0]
    assert {a["local"] for a in lo["addr_info"]} == {"127.0.0.1", "::1"} and "UP" in lo["flags"]

    wait_for(lambda: "ready" in (made.bundle.path / "output").read_text())
    reaches(made, peer)
    for host in ("10.5.0.2", "fd00:5::2"):
        assert peer.run("python3", scratch / "service.py", "check", host, 8 << 20, 8900) == "fine\n"
    server = subprocess.Popen(["ip", "netns", "exec", peer.name, "python3", scratch / "service.py", "serve"], stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        for host in ("10.5.0.1", "fd00:5::1"):
            assert made.output("python3", "/service.py", "check", host, 8 << 20, 8900) == "fine\n"
    finally:
        server.kill()
        server.communicate()
    made.delete()
    assert (inner.links(), inner.ingress()) == before


@pytest.mark.timeout(120)
def test_a_hook_brings_the_network(namespaces, container, scratch):
    peer = namespaces()
    hook = scratch / "network-hook"
    hook.write_text(textwrap.dedent(f"""\
        #!/bin/sh -e
        pid=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
        ip -n {peer.name} link add peer0 type veth peer name eth0 netns $pid
        nsenter --net=/proc/$pid/ns/net sh -ec '
            ip addr add 10.5.0.2/24 dev eth0
            ip addr add fd00:5::2/64 nodad dev eth0
            ip link set eth0 up
            ip route add default via 10.5.0.1'
        """))
    hook.chmod(0o755)

    def change(config):
        config["hooks"] = {"createRuntime": [{"path": str(hook), "env": [f"PATH={os.environ['PATH']}"]}]}
    made = container("sleep", "1000", change=change)
    peer.ip("link", "set", "peer0", "up")
    fill_peer(peer)
    reaches(made, peer)
    assert json.loads(made.output("ip", "-j", "route", "show", "default"))[0]["gateway"] == "10.5.0.1"


@pytest.mark.timeout(120)
def test_the_network_comes_between_create_and_start(namespaces, container, runtime):
    """As docker 26 does it: through /proc/<pid>/ns/net; and sysctls of the configuration hold for it."""
    peer = namespaces()

    def change(config):
        config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.conf.default.rp_filter": "2"}
    made = container("sleep", "1000", change=change, verb=("create",))
    connect(peer, "peer0", made.pid, "eth0")
    fill(lambda *args: command("nsenter", f"--net=/proc/{made.pid}/ns/net", "ip", *args))
    fill_peer(peer)
    runtime.ok("start", made.name)
    reaches(made, peer)
    files = ("ipv4/ip_unprivileged_port_start", "ipv4/conf/default/rp_filter")
    assert made.output("cat", *(f"/proc/sys/net/{name}" for name in files)).split() == ["80", "2"]


@only_chiton
@pytest.mark.timeout(180)
def test_nothing_is_left_and_what_is_left_does_no_harm(namespaces, container, runtime):
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "eth0")
    fill(inner.ip)
    fill_peer(peer)
    before = inner.links()
    first = container("sleep", "1000", change=joins(inner.path))
    assert len(inner.ingress()) == 2 and len(inner.links()) == len(before) + 1
    reaches(first, peer)

    # One namespace, one machine: the second is refused and leaves the first alone.
    second = container("sleep", "1000", change=joins(inner.path), verb=("create",))
    done = runtime("start", second.name)
    assert done.returncode == 1
    assert "network interface eth0: it is joined to a machine already" in done.stderr
    second.delete()
    reaches(first, peer)

    os.kill(first.pid, 9)
    first.ends()
    assert inner.links() == before
    third = container("sleep", "1000", change=joins(inner.path))
    first.delete()
    reaches(third, peer)
    third.delete()
    assert (inner.links(), inner.ingress()) == (before, [])

    fourth = container("sleep", "1000", change=joins(inner.path))
    os.kill(fourth.pid, 9)
    fourth.ends()
    fourth.delete()
    assert (inner.links(), inner.ingress()) == (before, [])


@pytest.fixture
def interfaces():
    """Makes interfaces in this namespace: a veth to a peer, or a dummy without one. They are gone at the end."""
    made = []

    def interface(peer=None):
        name = f"chi-test{next(_numbers)}"
        made.append(name)
        if peer:
            connect(peer, "peer0", os.getpid(), name)
        else:
            command("ip", "link", "add", name, "type", "dummy")
        return name

    yield interface
    for name in made:
        subprocess.run(["ip", "link", "delete", name], stderr=subprocess.DEVNULL, check=False)


@only_chiton
@pytest.mark.timeout(180)
def test_net_devices_of_the_configuration(namespaces, interfaces, container, runtime, bundle):
    """They move with their addresses, also without any, and back when there is no container in the end."""
    peer = namespaces()
    veth, bare = interfaces(peer), interfaces()
    fill(lambda *args: command("ip", *args), name=veth)
    fill_peer(peer)

    def change(config):
        config["linux"]["netDevices"] = {veth: {"name": "net1"}, bare: {}}

    def ours():
        """The two as they are in this namespace."""
        return [(link["ifname"], "UP" in link["flags"], {(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["scope"] == "global"})
                for link in json.loads(command("ip", "-j", "address")) if link["ifname"] in (veth, bare)]

    before = ours()
    assert before == [(veth, True, {("10.5.0.2", 24), ("fd00:5::2", 64)}), (bare, False, set())]
    failing = bundle("/nosuch")
    for devices, text in (({}, "/nosuch"), ({"lo": {"name": "lo2"}}, "is not an Ethernet interface"), ({"chi-nosuch": {}}, "no interface has this name"),
                          ({bare: {"name": "lo"}}, "already has an interface of this name")):
        change(failing.config)
        failing.config["linux"]["netDevices"] |= devices
        failing.save()
        done = runtime("create", "--bundle", failing.path, "failing")
        assert done.returncode == 1 and text in done.stderr, (text, done.stderr)
        assert sorted(ours()) == sorted(before), text

    made = container("sleep", "1000", change=change)
    assert ours() == []
    links = {link["ifname"]: link for link in json.loads(made.output("ip", "-j", "address"))}
    assert links.keys() == {"lo", "net1", bare} and all("UP" in link["flags"] for link in links.values())
    assert {a["local"] for a in links["net1"]["addr_info"] if a["scope"] == "global"} == {"10.5.0.2", "fd00:5::2"}
    reaches(made, peer)


@only_chiton
@pytest.mark.timeout(180)
def test_interfaces_without_addresses_are_skipped(namespaces, container, scratch):
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "idle")
    connect(peer, "peer1", inner.name, "bare")
    inner.ip("link", "set", "bare", "addrgenmode", "none", "up")
    inner.ip("route", "add", "10.77.0.0/16", "dev", "bare")
    log = scratch / "network.log"
    made = container("sleep", "1000", change=joins(inner.path), verb=("--log", log, "--debug", "run", "--detach"))
    assert [link["ifname"] for link in json.loads(made.output("ip", "-j", "link"))] == ["lo"]
    made.output("ping", "-c1", "-w20", "127.0.0.1")
    made.output("ping", "-c1", "-w20", "::1")
    text = log.read_text()
    for word in ("level=debug msg=\"network interface idle is skipped: it has no address",
                 "level=warning msg=\"network interface bare is skipped: it has no address",
                 "level=warning msg=\"route to 10.77.0.0/16 is skipped"):
        assert word in text


@only_chiton
@pytest.mark.timeout(180)
def test_what_cannot_be_carried_over_is_refused_by_name(namespaces, container, runtime, bundle):
    def refused(namespace, change=None):
        made = container("sleep", "1000", change=change or joins(namespace.path), verb=("create",))
        links = namespace.links()
        done = runtime("start", made.name)
        assert done.returncode == 1
        made.delete()
        assert [namespace.links(), [line for line in namespace.ingress() if "clsact" not in line]] == [links, []]
        return done.stderr

    inner, peer = namespaces(), namespaces()
    inner.ip("tuntap", "add", "vpn0", "mode", "tun")
    inner.ip("addr", "add", "10.5.0.2/24", "dev", "vpn0")
    assert "network interface vpn0: it is not an Ethernet interface" in refused(inner)
    inner.ip("link", "delete", "vpn0")

    connect(peer, "peer0", inner.name, "eth0")
    fill(inner.ip)
    inner.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    assert "network interface eth0: it has somebody else's ingress or clsact qdisc" in refused(inner)
    inner.run("tc", "qdisc", "del", "dev", "eth0", "clsact")

    for number in range(8):
        connect(peer, f"more{number}", inner.name, f"more{number}")
        inner.ip("addr", "add", f"10.6.{number}.2/24", "dev", f"more{number}")
    error = refused(inner)
    assert "has 9 network interfaces (eth0, more" in error and "the machine takes at most 8" in error

    # This host's own namespace is nobody else's.
    made = bundle("true")
    joins("/proc/self/ns/net")(made.config)
    done = runtime("create", "--bundle", made.save().path, "own")
    assert done.returncode == 1 and "it is this host's own network namespace, which a container cannot have" in done.stderr


# `hear GROUP`: says when it has joined, and answers one datagram to its sender. `say GROUP BYTES`: sends one and expects it back.
MULTICAST = textwrap.dedent("""
    import os, socket, struct, sys
    group, index = sys.argv[2], socket.if_nametoindex(sys.argv[3])
    if ":" in group:
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        join = socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, group) + struct.pack("=i", index)
    else:
        request = socket.inet_aton(group) + bytes(4) + struct.pack("=i", index)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        join = socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request
    udp.settimeout(60)
    if sys.argv[1] == "hear":
        udp.bind(("", 5353))
        udp.setsockopt(*join)
        print("joined", flush=True)
        data, sender = udp.recvfrom(1 << 16)
        udp.sendto(data, sender)
    else:
        sent = os.urandom(int(sys.argv[4]))
        udp.sendto(sent, (group, 5353))
        assert udp.recv(1 << 16) == sent
        print("heard")
""")


@pytest.mark.timeout(240)
def test_multicast_dns(namespaces, container, rootfs, scratch):
    """Queries to the groups of RFC 6762 of all sizes that it allows, in both directions."""
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "eth0", mtu=9100)
    fill(inner.ip)
    fill_peer(peer)
    wait_for(lambda: "tentative" not in inner.ip("addr") + peer.ip("addr"))
    for directory in (rootfs, scratch):
        (directory / "multicast.py").write_text(MULTICAST)
    made = container("sleep", "1000", change=joins(inner.path))
    inside = made.runtime.command("exec", made.name, "python3", "/multicast.py")
    outside = ["ip", "netns", "exec", peer.name, "python3", str(scratch / "multicast.py")]
    for group, most in (("224.0.0.251", 9000 - 28), ("ff02::fb", 9000 - 48)):
        for size in (40, most):
            for hears, its, says, name in ((inside, "eth0", outside, "peer0"), (outside, "peer0", inside, "eth0")):
                with subprocess.Popen([*hears, "hear", group, its], stdout=subprocess.PIPE, text=True) as hearer:
                    assert hearer.stdout.readline() == "joined\n"
                    said = subprocess.run([*says, "say", group, name, str(size)], capture_output=True, text=True, timeout=100, check=False)
                    assert said.stdout == "heard\n", (group, size, name, said.stderr)
                assert hearer.returncode == 0


@pytest.mark.timeout(180)
def test_who_is_not_root_pings_and_serves_where_the_configuration_allows(namespaces, container):
    """Echo requests without CAP_NET_RAW, and ports below 1024 without CAP_NET_BIND_SERVICE."""
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "eth0")
    fill(inner.ip)
    fill_peer(peer)

    def user(config):
        joins(inner.path)(config)
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["process"]["capabilities"] = {}

    def allowed(config):
        user(config)
        config["linux"]["sysctl"] = {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}

    echo = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    serve = "import socket; print(socket.create_server(('', 80)).getsockname()[1])"
    first = container("sleep", "1000", change=user)
    for program in (echo, serve):
        done = first.exec("python3", "-c", program)
        assert done.returncode == 1 and "PermissionError" in done.stderr, (program, done.stderr)
    assert first.output("python3", "-c", serve.replace("80", "8080")) == "8080\n"
    first.delete()
    second = container("sleep", "1000", change=allowed)
    second.output("ping", "-c1", "-w20", "10.5.0.1")
    second.output("ping", "-c1", "-w20", "fd00:5::1")
    assert second.output("python3", "-c", serve) == "80\n"


@pytest.mark.timeout(180)
def test_tcp_is_not_cut_into_packets(namespaces, container, rootfs, scratch):
    """Segments of up to 64 KiB cross the interface in both directions, as between two namespaces of one kernel."""
    inner, peer = namespaces(), namespaces()
    connect(peer, "peer0", inner.name, "eth0")
    fill(inner.ip)
    fill_peer(peer)
    (rootfs / "service.py").write_text(SERVICE)
    (scratch / "service.py").write_text(SERVICE)
    made = container("python3", "/service.py", "serve", change=joins(inner.path))
    wait_for(lambda: "ready" in (made.bundle.path / "output").read_text())

    def packets():
        counted = json.loads(peer.ip("-j", "-s", "link", "show", "peer0"))[0]["stats64"]
        return counted["tx"]["packets"], counted["rx"]["packets"]
    for host in ("10.5.0.2", "fd00:5::2"):
        before = packets()
        assert peer.run("python3", scratch / "service.py", "check", host, 16 << 20, 1400) == "fine\n"
        each = [(16 << 20) / (now - then) for now, then in zip(packets(), before)]
        # Acknowledgements of the other direction are among them.
        assert min(each) > 4 * 1500, (host, each)


@pytest.mark.timeout(120)
def test_without_a_network_namespace_there_is_loopback_alone(run):
    def change(config):
        without(config, "network")
    done = run("sh", "-c", "ls /sys/class/net; ping -c1 -w20 127.0.0.1 >&2", change=change)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lo"]
