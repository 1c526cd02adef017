"""A container runs in its own machine: what it sees is the guest's, and its own."""

import json
import os
import pathlib

from chiton import wait_for, without


def test_kernel_is_not_the_hosts(run):
    done = run("uname", "-rv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and done.stdout.strip() != f"{os.uname().release} {os.uname().version}"


def test_program_is_pid_1_with_its_own_mounts(run):
    done = run("sh", "-c", "echo $$; cat /proc/self/mountinfo; ls /proc | grep -c '^[0-9]'")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "1"
    mounts = {line.split()[4]: line.split(" - ")[1].split()[0] for line in lines[1:-1]}
    assert mounts["/"] == "fuse" or mounts["/"] == "virtiofs"
    assert {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/dev/pts": "devpts",
            "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue"}.items() <= mounts.items()
    assert int(lines[-1]) <= 3


def test_memory_is_the_guests(run):
    def limit(config):
        config["linux"]["resources"]["memory"] = {"limit": 128 << 20}
    done = run("sh", "-c", "grep MemTotal /proc/meminfo; cat /sys/fs/cgroup/memory.max", change=limit)
    assert done.returncode == 0, done.stderr
    total, cgroup = done.stdout.splitlines()
    hosts = next(line for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    assert 0.9 < int(total.split()[1]) / int(hosts.split()[1]) <= 1
    assert int(cgroup) == 128 << 20


def test_cpus_follow_the_quota(run):
    def two(config):
        config["linux"]["resources"]["cpu"] = {"quota": 200000, "period": 100000}
    done = run("sh", "-c", "nproc; cat /sys/fs/cgroup/cpu.max", change=two)
    assert done.stdout.split() == ["2", "200000", "100000"], done.stderr
    assert run("nproc").stdout == "1\n"


def test_programs_have_the_vectors_that_the_processor_names(run):
    """All vCPUs: who finds AVX by CPUID uses it, and dies where the kernel has not enabled it."""
    def two(config):
        config["linux"]["resources"]["cpu"] = {"quota": 200000, "period": 100000}

    def flags(text):
        return [set(line.split()) & {"xsave", "avx", "avx2", "fma", "avx512f"} for line in text.splitlines() if line.startswith("flags")]
    done = run("cat", "/proc/cpuinfo", change=two)
    assert flags(done.stdout) == flags(pathlib.Path("/proc/cpuinfo").read_text())[:1] * 2, done.stderr


def test_two_vcpus_work_at_once(script):
    def two(config):
        config["linux"]["resources"]["cpu"] = {"quota": 200000, "period": 100000}
    out = script("""
import os, multiprocessing
def cpu(number):
    os.sched_setaffinity(0, {number})
    return sum(range(100000)) and os.sched_getaffinity(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(cpu, [0, 1]))
""", change=two)
    assert out == "[{0}, {1}]\n"


def test_process_properties_are_the_kernels(run):
    def change(config):
        process = config["process"]
        process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [7, 9], "umask": 0o27}
        process["cwd"] = "/new/cwd"
        process["env"].append("GREETING=hello world")
        process["oomScoreAdj"] = 321
        process["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 333, "soft": 222}]
        process["capabilities"] = {kind: ["CAP_KILL", "CAP_CHOWN"] for kind in
                                   ("bounding", "effective", "permitted", "inheritable", "ambient")}
        config["root"]["readonly"] = True
    command = ("cat /proc/self/status; pwd; echo $GREETING; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn;"
               "hostname; touch /x 2>&1; exit 0")
    for prepared in ("/new/cwd",):
        def with_cwd(config):
            change(config)
            pathlib.Path(config["root"]["path"] + prepared).mkdir(parents=True)
        done = run("sh", "-c", command, change=with_cwd)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    rest = [line for line in done.stdout.splitlines() if ":\t" not in line]
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1001"] * 4
    assert status["Groups"].split() == ["7", "9"]
    assert status["Umask"].strip() == "0027"
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {1 << 5 | 1}
    assert status["NoNewPrivs"].strip() == "1"
    assert rest[:6] == ["/new/cwd", "hello world", "321", "222", "333", "chiton"]
    assert "Read-only file system" in rest[6]


def test_namespaces_are_new_or_the_guests(run):
    def only_mount(config):
        without(config, "pid", "network", "ipc", "uts", "cgroup")
        del config["hostname"]
    ns = "for n in pid net ipc uts cgroup mnt; do readlink /proc/self/ns/$n; done; readlink /proc/1/exe"
    own = run("sh", "-c", ns).stdout.split()
    shared = run("sh", "-c", ns, change=only_mount).stdout.split()
    # The initial namespaces have fixed inode numbers (include/linux/proc_ns.h).
    initial = ["pid:[4026531836]", "net:", "ipc:[4026531839]", "uts:[4026531838]", "cgroup:[4026531835]"]
    for got, want in zip(shared, initial):
        assert got.startswith(want)
    for got, unwanted in zip(own[0:1] + own[2:5], initial[0:1] + initial[2:5]):
        assert got != unwanted


def test_devices_are_usable_and_others_refused(script):
    out = script("""
import os, stat
assert open("/dev/zero", "rb").read(4) == bytes(4)
assert len(open("/dev/urandom", "rb").read(16)) == 16
open("/dev/null", "w").write("x")
try:
    os.write(os.open("/dev/full", os.O_WRONLY), b"x")
except OSError as e:
    print(e.strerror)
for name in ("fd", "stdin", "stdout", "stderr", "ptmx"):
    assert os.path.islink(f"/dev/{name}"), name
os.mknod("/dev/shm/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))
try:
    open("/dev/shm/mem", "rb")
except OSError as e:
    print(e.strerror)
""", change=lambda config: [m["options"].remove("nodev") for m in config["mounts"] if m["destination"] == "/dev/shm"])
    assert out == "No space left on device\nOperation not permitted\n"


def test_masked_and_readonly_paths(run):
    done = run("sh", "-c", "wc -c </proc/keys; echo 1 >/proc/sys/vm/swappiness; ls /sys/firmware | wc -l")
    assert done.stdout.split() == ["0", "0"]
    assert "Read-only file system" in done.stderr


def test_bind_mounts(run, scratch):
    volume = scratch / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "inside").write_text("from the host\n")
    (scratch / "single").write_text("one file\n")

    def change(config):
        config["mounts"] += [
            {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]},
            {"destination": "/ro", "type": "bind", "source": str(volume), "options": ["bind", "ro"]},
            {"destination": "/etc/single", "type": "bind", "source": str(scratch / "single"), "options": ["bind", "ro"]},
        ]
    done = run("sh", "-c", "cat /data/inside /etc/single; echo back >/data/outside; echo no >/ro/x; echo no >/etc/single; true",
               change=change)
    assert done.stdout == "from the host\none file\n"
    assert (volume / "outside").read_text() == "back\n"
    assert done.stderr.count("Read-only file system") == 2
    assert not (volume / "x").exists()


def test_timeline_covers_every_phase(chiton, bundle, scratch):
    made = bundle("true").save()
    timeline = scratch / "timeline.json"
    chiton.ok("--timeline", timeline, "run", "--bundle", made.path, "timeline")
    phases = json.loads(timeline.read_text())
    assert [p["phase"] for p in phases] == [
        "host set-up", "VMM until the first KVM_RUN", "guest kernel", "agent", "container set-up",
        "waiting for start", "program's first instruction"]
    assert all(p["microseconds"] >= 0 for p in phases)
    assert sum(p["microseconds"] for p in phases) > 1000


def test_the_machine_is_in_its_jail(chiton, bundle):
    made = bundle("sleep", "1000").save()
    chiton.ok("run", "--detach", "--bundle", made.path, "jail", stdout=None, stderr=None)
    pid = chiton.state("jail")["pid"]
    proc = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["NoNewPrivs"].strip() == "1"
    # CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, SETGID 6, SETUID 7, MKNOD 27, SETFCAP 31 (linux/capability.h)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == sum(1 << n for n in (0, 1, 3, 4, 6, 7, 27, 31))
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16)
    for kind in ("user", "mnt", "net"):
        assert os.readlink(proc / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}")
    tree = sorted(entry.name for entry in (proc / "root").iterdir())
    assert tree == ["mapped", "mnt", "rootfs"]
    targets = {line.split()[4] for line in (proc / "mountinfo").read_text().splitlines()}
    assert targets == {"/", "/rootfs"}
    assert "Max core file size        0" in (proc / "limits").read_text()
    # What is not dumpable belongs to root in /proc whoever it runs as, and its memory can't be opened without privilege.
    chiton.ok("kill", "jail", "KILL")
    wait_for(lambda: chiton.state("jail")["status"] == "stopped")
    chiton.ok("delete", "jail")
