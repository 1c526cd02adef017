"""containerd's CRI plugin, as the kubelet drives it, with Chiton as a runtime handler: what a RuntimeClass leads to."""

import json
import subprocess

import grpc
import pytest

from chiton import wait_for
from containerd import BINARIES, Daemons, image

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
        return call(message, timeout=100)

    def close(self):
        self.channel.close()
        super().close()


@pytest.fixture
def kubelet(scratch):
    its = Kubelet(BINARIES["chiton"], scratch / "cri")
    yield its
    its.close()


@pytest.mark.timeout(300)
def test_a_pod(kubelet):
    pod = {1: {1: "pod", 2: "uid-1", 3: "default"}, 2: "pod-name", 3: str(kubelet.base / "logs"), 8: {2: {}}}
    wait_for(lambda: b"NetworkReady" in kubelet.call("Status", {})[1])
    sandbox = kubelet.call("RunPodSandbox", {1: pod, 2: "chiton"})[1].decode()
    status = decode(kubelet.call("PodSandboxStatus", {1: sandbox})[1])
    assert status.get(3, 0) == 0  # SANDBOX_READY
    assert status[9] == b"chiton"
    # The machine answers at the address that CNI has given.
    address = decode(status[5])[1].decode()
    assert kubelet.run("ping", "-c1", "-w30", address).returncode == 0
    # A second container of the pod needs namespaces of the first one's kernel, which is not done yet: it is refused, and by name.
    container = kubelet.call("CreateContainer", {1: sandbox, 2: {1: {1: "app"}, 2: {1: "chiton.test/pause:1"}}, 3: pod})[1].decode()
    spec = json.loads(kubelet.ctr_ok("--namespace", "k8s.io", "containers", "info", "--spec", container))
    assert spec["process"]["apparmorProfile"] == "cri-containerd.apparmor.d"
    with pytest.raises(grpc.RpcError) as refused:
        kubelet.call("StartContainer", {1: container})
    assert "pods are not supported yet" in refused.value.details() and sandbox in refused.value.details()
    kubelet.call("RemoveContainer", {1: container})
    kubelet.call("StopPodSandbox", {1: sandbox})
    kubelet.call("RemovePodSandbox", {1: sandbox})
