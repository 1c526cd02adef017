"""Buildah, which drives the runtime itself: create, start, state, kill, delete."""

import os
import subprocess

import pytest

from containerd import BINARIES, small_tree

DOCKERFILE = """
FROM scratch
COPY tree /
ENV PATH=/usr/sbin:/usr/bin
RUN echo built by $(id -u) >/made && cat /sys/class/net/eth0/operstate
CMD ["cat", "/made"]
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", os.environ.get("E2E_RUNTIMES", "chiton").split(","))
def test_build_and_run(name, scratch, debian):
    base = scratch / f"buildah-{name}"
    (base / "context" / "tree").mkdir(parents=True)
    small_tree(debian, base / "context" / "tree")
    (base / "context" / "Dockerfile").write_text(DOCKERFILE)

    def buildah(*args, timeout=120, **kwargs):
        command = ["buildah", "--root", base / "storage", "--runroot", base / "run", "--storage-driver", "overlay", *args]
        kwargs = {"stdin": subprocess.DEVNULL} | kwargs
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False, **kwargs)

    runtime = ("--isolation", "oci", "--runtime", BINARIES[name], "--volume", f"{debian}/usr:/usr:ro")
    done = buildah("bud", *runtime, "--tag", "made", base / "context")
    assert done.returncode == 0, done.stderr
    assert "\nup\n" in done.stdout
    made = buildah("from", "made").stdout.strip()
    done = buildah("run", *runtime, "--network", "none", made, "--", "sh", "-c", "cat; cat /made; echo err >&2; exit 7",
                   input="in\n", stdin=None)
    assert (done.returncode, done.stdout) == (7, "in\nbuilt by 0\n"), done.stderr
    assert "err\n" in done.stderr
    done = buildah("run", *runtime, "--network", "none", made, "--", "missing")
    assert done.returncode != 0
    assert "executable file not found in $PATH" in done.stderr
    assert buildah("rm", "--all").returncode == 0
    assert buildah("rmi", "--all").returncode == 0
    subprocess.run(["umount", "--recursive", base / "storage" / "overlay"], check=False, capture_output=True)
    state = "/run/chiton" if name == "chiton" else "/run/runc"
    assert not os.path.exists(state) or os.listdir(state) == []
