"""Large files of a read-only root are mapped into the guest, so that the host's page cache is the only one that has their data."""

import errno
import os
import zlib

import pytest

from chiton import only_chiton, wait_for

MIB = 1 << 20
SIZE = 200

HUGE = 700

GUEST = """
import mmap, os, socket, time, zlib

def cached():  # MiB in the guest's page cache
    return int(next(l for l in open("/proc/meminfo") if l.startswith("Cached:")).split()[1]) // 1024

def host(name):  # lets the host do something
    open("/volume/" + name, "w").close()
    while os.path.exists("/volume/" + name):
        time.sleep(0.1)

before = cached()
with open("/big", "rb") as f:
    read = 0
    while piece := f.read(1 << 20):
        read = zlib.crc32(piece, read)
    whole = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
print("read", read)
print("mapped", zlib.crc32(whole))
print("grown", cached() - before)

# More than can be mapped at a time, and back again.
with open("/huge", "rb") as f:
    huge = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
there = [huge[n << 20:(n << 20) + 8] == n.to_bytes(8, "little") for n in [*range(HUGE), *range(HUGE)]]
print("huge", all(there), len(there))

private = mmap.mmap(os.open("/big", os.O_RDONLY), 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
private[8:16] = b"written!"
print("private", private[:8] == whole[:8], private[8:16], private[16:] == whole[16:8192], whole[8:16] == private[8:16])
if not (child := os.fork()):
    os.chdir("/tmp")
    os.abort()
os.waitpid(child, 0)
core = next(name for name in os.listdir("/tmp") if name.startswith("core"))
with open("/tmp/" + core, "rb") as f:
    print("core", f.read().find(b"written!" + whole[16:80]) >= 0)
os.unlink("/tmp/" + core)

# Mapped pages go out by a socket, into a file, and out by sendfile, as others do.
ours, theirs = socket.socketpair()
ours.sendall(whole[:4096])
print("socket", zlib.crc32(theirs.recv(4096, socket.MSG_WAITALL)))
with open("/tmp/copy", "w+b") as f:
    f.write(memoryview(whole)[4096:2 << 20])
    f.seek(0)
    print("file", zlib.crc32(f.read()))
out, into = socket.create_server(("127.0.0.1", 0)), None
into = socket.create_connection(out.getsockname())
here, _ = out.accept()
with open("/big", "rb") as f:
    os.sendfile(into.fileno(), f.fileno(), 8192, 4096)
print("sendfile", zlib.crc32(here.recv(4096, socket.MSG_WAITALL)))
# Straight from the mapped pages into a file of a volume.
fd = os.open("/volume/direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
os.writev(fd, [memoryview(whole)[12288:16384]])
print("direct", zlib.crc32(os.pread(os.open("/volume/direct", os.O_RDONLY), 4096, 0)))
try:
    os.open("/big", os.O_WRONLY)
except OSError as error:
    print("write", error.errno)
host("change")
time.sleep(1.1)
os.stat("/big")
with open("/big", "rb") as f:
    print("new", f.read(8), whole[:8])
host("cut")
print("lost", whole[(150 << 20):(150 << 20) + 8])
print("kept", whole[8:16])
time.sleep(1.1)
print("size", os.stat("/big").st_size)
"""


# What is read, and what it costs of the guest's page cache.
LOOK = """
import zlib
def cached():
    return int(next(l for l in open("/proc/meminfo") if l.startswith("Cached:")).split()[1]) // 1024
before = cached()
with open("/big", "rb") as f:
    print(zlib.crc32(f.read()), cached() - before)
"""


@only_chiton
@pytest.mark.parametrize("dax", ["on", "off"])
def test_no_file_is_mapped_where_that_is_off(container, rootfs, debian, dax):
    data = os.urandom(40 * MIB)
    (debian / "big").write_bytes(data)
    (rootfs / "script.py").write_text(LOOK)

    def change(config):
        config["root"]["readonly"] = True
        config["annotations"] = {"dev.chiton.dax": dax}

    made = container("python3", "/script.py", change=change)
    made.ends(100)
    (debian / "big").unlink()
    output = (made.bundle.path / "output").read_text()
    read, grown = map(int, output.split())
    assert read == zlib.crc32(data)
    assert (grown < 4) == (dax == "on") and (grown >= 40) == (dax == "off"), output


@pytest.mark.timeout(300)
def test_files_are_cached_once(container, rootfs, debian, scratch):
    volume = scratch / "mapped-volume"
    volume.mkdir()
    # In the lower layer: what the host writes to it through the overlay is another file from then on.
    big, block, whole = debian / "big", os.urandom(MIB - 8), 0
    with open(big, "wb") as f:
        for n in range(SIZE):
            piece = n.to_bytes(8, "little") + block
            f.write(piece)
            whole = zlib.crc32(piece, whole)
    with open(debian / "huge", "wb") as f:
        for n in range(HUGE):
            f.seek(n * MIB)
            f.write(n.to_bytes(8, "little"))
        f.truncate(HUGE * MIB)
    (rootfs / "volume").mkdir()
    (rootfs / "script.py").write_text(GUEST.replace("HUGE", str(HUGE)))

    def change(config):
        config["root"]["readonly"] = True
        config["process"]["rlimits"].append({"type": "RLIMIT_CORE", "hard": 1 << 30, "soft": 1 << 30})
        config["mounts"] += [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
                             {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["bind"]}]

    made = container("python3", "-u", "/script.py", change=change)

    def said(name):
        if made.status == "stopped":
            raise AssertionError((made.bundle.path / "output").read_text())
        return (volume / name).exists()

    wait_for(lambda: said("change"), 150)
    with open(rootfs / "big", "r+b") as f:
        f.write(b"changed!")
    (volume / "change").unlink()
    wait_for(lambda: said("cut"), 60)
    os.truncate(rootfs / "big", 100 * MIB)
    (volume / "cut").unlink()
    made.ends(60)
    big.unlink()
    (debian / "huge").unlink()
    (rootfs / "big").unlink()
    told = dict(line.split(" ", 1) for line in (made.bundle.path / "output").read_text().splitlines())
    part = (0).to_bytes(8, "little") + block + (1).to_bytes(8, "little") + block
    assert told["read"] == told["mapped"] == str(whole)
    # The host's cache has the file once; 5 % more are allowed.
    assert int(told["grown"]) <= SIZE * 0.05
    assert told["socket"] == str(zlib.crc32(part[:4096]))
    assert told["file"] == str(zlib.crc32(part[4096:]))
    assert told["sendfile"] == str(zlib.crc32(part[8192:12288]))
    assert told["direct"] == str(zlib.crc32(part[12288:16384]))
    assert told["huge"] == f"True {2 * HUGE}"
    assert told["private"] == "True b'written!' True False"
    assert told["core"] == "True"
    assert told["write"] == str(errno.EROFS)
    assert told["new"] == "b'changed!' b'changed!'"
    assert told["lost"] == str(bytes(8)) and told["kept"] == str(block[:8]) and told["size"] == str(100 * MIB)
