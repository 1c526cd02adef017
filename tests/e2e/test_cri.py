"""containerd's CRI plugin, as the kubelet drives it, with Chiton as a runtime handler: what a RuntimeClass leads to."""

import base64
import json
import os
import socket
import subprocess
import urllib.parse

import grpc
import pytest

from chiton import GRAB, wait_for
from containerd import BINARIES, VERSION, Daemons, image, small_tree
from test_localhost import there

PLUGIN = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "chiton.test/pause:1"
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{base}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "chiton"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.chiton]
    runtime_type = "io.containerd.runc.v2"
    privileged_without_host_devices = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.chiton.options]
      BinaryName = "{binary}"
      Root = "{base}/runc"
"""

PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


def varint(number):
    out = bytearray()
    while number > 0x7f:
        out.append(number & 0x7f | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def encode(message):
    """A message of Protocol Buffers from {number of the field: text, number, message or a list of them}."""
    out = b""
    for field, values in message.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(field << 3) + varint(value)
            else:
                data = encode(value) if isinstance(value, dict) else value.encode()
                out += varint(field << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    """{number of the field: its last value}, texts and messages as bytes."""
    at, message = 0, {}

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7f) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        message[key >> 3] = value
    return message


class Kubelet(Daemons):
    """What of the kubelet matters here. Fields have the numbers of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto."""

    def __init__(self, binary, base):
        super().__init__(binary, base)
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": {
            "type": "host-local", "dataDir": f"{base}/addresses", "ranges": [[{"subnet": "10.97.7.0/24"}]]}}]}
        (base / "cni").mkdir()
        (base / "cni" / "10-pods.conflist").write_text(json.dumps(network))
        (base / "pause").mkdir()
        (base / "pause.c").write_text(PAUSE)
        subprocess.run(["gcc", "-static", "-o", base / "pause" / "pause", base / "pause.c"], check=True)
        self.containerd(disabled="", more=PLUGIN.format(base=base, binary=binary))
        archive = image(base / "pause.tar", "chiton.test/pause:1", base / "pause", {"Entrypoint": ["/pause"]})
        self.ctr_ok("--namespace", "k8s.io", "images", "import", archive)
        self.channel = grpc.insecure_channel(f"unix://{base}/containerd.sock")

    def call(self, method, message):
        call = self.channel.unary_unary(f"/runtime.v1.RuntimeService/{method}", request_serializer=encode, response_deserializer=decode)
        # Not cancelled when it takes too long, so that what it waits for is there to be seen.
        return call.future(message).result(100)

    def close(self):
        self.channel.close()
        super().close()


# Values of NamespaceMode: a pod's own, a container's own, another container's.
POD, CONTAINER, TARGET = 0, 1, 3
EXITED = 2
# The ids of a pod's user namespace: the first on the host and in it, and how many.
IDS = {1: 100000, 2: 0, 3: 65536}


class Pod:
    """A pod, and what the kubelet says of it and its containers."""

    def __init__(self, kubelet, name, pid=CONTAINER, annotations=None, users=False):
        self.kubelet, self.pid, self.numbers = kubelet, pid, 0
        self.users = {5: {1: POD, 2: IDS, 3: IDS}} if users else {}
        self.volume = kubelet.base / f"volume-{name}"
        self.volume.mkdir()
        self.logs = kubelet.base / f"logs-{name}"
        annotations = [{1: key, 2: value} for key, value in (annotations or {}).items()]
        self.config = {1: {1: name, 2: f"uid-{name}", 3: "default"}, 2: f"host-{name}", 3: str(self.logs), 7: annotations,
                       8: {1: "/pods", 2: {1: {1: POD, 2: pid, 3: POD, **self.users}}}}
        self.sandbox = kubelet.call("RunPodSandbox", {1: self.config, 2: kubelet.handler})[1].decode()

    def create(self, *args, readonly=False, memory=0, target=None, privileged=False):
        """Makes a container of a program; its id."""
        self.numbers += 1
        mounts = [{1: "/usr", 2: str(self.kubelet.debian / "usr"), 3: 1}, {1: "/shared", 2: str(self.volume), 3: int(readonly)}]
        namespaces = {1: POD, 2: TARGET if target else self.pid, 3: POD, **({4: target} if target else {}), **self.users}
        linux = {1: {4: memory} if memory else {}, 2: {2: int(privileged), 3: namespaces}}
        config = {1: {1: f"c{self.numbers}"}, 2: {1: "chiton.test/debian:1"}, 3: list(args), 7: mounts, 11: f"{self.numbers}.log", 15: linux}
        return self.kubelet.call("CreateContainer", {1: self.sandbox, 2: config, 3: self.config})[1].decode()

    def run(self, *args, **kwargs):
        """The same, started."""
        container = self.create(*args, **kwargs)
        self.kubelet.call("StartContainer", {1: container})
        return container

    def python(self, text, **kwargs):
        return self.run("python3", "-c", text, **kwargs)

    def log(self):
        """What the last container has written, without the times and names of streams."""
        lines = (self.logs / f"{self.numbers}.log").read_text().splitlines()
        return "".join(line.split(" ", 3)[3] + "\n" for line in lines)

    def stop(self):
        self.kubelet.call("StopPodSandbox", {1: self.sandbox})
        self.kubelet.call("RemovePodSandbox", {1: self.sandbox})


@pytest.fixture(scope="module", params=os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def kubelet(request, scratch, debian):
    # With runc, users of a user namespace go this way to their root filesystem.
    scratch.chmod(0o711)
    its = Kubelet(BINARIES[request.param], scratch / f"cri-{request.param}")
    its.handler, its.debian, its.name = "chiton", debian, request.param
    tree = its.base / "tree"
    tree.mkdir()
    archive = image(its.base / "debian.tar", "chiton.test/debian:1", small_tree(debian, tree), {"Env": ["PATH=/usr/bin:/usr/sbin:/bin:/sbin"]})
    its.ctr_ok("--namespace", "k8s.io", "images", "import", archive)
    wait_for(lambda: b"NetworkReady" in its.call("Status", {})[1])
    yield its
    its.close()


@pytest.fixture
def pods(kubelet):
    """Makes pods, which are stopped and removed at the end."""
    made = []

    def pods(name, **kwargs):
        made.append(Pod(kubelet, f"{name}-{len(made)}", **kwargs))
        return made[-1]

    yield pods
    for pod in made:
        pod.stop()


def of(status):
    """State, exit code and reason of a container."""
    return status.get(3, 0), status.get(7, 0), status.get(10, b"").decode()


def status(kubelet, container):
    return of(decode(kubelet.call("ContainerStatus", {1: container})[1]))


def executed(kubelet, container, *args):
    """Executes a program in a container to its end; its output."""
    done = kubelet.call("ExecSync", {1: container, 2: list(args), 3: 60})
    assert done.get(3, 0) == 0, done
    return done.get(1, b"").decode()


def ended(kubelet, container):
    """Waits for the end of a container; exit code and reason."""
    wait_for(lambda: status(kubelet, container)[0] == EXITED, 60)
    return status(kubelet, container)[1:]


@pytest.mark.timeout(300)
def test_a_pod(kubelet, pods):
    pod = pods("plain")
    state = decode(kubelet.call("PodSandboxStatus", {1: pod.sandbox})[1])
    assert state.get(3, 0) == 0  # SANDBOX_READY
    assert state[9] == b"chiton"
    # The pod answers at the address that CNI has given.
    address = decode(state[5])[1].decode()
    assert kubelet.run("ping", "-c1", "-w30", address).returncode == 0
    # An init container, and two that run at a time.
    assert ended(kubelet, pod.run("sh", "-c", "echo prepared > /shared/file; hostname; exit 3")) == (3, "Error")
    assert pod.log() == "host-plain-0\n"
    one = pod.run("sleep", "1000")
    spec = json.loads(kubelet.ctr_ok("--namespace", "k8s.io", "containers", "info", "--spec", one))
    assert spec["process"]["apparmorProfile"] == "cri-containerd.apparmor.d"
    two = pod.python("import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()")
    assert executed(kubelet, one, "cat", "/shared/file") == "prepared\n"
    namespaces = [executed(kubelet, each, "readlink", *(f"/proc/self/ns/{kind}" for kind in ("net", "ipc", "uts", "pid", "mnt"))).split()
                  for each in (one, two)]
    assert namespaces[0][:3] == namespaces[1][:3] and not set(namespaces[0][3:]) & set(namespaces[1])
    get = "import time, urllib.request as u\nfor _ in range(100):\n try: print(u.urlopen('http://%s:8080').status); break\n except OSError: time.sleep(.1)"
    assert executed(kubelet, one, "python3", "-c", get % "localhost") == "200\n"
    assert executed(kubelet, one, "python3", "-c", get % address) == "200\n"
    kernel = executed(kubelet, one, "uname", "-r")
    assert (kernel == os.uname().release + "\n") == (kubelet.name == "runc")
    # One that is stopped and started anew, as by restartPolicy.
    kubelet.call("StopContainer", {1: two, 2: 0})
    assert ended(kubelet, two) == (137, "Error")
    kubelet.call("RemoveContainer", {1: two})
    two = pod.run("sh", "-c", "echo again; exec sleep 1000")
    wait_for(lambda: pod.log() == "again\n")
    assert status(kubelet, one)[0] == 1
    for each in (one, two):
        kubelet.call("StopContainer", {1: each, 2: 0})
        kubelet.call("RemoveContainer", {1: each})


class Forwarded:
    """A port of a pod as `kubectl port-forward` gets it, by a websocket (RFC 6455): channel 0 has the data, 1 what went wrong."""

    def __init__(self, kubelet, pod, port):
        url = urllib.parse.urlparse(kubelet.call("PortForward", {1: pod.sandbox, 2: [port]})[1].decode())
        self.socket = there(kubelet.namespace.path, lambda: socket.create_connection((url.hostname, url.port), timeout=60))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n").encode())
        self.file = self.socket.makefile("rb")
        head = list(iter(self.file.readline, b"\r\n"))
        assert b" 101 " in head[0], head
        # Each channel begins with the port.
        assert [self.frame(), self.frame()] == [bytes([channel]) + port.to_bytes(2, "little") for channel in (0, 1)]

    def frame(self):
        """The next one's channel and data; None at the end."""
        head = self.file.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            return None
        length = head[1]
        if length > 125:
            length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
        return self.file.read(length)

    def send(self, data):
        assert len(data) < 125
        self.socket.sendall(bytes([0x82, 0x80 | len(data) + 1, 0, 0, 0, 0, 0]) + data)

    def rest(self):
        """All that comes on both channels."""
        frames = list(iter(self.frame, None))
        self.file.close()
        self.socket.close()
        return [b"".join(frame[1:] for frame in frames if frame[0] == channel) for channel in (0, 1)]


@pytest.mark.timeout(300)
def test_port_forward(kubelet, pods):
    pod = pods("forward")
    one = pod.python("import http.server as h; h.ThreadingHTTPServer(('127.0.0.1', 8080), h.SimpleHTTPRequestHandler).serve_forever()")
    two = pod.python("import socket; s = socket.create_server(('::1', 8081), family=socket.AF_INET6)\nwhile True: c, _ = s.accept(); c.sendall(b'six'); c.close()")
    listens = "import socket, time\nfor _ in range(100):\n try: socket.create_connection(%s); print('there'); break\n except OSError: time.sleep(.1)"
    for each, address in ((one, ('127.0.0.1', 8080)), (two, ('::1', 8081))):
        assert executed(kubelet, each, "python3", "-c", listens % (address,)) == "there\n"
    for _ in range(3):
        web = Forwarded(kubelet, pod, 8080)
        web.send(b"GET /etc/hostname HTTP/1.0\r\n\r\n")
        answer, error = web.rest()
        assert answer.startswith(b"HTTP/1.0 200 OK") and error == b"", (answer, error)
        assert Forwarded(kubelet, pod, 8081).rest() == [b"six", b""]
    answer, error = Forwarded(kubelet, pod, 8099).rest()
    refusal = {"runc": b"connection refused", "chiton": b"connection reset by peer"}[kubelet.name]
    assert answer == b"" and refusal in error, error


@pytest.mark.timeout(300)
def test_one_process_tree(kubelet, pods):
    """shareProcessNamespace, and the target of a debugger."""
    pod = pods("tree", pid=POD)
    one = pod.run("sleep", "1234")
    two = pod.run("sleep", "1235")
    seen = executed(kubelet, two, "ps", "ax")
    assert "/pause" in seen and "sleep 1234" in seen and "sleep 1235" in seen
    kubelet.call("StopContainer", {1: one, 2: 0})
    assert ended(kubelet, one) == (137, "Error")
    assert "sleep 1234" not in executed(kubelet, two, "ps", "ax")
    other = pods("target")
    app = other.run("sleep", "4321")
    debugger = other.run("sleep", "1000", target=app)
    seen = executed(kubelet, debugger, "ps", "ax")
    assert "sleep 4321" in seen and "/pause" not in seen


# Before, it knew no user namespaces of pods.
if VERSION >= (1, 7):
    @pytest.mark.timeout(300)
    def test_users_of_a_pod(kubelet, pods):
        """hostUsers: false. containerd 2 pins the pod's user namespace before there is a container."""
        pod = pods("users", users=True)
        one, two = pod.run("sleep", "1000"), pod.run("sleep", "1000")
        maps = executed(kubelet, one, "cat", "/proc/self/uid_map", "/proc/self/gid_map").split()
        assert maps == ["0", "100000", "65536"] * 2
        for kind in ("user", "net", "ipc", "uts"):
            assert len({executed(kubelet, each, "readlink", f"/proc/self/ns/{kind}") for each in (one, two)}) == 1, kind
        assert executed(kubelet, one, "sh", "-c", "touch /made; stat -c %u /made /etc/passwd; hostname") == "0\n0\nhost-users-0\n"
        address = decode(decode(kubelet.call("PodSandboxStatus", {1: pod.sandbox})[1])[5])[1].decode()
        assert kubelet.run("ping", "-c1", "-w30", address).returncode == 0


@pytest.mark.timeout(300)
def test_memory_runs_out_in_one_container(kubelet, pods):
    pod = pods("memory")
    hog = pod.create("python3", "-c", GRAB, memory=64 << 20)
    other = pod.run("sleep", "1000")
    kubelet.call("StartContainer", {1: hog})
    # containerd hears of the end and of its reason one after the other.
    wait_for(lambda: ended(kubelet, hog) == (137, "OOMKilled"))
    assert status(kubelet, other)[0] == 1
    kubelet.call("StopContainer", {1: other, 2: 0})
    assert ended(kubelet, other) == (137, "Error")


@pytest.mark.timeout(300)
def test_the_sandbox_ends_first(kubelet, pods):
    """A sandbox that is killed takes its containers along, and all of it can be removed in any order."""
    pod = pods("killed")
    one, two = pod.run("sleep", "1000"), pod.run("sleep", "1000")
    kubelet.ctr_ok("--namespace", "k8s.io", "tasks", "kill", "--signal", "KILL", pod.sandbox)
    if kubelet.name == "chiton":
        for each in (one, two):
            assert ended(kubelet, each)[0] == 137
    kubelet.call("RemoveContainer", {1: two})
