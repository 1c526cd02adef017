"""A container engine in a container that may do everything: the host's engines, on volumes, with networks of their own."""

# The image has the programs as volumes, as it has all others (small_tree).
OPTIONS = ("--privileged", "--volume", "/usr:/usr:ro", "--volume", "/etc/alternatives:/etc/alternatives:ro")

# Processes in a cgroup of their own, and controllers for those of containers: as Docker's image of itself begins (docker:dind).
_BEGIN = """set -e
mkdir /sys/fs/cgroup/init
for pid in $(cat /sys/fs/cgroup/cgroup.procs); do echo $pid >/sys/fs/cgroup/init/cgroup.procs || :; done 2>/dev/null
sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
gateway=$(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p')
mkdir -p /tmp/tree /etc/containers
cp /usr/bin/busybox /tmp/tree
"""

# Says what its root is on, and asks its own gateway, and the one of the container around it: nobody there knows its address, so the
# packets have that one's, by a rule of iptables.
_INSIDE = """/busybox sh -ec '/busybox sed -n "s/^[^ ]* \\/ \\([^ ]*\\) .*/\\1/p" /proc/mounts
for each in $(/busybox ip route | /busybox sed -n "s/default via \\([^ ]*\\) .*/\\1/p") $0; do
    /busybox ping -c1 -W20 $each
done >&2
echo inside
exit 7' $gateway
"""

DOCKER = _BEGIN + """
trap 'code=$?; test $code = 7 || cat /tmp/log >&2; exit $code' EXIT
wait_for() { until test -S $1; do sleep 0.1; kill -0 $!; done; }
printf 'version = 2\\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\\n' >/tmp/config.toml
containerd --config /tmp/config.toml >/tmp/log 2>&1 &
wait_for /run/containerd/containerd.sock
dockerd --containerd /run/containerd/containerd.sock --storage-driver overlay2 >>/tmp/log 2>&1 &
wait_for /run/docker.sock
tar -C /tmp/tree -cf - busybox | docker import - small >&2
docker run --rm small """ + _INSIDE

PODMAN = _BEGIN + """
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
inner="podman --storage-driver overlay --cgroup-manager cgroupfs --events-backend file"
tar -C /tmp/tree -cf - busybox | $inner import - small >&2
$inner run --rm --cap-add net_raw small """ + _INSIDE

# What they print, and exit with.
TOLD = (7, "overlay\ninside\n")
