"""Users other than root, and user namespaces."""

from chiton import only_chiton


@only_chiton  # Debian's runc gives the user /dev/null, too
def test_standard_streams_are_the_users_but_for_dev_null(runtime, bundle):
    made = bundle("stat", "-Lc", "%n %u %F %t:%T", "/proc/self/fd/0", "/proc/self/fd/1")
    made.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    stdin, stdout = runtime.ok("run", "--bundle", made.save().path, "u").splitlines()
    assert stdin == "/proc/self/fd/0 0 character special file 1:3"
    assert stdout == "/proc/self/fd/1 1000 fifo 0:0"


def test_a_user_namespace_without_a_cgroup_namespace_sees_cgroups(runtime, bundle):
    made = bundle("sh", "-c", "cat /proc/self/uid_map; ls /sys/fs/cgroup/cgroup.controllers; touch /sys/fs/cgroup/x")
    linux = made.config["linux"]
    linux["namespaces"] = [ns for ns in linux["namespaces"] if ns["type"] != "cgroup"] + [{"type": "user"}]
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 4294967295}]
    done = runtime("run", "--bundle", made.save().path, "u")
    assert done.stdout.split() == ["0", "0", "4294967295", "/sys/fs/cgroup/cgroup.controllers"]
    assert "Read-only file system" in done.stderr
