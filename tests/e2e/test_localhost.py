"""Whoever enters the network namespace of a container on the host, as `kubectl port-forward` does, finds its programs at localhost."""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import socket
import struct
import threading
import time

import pytest

from chiton import only_chiton, wait_for
from network import Namespace, command
from test_network import joins

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
RESET = struct.pack("ii", 1, 0)

# Ports 81 (IPv4) and 82 (IPv6): a checksum and an echo of all that comes, at its end. 83: as many bytes as the first eight say, which
# nobody may want to read. 84: a reset after the first byte. 85: what the end of what comes was goes to a file. 86: a byte, and no more.
SERVICE = """
import hashlib, socket, struct, threading
def whole(c):
    data = b"".join(iter(lambda: c.recv(1 << 16), b""))
    c.sendall(hashlib.sha256(data).digest() + data)
def flood(c):
    left = int.from_bytes(c.recv(8), "big")
    while left:
        left -= c.send(bytes(min(left, 1 << 16)))
def reset(c):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
def ends(c):
    c.sendall(b"x")
    try:
        while c.recv(1 << 16): pass
        text = "end"
    except ConnectionResetError:
        text = "reset"
    with open("/tmp/ends", "a") as f: print(text, file=f)
def holds(c):
    c.sendall(b"x")
    c.recv(1)
def serve(port, family, work):
    def one(c):
        with c: work(c)
    server = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", port), family=family, backlog=128)
    def loop():
        while True: threading.Thread(target=one, args=[server.accept()[0]], daemon=True).start()
    threading.Thread(target=loop).start()
serve(81, socket.AF_INET, whole); serve(82, socket.AF_INET6, whole); serve(83, socket.AF_INET, flood); serve(84, socket.AF_INET, reset)
serve(85, socket.AF_INET, ends); serve(86, socket.AF_INET, holds)
print("ready", flush=True)
"""


def there(path, work):
    """Does some work in a network namespace, in a thread of its own. Sockets stay in the namespace they were made in."""
    results = []

    def run():
        with open(path, "rb") as namespace:
            assert LIBC.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            results.append(work())
        except OSError as e:
            results.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    return results[0]


def dial(namespace, port, host="127.0.0.1"):
    return there(namespace.path, lambda: socket.create_connection((host, port), timeout=60))


def received(connection):
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def listening(namespace):
    return namespace.run("ss", "--no-header", "--listening", "--tcp", "--numeric")


def programs():
    """BPF programs and links of the whole host, by who holds them."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [f"{process.name} {os.readlink(fd)}" for fd in (process / "fd").iterdir() if "bpf" in os.readlink(fd)]
    return found


@pytest.fixture
def inside():
    namespace = Namespace()
    yield namespace
    namespace.delete()


@pytest.fixture
def service(inside, container, rootfs):
    (rootfs / "service.py").write_text(SERVICE)
    made = container("python3", "/service.py", change=joins(inside.path))
    wait_for(lambda: "ready" in (made.bundle.path / "output").read_text())
    return made


def test_both_ways_with_half_closes(inside, service):
    data = os.urandom(1 << 20) * 6
    expected = hashlib.sha256(data).digest() + data
    for host, port in (("127.0.0.1", 81), ("::1", 82)):
        with dial(inside, port, host) as connection:
            sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))  # noqa: B023
            sender.start()
            assert received(connection) == expected
            sender.join()
    if service.runtime.name == "chiton":
        # Who means localhost finds it at the other address, too: for its clients there is somebody at both.
        for host, port in (("::1", 81), ("127.0.0.1", 82)):
            with dial(inside, port, host) as connection:
                connection.shutdown(socket.SHUT_WR)
                assert received(connection) == hashlib.sha256().digest()


def test_nobody_listens(inside, service):
    begun = time.monotonic()
    for host in ("127.0.0.1", "::1"):
        try:
            with dial(inside, 99, host) as connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
            assert service.runtime.name == "chiton"
        except ConnectionRefusedError:
            assert service.runtime.name == "runc"
    assert time.monotonic() - begun < 20
    # What is for others: the addresses of name servers, and what is not TCP.
    with pytest.raises(ConnectionRefusedError):
        dial(inside, 81, "127.0.0.11")

    def datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("127.0.0.1", 81))
            udp.send(b"x")
            udp.settimeout(10)
            udp.recv(1)

    with pytest.raises(ConnectionRefusedError):
        there(inside.path, datagram)
    with there(inside.path, lambda: socket.create_server(("127.0.0.11", 5353))) as server, dial(inside, 5353, "127.0.0.11") as client:
        server.accept()[0].close()
        assert received(client) == b""


def test_resets(inside, service):
    """Of the program, and of the client: neither is taken for an end in order."""
    with dial(inside, 84) as connection, pytest.raises(ConnectionResetError):
        connection.sendall(b"x")
        connection.recv(1)
    for how in ("reset", "end"):
        with dial(inside, 85) as connection:
            assert connection.recv(1) == b"x"
            connection.sendall(b"y")
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wait_for(lambda: service.output("sh", "-c", "cat /tmp/ends || true").split() == ["reset", "end"])


def test_a_client_that_does_not_read(inside, service):
    """It holds up the program that writes to it and nobody else, and costs the machine no more than buffers."""
    def memory():
        lines = pathlib.Path(f"/proc/{service.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    length = 96 << 20
    with dial(inside, 83) as slow:
        before = memory()
        slow.sendall(length.to_bytes(8, "big"))
        time.sleep(3)
        with dial(inside, 81) as other:
            other.shutdown(socket.SHUT_WR)
            assert received(other) == hashlib.sha256().digest()
        # The guest's memory is of the machine's, and its buffers are a few MiB.
        assert memory() - before < 32 << 10
        count = 0
        while piece := slow.recv(1 << 20):
            count += len(piece)
        assert count == length


@pytest.mark.timeout(200)
def test_many(inside, service):
    """More than are passed on at a time wait for their turn."""
    errors = []

    def one(number):
        try:
            data = bytes([number % 256]) * (number * 100)
            with dial(inside, 81) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                assert received(connection)[32:] == data
        except Exception as e:  # noqa: BLE001
            errors.append(repr(e))

    held = [dial(inside, 86) for _ in range(60)]
    for connection in held:
        assert connection.recv(1) == b"x"
    threads = [threading.Thread(target=one, args=[number]) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    more = [dial(inside, 86) for _ in range(10)]
    if service.runtime.name == "chiton":
        more[-1].settimeout(1)
        with pytest.raises(TimeoutError):
            more[-1].recv(1)
        more[-1].settimeout(60)
    for connection in held:
        connection.close()
    for connection in more:
        assert connection.recv(1) == b"x"
        connection.close()


@only_chiton
def test_the_end_and_what_is_left(inside, service):
    machine = [f"{service.pid} anon_inode:bpf_link"]
    assert programs() == machine
    assert len(listening(inside).splitlines()) == 1
    with dial(inside, 83) as connection:
        connection.sendall((1 << 30).to_bytes(8, "big"))
        assert connection.recv(1) == b"\0"
        # Whoever waits, and whoever comes.
        with dial(inside, 86) as held:
            assert held.recv(1) == b"x"
            service.verb("kill", "KILL")
            with contextlib.suppress(ConnectionResetError):
                assert held.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            received(connection)
    service.ends()
    with pytest.raises(ConnectionRefusedError):
        dial(inside, 81)
    assert programs() == [] and listening(inside) == ""
    service.delete()


@only_chiton
def test_before_the_start_and_while_it_is_paused(inside, container, rootfs):
    (rootfs / "service.py").write_text(SERVICE)
    made = container("python3", "/service.py", change=joins(inside.path), verb=("create",))
    with dial(inside, 81) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    made.verb("start")
    wait_for(lambda: "ready" in (made.bundle.path / "output").read_text())
    made.verb("pause")
    # Its kernel accepts for a program that stands still, as the host's does.
    with dial(inside, 81) as connection:
        connection.sendall(b"data")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        made.verb("resume")
        connection.settimeout(60)
        assert received(connection)[32:] == b"data"
    assert made.runtime.ok("audit", made.name)


@only_chiton
def test_a_namespace_of_its_own_costs_nothing(container):
    """Nobody is to be there but who made it."""
    made = container("sleep", "1000")
    assert programs() == []
    assert command("nsenter", f"--net=/proc/{made.pid}/ns/net", "ss", "--no-header", "--listening", "--tcp") == ""
