"""The root filesystem behaves as a local one for real programs and for the corners that programs rely on."""

import os

import pytest


def test_python_threads(script):
    assert script("""
import threading
total, lock = [0], threading.Lock()
def work():
    for _ in range(1000):
        with lock:
            total[0] += 1
threads = [threading.Thread(target=work) for _ in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
print(total[0])
""") == "16000\n"


def test_apt_get_version(run):
    done = run("apt-get", "--version")
    assert done.returncode == 0 and done.stdout.startswith("apt "), done.stderr


def test_find_sees_every_file(run, debian):
    done = run("find", "/", "-xdev", "-printf", "%P\\n", timeout=120)
    assert done.returncode == 0, done.stderr
    seen = {line for line in done.stdout.splitlines() if line}
    expected = set()
    for directory, names, files in os.walk(debian):
        relative = os.path.relpath(directory, debian)
        if relative in ("proc", "sys", "dev"):
            names.clear()
            continue
        expected |= {os.path.normpath(os.path.join(relative, name)) for name in names + files}
    assert expected <= seen


def test_gcc_builds_a_program(run, rootfs):
    (rootfs / "hello.c").write_text('#include <stdio.h>\nint main(void) { return puts("built") < 0; }\n')
    done = run("sh", "-c", "gcc -O2 -o /hello /hello.c && /hello", timeout=150)
    assert done.stdout == "built\n", done.stderr


@pytest.mark.timeout(400)
def test_tar_of_a_thousand_files(run):
    done = run("sh", "-ec", """
        mkdir /copy
        tar -C / -cf /all.tar usr/lib/python3.11
        tar -C /copy -xpf /all.tar
        tar -tf /all.tar | wc -l
        diff -r --no-dereference /usr/lib/python3.11 /copy/usr/lib/python3.11
        echo same
    """, timeout=380)
    count, verdict = done.stdout.split()
    assert int(count) > 1000 and verdict == "same", done.stderr


@pytest.mark.timeout(400)
def test_a_large_file_keeps_its_checksum(script):
    assert script("""
import os, zlib
block = os.urandom(1 << 20)
written = read = 0
with open("/big", "wb") as f:
    for n in range(300):
        piece = n.to_bytes(8, "little") + block[8:]
        f.write(piece); written = zlib.crc32(piece, written)
    f.flush(); os.fsync(f.fileno())
with open("/big", "rb") as f:
    while piece := f.read(1 << 20):
        read = zlib.crc32(piece, read)
print(os.stat("/big").st_size, written == read)
""", timeout=380) == f"{300 << 20} True\n"


@pytest.mark.timeout(400)
def test_many_small_files(script):
    assert script("""
import os
os.mkdir("/many")
for n in range(1500):
    with open(f"/many/{n}", "w") as f:
        f.write(str(n))
names = os.listdir("/many")
assert len(names) == len(set(names)) == 1500
assert all(open(f"/many/{n}").read() == str(n) for n in range(0, 1500, 97))
seen = 0
for entry in os.scandir("/many"):      # removing while reading loses and repeats nothing
    os.unlink(entry.path); seen += 1
print(seen, os.listdir("/many")); os.rmdir("/many")
""", timeout=380) == "1500 []\n"


def test_link_trees(script):
    assert script("""
import os
os.makedirs("/tree/a/b/c")
open("/tree/file", "w").write("x")
for n in range(200):
    os.link("/tree/file", f"/tree/a/hard{n}")
    os.symlink(f"../hard{n}", f"/tree/a/b/soft{n}")
os.symlink("loop", "/tree/loop")
assert os.stat("/tree/file").st_nlink == 201
assert len({os.stat(f"/tree/a/b/soft{n}").st_ino for n in range(200)}) == 1
try:
    os.stat("/tree/loop")
except OSError as e:
    print(e.strerror)
os.rename("/tree/a/b", "/tree/moved")
assert os.readlink("/tree/moved/soft7") == "../hard7"
assert not os.path.exists("/tree/moved/soft7")
open("/tree/a/hard3", "a").write("y")
for n in range(200):
    os.unlink(f"/tree/a/hard{n}")
print(open("/tree/file").read(), os.stat("/tree/file").st_nlink)
""") == "Too many levels of symbolic links\nxy 1\n"


def test_shared_mappings_are_written_back(script, rootfs):
    assert script("""
import mmap, os
fd = os.open("/mapped", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 3 * 4096)
first, second = mmap.mmap(fd, 0), mmap.mmap(fd, 0)
first[4090:4100] = b"0123456789"
assert second[4090:4100] == b"0123456789"
if os.fork() == 0:
    second[8192:8195] = b"kid"; os._exit(0)
os.wait()
assert first[8192:8195] == b"kid"
first.flush(); os.fsync(fd)
print(os.pread(fd, 10, 4090))
""") == "b'0123456789'\n"
    content = (rootfs / "mapped").read_bytes()
    assert content[4090:4100] == b"0123456789" and content[8192:8195] == b"kid" and len(content) == 3 * 4096


def test_unlinked_files_live_while_open(script):
    assert script("""
import os
fd = os.open("/gone", os.O_RDWR | os.O_CREAT)
os.write(fd, b"still here")
os.unlink("/gone")
open("/gone", "w").write("another")
assert os.fstat(fd).st_nlink == 0
os.ftruncate(fd, 5); os.fchmod(fd, 0o640)
print(os.pread(fd, 20, 0), oct(os.fstat(fd).st_mode & 0o777), open(f"/proc/self/fd/{fd}").read(), open("/gone").read())
os.mkdir("/dir"); d = os.open("/dir", os.O_RDONLY); os.rmdir("/dir"); print(os.fstat(d).st_nlink, os.listdir(d))
""") == "b'still' 0o640 still another\n0 []\n"


def test_locks_between_processes(script):
    assert script("""
import fcntl, os, time
def contend(lock, unlock):
    r, w = os.pipe(); back_r, back_w = os.pipe()
    if os.fork() == 0:
        fd = os.open("/lock", os.O_RDWR | os.O_CREAT)
        lock(fd, fcntl.LOCK_EX); os.write(w, b"l"); os.read(back_r, 1); unlock(fd); os._exit(0)
    os.read(r, 1)
    fd = os.open("/lock", os.O_RDWR | os.O_CREAT)
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); print("both hold it")
    except OSError as e:
        print(e.strerror)
    os.write(back_w, b"u"); lock(fd, fcntl.LOCK_EX); os.wait(); os.close(fd)
contend(fcntl.flock, lambda fd: fcntl.flock(fd, fcntl.LOCK_UN))
contend(lambda fd, how: fcntl.lockf(fd, how, 10, 5), lambda fd: fcntl.lockf(fd, fcntl.LOCK_UN, 10, 5))
""") == "Resource temporarily unavailable\n" * 2


def test_sparse_files(script):
    assert script("""
import os, errno
fd = os.open("/sparse", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"end", 5 << 30)
s = os.fstat(fd)
assert s.st_size == (5 << 30) + 3 and s.st_blocks * 512 < 1 << 20, s
assert os.lseek(fd, 0, os.SEEK_DATA) == 5 << 30
assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
assert os.pread(fd, 4, 3 << 30) == bytes(4) and os.pread(fd, 9, 5 << 30) == b"end"
os.posix_fallocate(fd, 0, 1 << 20)
assert os.fstat(fd).st_blocks * 512 >= 1 << 20
os.ftruncate(fd, 4096); print(os.fstat(fd).st_size, os.read(fd, 9) if os.lseek(fd, 4090, 0) else "")
""") == "4096 b'\\x00\\x00\\x00\\x00\\x00\\x00'\n"


def test_names_of_every_byte(script, rootfs):
    out = script("""
import os
every = bytes(n for n in range(1, 256) if n != ord("/"))
names = [every[:127], every[127:], b"...", b" ", b"-rf", b"new\\nline", b"\\xff" * 255]
os.mkdir("/names")
for name in names:
    open(b"/names/" + name, "wb").write(name)
assert sorted(os.listdir(b"/names")) == sorted(names)
assert all(open(b"/names/" + name, "rb").read() == name for name in names)
try:
    open(b"/names/" + b"x" * 256, "w")
except OSError as e:
    print(e.strerror)
""")
    assert out == "File name too long\n"
    every = bytes(n for n in range(1, 256) if n != ord("/"))
    assert every[:127] in os.listdir(os.fsencode(rootfs / "names"))


def test_owners_modes_and_setuid_clearing(script, rootfs):
    assert script("""
import os
os.umask(0)
open("/own", "w").close(); os.chown("/own", 1234, 4321); os.chmod("/own", 0o6755)
os.mkdir("/sg"); os.chown("/sg", 0, 77); os.chmod("/sg", 0o2777)
pid = os.fork()
if pid == 0:
    os.setgroups([55]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
    open("/sg/new", "w").close(); os.mkdir("/sg/dir")
    try:
        os.chown("/sg/new", 0, 0)
    except OSError as e:
        print(e.strerror, flush=True)
    try:
        open("/own", "a")
    except OSError as e:
        print(e.strerror, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
s, d = os.stat("/sg/new"), os.stat("/sg/dir")
print(s.st_uid, s.st_gid, d.st_uid, d.st_gid, oct(d.st_mode))
os.chmod("/own", 0o6777)
pid = os.fork()
if pid == 0:
    os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
    open("/own", "a").write("x"); os._exit(0)
os.waitpid(pid, 0)
print(oct(os.stat("/own").st_mode), os.stat("/own").st_uid)
""") == "Operation not permitted\nPermission denied\n1000 77 1000 77 0o42777\n0o100777 1234\n"
    assert (rootfs / "own").stat().st_uid == 1234 and (rootfs / "sg/new").stat().st_uid == 1000


def test_renames(script):
    assert script("""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def rename(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags) != 0:
        return os.strerror(ctypes.get_errno())
for n in "ab":
    open(f"/{n}", "w").write(n)
print(rename("/a", "/b", 1))                       # RENAME_NOREPLACE
print(rename("/a", "/b", 2), open("/a").read(), open("/b").read())   # RENAME_EXCHANGE
os.mkdir("/d1"); os.mkdir("/d1/d2")
try:
    os.rename("/d1", "/d1/d2/d3")
except OSError as e:
    print(e.strerror)
f = open("/a"); os.rename("/b", "/a"); print(f.read(), open("/a").read())
""") == "File exists\nNone b a\nInvalid argument\nb a\n"


def test_xattrs_and_capabilities_of_files(script):
    assert script("""
import os
open("/x", "w").close()
os.setxattr("/x", "user.key", b"value"); os.setxattr("/x", "user.empty", b"")
print(sorted(os.listxattr("/x")), os.getxattr("/x", "user.key"))
os.removexattr("/x", "user.key")
try:
    os.getxattr("/x", "user.key")
except OSError as e:
    print(e.strerror)
cap = bytes.fromhex("0100000200040000000000000000000000000000")   # VFS_CAP_REVISION_2, CAP_NET_BIND_SERVICE
os.setxattr("/x", "security.capability", cap)
print(os.getxattr("/x", "security.capability") == cap)
""") == "['user.empty', 'user.key'] b'value'\nNo data available\nTrue\n"


def test_append_from_several_processes(script):
    assert script("""
import os
for n in range(8):
    if os.fork() == 0:
        fd = os.open("/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for i in range(200):
            os.write(fd, b"%d:%03d\\n" % (n, i))
        os._exit(0)
for n in range(8):
    os.wait()
lines = open("/log").read().split()
print(len(lines), len(set(lines)))
""") == "1600 1600\n"


def test_a_tree_it_cannot_leave(script, rootfs, scratch):
    (scratch / "secret").write_text("the host's")
    os.symlink(scratch / "secret", rootfs / "direct")
    os.symlink("../" * 20 + str(scratch / "secret"), rootfs / "climbing")
    assert script(f"""
import os
for path in ("/direct", "/climbing", "/../../../../{scratch}/secret"):
    print(os.path.exists(path))
print(sorted(os.listdir("/..")) == sorted(os.listdir("/")))
""") == "False\nFalse\nFalse\nTrue\n"
