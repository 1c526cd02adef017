"""The main job, once, for a person to look at: a real program in a container that is a machine of its own.

    demo.py CHITON ROOTFS.tar
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "e2e"))

from chiton import Bundle, Runtime  # noqa: E402

PROGRAM = r"""
import hashlib, os, platform, threading

digests = {}
def digest(n):
    digests[n] = hashlib.sha256(str(n).encode() * 100000).hexdigest()[:16]
threads = [threading.Thread(target=digest, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]

print("program   python", platform.python_version(), "computed", *(digests[n] for n in sorted(digests)))
print("kernel   ", platform.release(), platform.version())
print("pid 1    ", open("/proc/1/cmdline").read().split("\0")[0], "(this program)" if os.getpid() == 1 else "(another!)")
print("system   ", next(l for l in open("/etc/os-release")).split('"')[1], "on host name", platform.node())
meminfo = dict(line.split(":") for line in open("/proc/meminfo"))
print("memory   ", meminfo["MemTotal"].strip(), "total,", meminfo["MemAvailable"].strip(), "available,", os.cpu_count(), "CPU")
print("mounts")
for line in open("/proc/self/mounts"):
    source, target, kind, options = line.split()[:4]
    print(f"   {target:<24} {kind:<10} {options[:70]}")
"""


def main():
    binary, rootfs = sys.argv[1:]
    base = "/scratch" if os.environ.get("CHITON_LAB") == "lab" else None
    work = pathlib.Path(tempfile.mkdtemp(prefix="chiton-demo-", dir=base))
    try:
        print("unpacking a Debian root filesystem")
        root = work / "rootfs"
        root.mkdir()
        subprocess.run(["tar", "-xpf", rootfs, "-C", root, "--numeric-owner"], check=True)
        (root / "demo.py").write_text(PROGRAM)
        bundle = Bundle(work / "bundle", root, ["python3", "/demo.py"]).save()
        chiton = Runtime(os.path.abspath(binary), work / "state")
        command = chiton.command("--timeline", work / "timeline.json", "run", "--bundle", bundle.path, "demo")
        # Once to have the files in memory, as on any host that has run a container before.
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print("host kernel", os.uname().release, os.uname().version)
        print("$", " ".join(map(str, command)), flush=True)
        code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
        print("exit code", code)
        if code == 0:
            show(json.loads((work / "timeline.json").read_text()))
        return code
    finally:
        shutil.rmtree(work)


def show(phases):
    print("boot timeline")
    for phase in phases:
        print(f"   {phase['phase']:<32} {phase['microseconds'] / 1000:10.3f} ms")
    print(f"   {'in all':<32} {sum(p['microseconds'] for p in phases) / 1000:10.3f} ms")


sys.exit(main())
