"""What a configuration says is so: read back from the kernel by a program in the container (probe.py), for its init and for an exec."""

import json
import os
import pathlib

import pytest

from chiton import both, only_chiton, wait_for, without

PROBE = pathlib.Path(__file__).with_name("probe.py")

# Name in the configuration, soft, hard, name in /proc/self/limits (proc(5)); no two alike.
LIMITS = [("CPU", 1000, 2000, "Max cpu time"), ("FSIZE", 1 << 40, 1 << 41, "Max file size"),
          ("DATA", 1 << 36, 1 << 37, "Max data size"), ("STACK", 9 << 20, 11 << 20, "Max stack size"),
          ("CORE", 0, 1, "Max core file size"), ("RSS", 1 << 34, (1 << 64) - 1, "Max resident set"),
          ("NPROC", 3000, 3001, "Max processes"), ("NOFILE", 222, 333, "Max open files"),
          ("MEMLOCK", 12345, 65536, "Max locked memory"), ("AS", 1 << 38, 1 << 39, "Max address space"),
          ("LOCKS", 7, 8, "Max file locks"), ("SIGPENDING", 99, 111, "Max pending signals"),
          ("MSGQUEUE", 1000, 1001, "Max msgqueue size"), ("NICE", 3, 30, "Max nice priority"),
          ("RTPRIO", 4, 44, "Max realtime priority"), ("RTTIME", 500000, 600000, "Max realtime timeout")]


@pytest.fixture
def probed(container, rootfs):
    """Starts a container of the probe; the container, and what its init says."""
    (rootfs / "probe.py").write_text(PROBE.read_text())

    def probed(change, *parameters):
        c = container("python3", "/probe.py", "--stay", *parameters, change=change)

        def lines():
            return [line for line in (c.bundle.path / "output").read_text().splitlines(True) if line.startswith("{")]

        wait_for(lambda: lines() and lines()[0].endswith("\n") or c.status == "stopped", 180)
        assert lines(), (c.bundle.path / "output").read_text()
        return c, json.loads(lines()[0])

    return probed


def again(c, *options):
    """What an exec of the probe says."""
    return json.loads(c.output("python3", "/probe.py", options=options))


def explained(chiton, made, code=0):
    """What `explain` says of a bundle: property -> what becomes of it, with the reason if there is one."""
    done = chiton("explain", "--json", made.path)
    assert done.returncode == code, done.stderr
    said = json.loads(done.stdout)
    return said, {line["property"]: (line["applied"], line.get("reason")) for line in said["properties"]}


def capabilities(names):
    numbers = {"CHOWN": 0, "KILL": 5, "NET_RAW": 13, "SYS_NICE": 23}
    return sum(1 << numbers[name] for name in names)


def test_process(runtime, probed):
    sets = {"bounding": ["KILL", "CHOWN", "NET_RAW", "SYS_NICE"], "permitted": ["KILL", "CHOWN"], "effective": ["KILL"],
            "inheritable": ["KILL", "CHOWN"], "ambient": ["KILL"]}

    def change(config):
        process = config["process"]
        process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [7, 9], "umask": 0o27}
        process["cwd"] = "/new/cwd"
        process["env"] += ["GREETING=hello world", "TWICE=1", "TWICE=2", "EMPTY="]
        process["oomScoreAdj"] = 321
        process["rlimits"] = [{"type": f"RLIMIT_{name}", "soft": soft, "hard": hard} for name, soft, hard, _ in LIMITS]
        process["capabilities"] = {kind: [f"CAP_{name}" for name in names] for kind, names in sets.items()}
        process["capabilities"]["bounding"].append("CAP_WARP_DRIVE")
        process["apparmorProfile"] = ""
        process["selinuxLabel"] = ""
        config["domainname"] = "domain.example"
        # Those that runc 1.1 does not know.
        process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
        process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 3}
        process["execCPUAffinity"] = {"initial": "0", "final": "1"}
        config["linux"]["personality"] = {"domain": "LINUX32"}
        if runtime.name == "chiton":
            config["linux"]["resources"]["cpu"] = {"quota": 200000, "period": 100000}

    c, init = probed(change)
    for said, name in ((init, "init"), (again(c), "exec")):
        status = said["status"]
        assert status["Uid"].split() == ["1000"] * 4 and status["Gid"].split() == ["1001"] * 4, name
        assert status["Groups"].split() == ["7", "9"], name
        assert status["NoNewPrivs"] == "1", name
        # What execve(2) makes of the sets for another user than root (capabilities(7)): the ambient one.
        found = {kind: int(status[f"Cap{kind}"], 16) for kind in ("Bnd", "Inh", "Prm", "Eff", "Amb")}
        ambient = capabilities(sets["ambient"])
        assert found == {"Bnd": capabilities(sets["bounding"]), "Inh": capabilities(sets["inheritable"]),
                         "Prm": ambient, "Eff": ambient, "Amb": ambient}, name
        for _, soft, hard, limit in LIMITS:
            text = ["unlimited" if value == (1 << 64) - 1 else str(value) for value in (soft, hard)]
            # The library of runc 1.1's language raises this one for itself, and forgets to take it back.
            if limit != "Max open files" or runtime.name == "chiton" or name == "init":
                assert said["limits"][limit] == text, (name, limit)
        assert said["oom_score_adj"] == "321", name
        assert said["cwd"] == ["/new/cwd", "755", 0], name
        environment = said["environment"]
        assert (environment["GREETING"], environment["TWICE"], environment["EMPTY"]) == ("hello world", "2", ""), name
        assert said["uname"][1] == "chiton", name
        # An exec of runc 1.1 has its own.
        assert status["Umask"] == "0027" or (runtime.name, name) == ("runc", "exec")
        if runtime.name == "chiton":
            assert said["domain"] == "domain.example", name
            assert said["scheduler"][:3] == [3, 1, 5], name
            assert said["io_priority"] == [2, 3], name
            assert said["personality"] == 8 and said["uname"][4] == "i686", name
            assert said["cpus"] == 2 and said["affinity"] == ([0, 1] if name == "init" else [1]), name
    assert pathlib.Path(f"/proc/{c.pid}/oom_score_adj").read_text() == "321\n"


@only_chiton
def test_more_of_the_scheduler(probed):
    """Real-time and deadline scheduling need privileges that the process itself does not have; so do more files than a kernel allows at first."""
    def change(config):
        config["process"]["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 80000000, "deadline": 90000000, "period": 100000000,
                                          "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]}
        config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_RT", "priority": 7}
        config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1 << 30}]

    c, said = probed(change)
    assert said["scheduler"] == [6, 5, 0, 0, 80000000, 90000000, 100000000]
    assert said["io_priority"] == [1, 7]
    assert said["limits"]["Max open files"] == ["1024", str(1 << 30)]
    process = dict(c.bundle.config["process"], args=["python3", "/probe.py"], scheduler={"policy": "SCHED_RR", "priority": 7})
    (c.bundle.path / "process.json").write_text(json.dumps(process))
    done = c.runtime("exec", "--process", c.bundle.path / "process.json", c.name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scheduler"][:4] == [2, 0, 0, 7]


# The inode numbers of the initial namespaces (linux/proc_ns.h; that of the network is not fixed).
INITIAL = {"ipc": 4026531839, "uts": 4026531838, "user": 4026531837, "pid": 4026531836, "cgroup": 4026531835, "time": 4026531834}


@only_chiton
def test_namespaces_are_new_or_the_guests(probed):
    def change(config):
        config["linux"]["namespaces"] += [{"type": "user"}, {"type": "time"}]
        config["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1000}, {"containerID": 1000, "hostID": 50000, "size": 10}]
        config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 2000}]
        config["linux"]["timeOffsets"] = {"monotonic": {"secs": 864000}, "boottime": {"secs": 1728000, "nanosecs": 5}}
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs/mqueue/msg_max": "20",
                                     "user.max_net_namespaces": "7", "vm.overcommit_memory": "1", "kernel.pid_max": "40000"}

    parameters = ["net/ipv4/ip_forward", "kernel/shm_rmid_forced", "fs/mqueue/msg_max", "user/max_net_namespaces",
                  "vm/overcommit_memory", "kernel/pid_max"]
    c, init = probed(change, *parameters)
    assert init["parameters"] == dict(zip(parameters, [["1"], ["1"], ["20"], ["7"], ["1"], ["40000"]]))
    for said, name in ((init, "init"), (again(c), "exec")):
        for kind, number in INITIAL.items():
            assert said["namespaces"][kind] not in (f"{kind}:[{number}]", ""), (name, kind)
        assert said["uid_map"] == ["0", "0", "1000", "1000", "50000", "10"], name
        assert said["gid_map"] == ["0", "0", "2000"], name
        assert said["time"] == [["monotonic", "864000", "0"], ["boottime", "1728000", "5"]], name
        assert 864000 < said["clocks"][0] < 864000 + 3600 and 1728000 < said["clocks"][1] < 1728000 + 3600, name

    def only_mount(config):
        without(config, "pid", "network", "ipc", "uts", "cgroup")
        config["linux"]["maskedPaths"] = config["linux"]["readonlyPaths"] = []
        del config["hostname"]

    c, init = probed(only_mount)
    for said, name in ((init, "init"), (again(c), "exec")):
        for kind, number in INITIAL.items():
            assert said["namespaces"][kind] == f"{kind}:[{number}]", (name, kind)
        assert said["uid_map"] == ["0", "0", "4294967295"], name
        # The guest's, and not this host's.
        assert said["uname"][1] != pathlib.Path("/proc/sys/kernel/hostname").read_text().strip()


@only_chiton
def test_namespaces_of_a_path(runtime, container, bundle):
    c = container("sleep", "1000")
    made = bundle("true")
    for path, text in (("/proc/self/ns/ipc", "/proc/self/ns/ipc belongs to this host's kernel, and the container's processes run on another"),
                       ("/proc/self/status", "/proc/self/status is not a namespace"),
                       ("/no/such", "open /no/such: no such file")):
        made.config["linux"]["namespaces"] = [{"type": "ipc", "path": path}, {"type": "mount"}, {"type": "uts"}]
        done = runtime("run", "--bundle", made.save().path, "x")
        assert done.returncode == 1 and f"linux.namespaces[0].path: {text}" in done.stderr, done.stderr
    # A container in the machine of another one has mounts of its own.
    made.config["linux"]["namespaces"] = [{"type": "mount", "path": f"/proc/{c.pid}/ns/mnt"}, {"type": "uts"}]
    done = runtime("run", "--bundle", made.save().path, "x")
    assert done.returncode == 1 and f"belongs to container {c.name}, and each" in done.stderr, done.stderr


@only_chiton
def test_explain_says_what_create_does(runtime, bundle, scratch):
    made = bundle("true")
    made.config["linux"]["resources"]["unified"] = {"memory.high": "max", "io.max": "", "cpu.weight": "50"}
    said, lines = explained(runtime, made.save())
    assert set(word for word, _ in lines.values()) <= {"guest", "host", "both", "nothing"}
    assert lines["process.args"] == ("guest", None) and lines["linux.resources.unified[cpu.weight]"] == ("both", None)
    assert lines["linux.resources.unified[memory.high]"] == ("guest", None)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert abs(said["machine"]["memory"] - host) < 2 << 20 and said["machine"]["vcpus"] == 1

    made.config["linux"]["resources"] |= {"rdma": {"mlx5": {"hcaHandles": 1}}, "cpu": {"realtimeRuntime": 5, "cpus": "all"}}
    made.config["process"] |= {"cwd": "relative", "apparmorProfile": "no-such-profile", "rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]}
    made.config["linux"] |= {"sysctl": {"kernel.hostname": "x"}, "intelRdt": {"closID": "../x"}}
    made.config["annotations"] = {"dev.chiton.memory": "lots"}
    made.config["galaxy"] = {"stars": 1}
    made.save()
    said, lines = explained(runtime, made, code=1)
    refused = {name: reason for name, (word, reason) in lines.items() if word == "refused"}
    assert list(refused) == ["annotations", "linux.intelRdt", "linux.resources.cpu.cpus", "linux.resources.cpu.realtimeRuntime", "linux.resources.rdma",
                             "linux.sysctl[kernel.hostname]", "process.apparmorProfile", "process.cwd", "process.rlimits"]
    assert lines["galaxy"][0] == "ignored" and said["machine"] is None
    for args in (("create",), ("run",)):
        done = runtime(*args, "--bundle", made.path, "x")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert len(done.stderr.split("; ")) == sum(len(reason.split("; ")) for reason in refused.values())
        text = done.stderr.replace('\\"', '"')
        for name, reason in refused.items():
            assert name in text and reason.rsplit(": ", 1)[-1] in text, name

    # As text: a line for each property, from a directory, a file, or --bundle.
    for args in ((made.path,), (made.path / "config.json",), ("--bundle", made.path)):
        done = runtime("explain", *args)
        assert done.returncode == 1
        assert [line.split()[0] for line in done.stdout.splitlines()] == list(lines)
        assert "apparmor failed to apply profile" in done.stdout
    (made.path / "config.json").write_text("{")
    done = runtime("explain", made.path)
    assert done.returncode == 1 and "config.json" in done.stderr and "line 1" in done.stderr


@both
def test_a_label_where_there_is_no_selinux(runtime, bundle):
    if os.path.exists("/sys/fs/selinux"):
        pytest.skip("this host has it")
    made = bundle("true")
    made.config["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0:c1,c2"
    done = runtime("run", "--bundle", made.save().path, "labelled")
    assert done.returncode == 1
    assert "selinux label is specified in config, but selinux is disabled or not supported" in done.stderr, done.stderr
