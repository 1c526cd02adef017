"""linux.sysctl, as the container's own /proc/sys shows it."""

import json


def test_sysctls_of_the_container(runtime, bundle):
    made = bundle("sh", "-c", "cd /proc/sys && cat kernel/msgmax net/ipv4/ping_group_range fs/mqueue/queues_max kernel/domainname")
    made.config["linux"]["sysctl"] = {"kernel.msgmax": "4096", "net.ipv4.ping_group_range": "7 9",
                                      "fs.mqueue.queues_max": "77", "kernel.domainname": "example.org"}
    assert runtime.ok("run", "--bundle", made.save().path, "s").split() == ["4096", "7", "9", "77", "example.org"]


def test_what_is_refused(runtime, bundle):
    made = bundle("true")
    for name, value, text in [("kernel.hostname", "x", "kernel.hostname"),
                              ("kernel.nosuch", "1", "kernel.nosuch")]:
        made.config["linux"]["sysctl"] = {name: value}
        done = runtime("run", "--bundle", made.save().path, "s")
        assert done.returncode == 1 and text in json.dumps(done.stderr), done.stderr
