"""Mounts: each option in the guest kernel's own account and by its effect, and the host's side of it where it means something there."""

import os
import pathlib
import shutil
import socket
import subprocess

import pytest

from chiton import only_chiton, ran, wait_for

# Prints, as JSON, the mounts of the process: by target options, optional fields and file system type; the last one on a target counts.
MOUNTINFO = """
import re
def mounts():
    found = {}
    for line in open("/proc/self/mountinfo"):
        before, after = line.rstrip("\\n").split(" - ")
        fields = before.split(" ")
        target = re.sub(r"\\\\(\\d{3})", lambda m: chr(int(m[1], 8)), fields[4])
        found[target] = {"options": fields[5].split(","), "optional": fields[6:], "type": after.split(" ")[0],
                         "data": after.split(" ")[2].split(",")}
    return found
"""


def mount(*args):
    subprocess.run(["mount", *map(str, args)], check=True)


@pytest.fixture
def volume(scratch, request):
    """A file system of the host's with a second one mounted in it at `below`."""
    path = scratch / f"volume-{request.node.name}"
    path.mkdir()
    mount("-t", "tmpfs", "volume", path)
    (path / "below").mkdir()
    mount("-t", "tmpfs", "below", path / "below")
    (path / "file").write_text("file\n")
    (path / "below/file").write_text("below\n")
    os.symlink("file", path / "link")
    yield path
    subprocess.run(["umount", "-R", path], check=True)
    path.rmdir()


BIND = {
    "plain": [],
    "ro": ["ro"],
    "ro-rw": ["ro", "rw"],
    "rro": ["rro"],
    "rrw": ["rrw"],
    "nosuid": ["nosuid"],
    "rnosuid": ["rnosuid"],
    "nodev": ["nodev"],
    "rnodev": ["rnodev"],
    "noexec": ["noexec"],
    "rnoexec": ["rnoexec"],
    "nosymfollow": ["nosymfollow"],
    "rnosymfollow": ["rnosymfollow"],
    "noatime": ["noatime"],
    "rnoatime": ["rnoatime"],
    "rstrictatime": ["rstrictatime"],
    "rrelatime": ["rrelatime"],
    "nodiratime": ["nodiratime"],
    "many": ["rnosuid", "rnodev", "ro", "noexec", "rprivate"],
}
FLAGS = ("ro", "nosuid", "nodev", "noexec", "nosymfollow", "noatime", "nodiratime", "relatime")


def test_bind_options(container, rootfs, volume):
    """The mount itself and the one below it have the flags that were asked for, and act on them."""
    def change(config):
        for name, options in BIND.items():
            config["mounts"].append({"destination": f"/m/{name}", "type": "bind", "source": str(volume),
                                     "options": ["rbind", *options]})
    found = ran(container, rootfs, MOUNTINFO + """
import os
out = {}
for name in sorted(os.listdir("/m")):
    does = {}
    for where, path in (("own", f"/m/{name}"), ("below", f"/m/{name}/below")):
        def attempt(what):
            try:
                what(); return "ok"
            except OSError as e:
                return e.strerror
        # A path that another mount's attempt has not made.
        does[where] = {"write": attempt(lambda: open(f"{path}/{name}", "w").close()),
                       "follow": attempt(lambda: os.path.islink(f"{path}/link") and open(f"{path}/link").close()),
                       "read": open(f"{path}/file").read()}
    seen = mounts()
    out[name] = {"does": does, "own": seen[f"/m/{name}"]["options"], "below": seen[f"/m/{name}/below"]["options"]}
print(json.dumps(out))
""", change)
    for name, options in BIND.items():
        own, below = set(), set()
        for option in options:
            plain = option[1:] if option[0] == "r" and option[1:] in (*FLAGS, "strictatime", "rw") else option
            for flags, concerned in ((own, True), (below, plain != option)):
                if concerned and plain in ("noatime", "relatime", "strictatime"):
                    flags -= {"noatime", "relatime", "strictatime"}
                if concerned and plain == "rw":
                    flags -= {"ro"}
                elif concerned and plain in (*FLAGS, "strictatime"):
                    flags.add(plain)
        for where, wanted in (("own", own), ("below", below)):
            got = set(found[name][where]) & set(FLAGS)
            if not wanted & {"noatime", "strictatime"}:
                wanted = wanted | {"relatime"}
            assert got == wanted - {"strictatime"}, (name, where, found[name])
            does = found[name]["does"][where]
            assert does["write"] == ("Read-only file system" if "ro" in wanted else "ok"), (name, where, does)
            if where == "own":
                follows = "Too many levels of symbolic links" if "nosymfollow" in wanted else "ok"
                assert does["follow"] == follows, (name, where, does)
            assert does["read"] == ("file\n" if where == "own" else "below\n")
    for name in BIND:  # What was refused has not reached the host, what was not has.
        refused = found[name]["does"]["own"]["write"] != "ok"
        assert (volume / name).exists() != refused, name


def test_types_and_their_options(container, rootfs, scratch, request):
    layers = scratch / f"layers-{request.node.name}"
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir(parents=True)
    (layers / "lower/below").write_text("from below\n")
    (rootfs / "copied/deep").mkdir(parents=True)
    (rootfs / "copied/deep/file").write_text("copied up\n")
    (rootfs / "moded").mkdir(mode=0o700)

    def change(config):
        config["mounts"] += [
            {"destination": "/t/sized", "type": "tmpfs", "source": "t",
             "options": ["size=64k", "mode=1770", "nr_inodes=10", "nosuid", "noexec", "nodev", "noatime"]},
            {"destination": "/moded", "type": "tmpfs", "source": "t"},
            {"destination": "/t/made/for/it", "type": "tmpfs", "source": "t"},
            {"destination": "/copied", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "ro"]},
            {"destination": "/t/ram", "type": "ramfs", "source": "r", "options": ["rnodev"]},
            {"destination": "/t/proc", "type": "proc", "source": "proc", "options": ["ro", "nosuid"]},
            {"destination": "/t/shared", "type": "tmpfs", "source": "t", "options": ["shared"]},
            {"destination": "/t/unbindable", "type": "tmpfs", "source": "t", "options": ["unbindable"]},
            {"destination": "/t/overlay", "type": "overlay", "source": "overlay", "options":
                [f"lowerdir={layers}/lower", f"upperdir={layers}/upper", f"workdir={layers}/work", "nodev"]},
            {"destination": "/t/again", "type": "tmpfs", "source": "t", "options": ["size=64k"]},
            {"destination": "/t/again", "type": "tmpfs", "source": "t", "options": ["remount", "ro", "size=128k"]},
            {"destination": "/t/bound", "type": "tmpfs", "source": "t", "options": ["noexec"]},
            {"destination": "/t/bound", "type": "bind", "source": str(layers), "options": ["bind", "remount", "ro", "nosuid"]},
        ]
    found = ran(container, rootfs, MOUNTINFO + """
import os
def attempt(what):
    try:
        what(); return "ok"
    except OSError as e:
        return e.strerror
stat, moded = os.statvfs("/t/sized"), os.stat("/moded")
open("/t/overlay/new", "w").write("new")
open("/t/overlay/below", "a").write("changed")
print(json.dumps({"mounts": mounts(), "size": stat.f_blocks * stat.f_frsize, "inodes": stat.f_files,
    "modes": [oct(os.stat("/t/sized").st_mode & 0o7777), oct(moded.st_mode & 0o7777),
        oct(os.stat("/t/made/for/it").st_mode & 0o7777)],
    "copied": open("/copied/deep/file").read(), "read-only": attempt(lambda: open("/copied/x", "w")),
    "proc": attempt(lambda: open("/t/proc/sys/vm/swappiness", "w")), "pid": os.readlink("/t/proc/self") == str(os.getpid()),
    "overlay": open("/t/overlay/below").read(), "again": attempt(lambda: open("/t/again/x", "w")),
    "remounted": attempt(lambda: open("/t/bound/x", "w"))}))
""", change)
    mounts = found["mounts"]
    assert {"nosuid", "noexec", "nodev", "noatime"} < set(mounts["/t/sized"]["options"])
    assert (found["size"], found["inodes"], found["modes"]) == (65536, 10, ["0o1770", "0o700", "0o1777"])
    assert found["copied"] == "copied up\n" and found["read-only"] == "Read-only file system"
    assert mounts["/t/ram"]["type"] == "ramfs"
    assert found["proc"] == "Read-only file system" and found["pid"]
    assert {"ro", "nosuid"} < set(mounts["/t/proc"]["options"])
    assert any(field.startswith("shared:") for field in mounts["/t/shared"]["optional"])
    assert "unbindable" in mounts["/t/unbindable"]["optional"]
    assert found["overlay"] == "from below\nchanged" and "nodev" in mounts["/t/overlay"]["options"]
    assert found["again"] == "Read-only file system" and "size=128k" in mounts["/t/again"]["data"]
    assert found["remounted"] == "Read-only file system" and {"ro", "nosuid"} < set(mounts["/t/bound"]["options"])
    assert (layers / "upper/new").read_text() == "new" and (layers / "lower/below").read_text() == "from below\n"
    assert (layers / "upper/below").read_text() == "from below\nchanged"


@only_chiton
@pytest.mark.parametrize("propagation", ["private", "rslave", "shared", "rshared", "unbindable"])
def test_rootfs_propagation(container, rootfs, propagation):
    # With runc it is that of the mount which the container does not see any more.
    found = ran(container, rootfs, MOUNTINFO + "print(json.dumps(mounts()['/']['optional']))",
                lambda config: config["linux"].update(rootfsPropagation=propagation))
    kind = propagation.removeprefix("r")
    assert any(field.startswith("shared:") for field in found) == (kind == "shared"), found
    assert ("unbindable" in found) == (kind == "unbindable"), found


def test_mount_points_in_a_read_only_root(container, rootfs, scratch):
    """They are made where they are missing, before the root is read-only."""
    source = scratch / "single"
    source.write_text("one file\n")

    def change(config):
        config["root"]["readonly"] = True
        config["process"]["cwd"] = "/made/cwd"
        config["mounts"] += [
            {"destination": "/made/dir", "type": "tmpfs", "source": "t"},
            {"destination": "/made/file", "type": "bind", "source": str(source), "options": ["bind"]},
        ]
    found = ran(container, rootfs, MOUNTINFO + """
import os
def attempt(what):
    try:
        what(); return "ok"
    except OSError as e:
        return e.strerror
print(json.dumps({"root": "ro" in mounts()["/"]["options"], "file": open("/made/file").read(), "cwd": os.getcwd(),
    "tmpfs": attempt(lambda: open("/made/dir/x", "w")), "write": attempt(lambda: open("/etc/x", "w")),
    "mkdir": attempt(lambda: os.mkdir("/x"))}))
""", change)
    read_only = "Read-only file system"
    assert found == {"root": True, "file": "one file\n", "cwd": "/made/cwd", "tmpfs": "ok", "write": read_only, "mkdir": read_only}
    assert not (rootfs / "etc/x").exists()


@only_chiton
def test_a_read_only_root_is_so_on_the_host_too(container, rootfs):
    """Whatever the guest's kernel says: the machine process itself cannot write there."""
    made = container("sleep", "1000", change=lambda config: config["root"].update(readonly=True))
    line = next(line.split() for line in pathlib.Path(f"/proc/{made.pid}/mountinfo").read_text().splitlines()
                if line.split()[4] == "/rootfs")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line[5].split(","))


HOST_MOUNTS = {"plain": "", "noexec": "noexec", "nosuid": "nosuid", "many": "noexec,nosuid,nodev,noatime", "ro": "ro"}


@pytest.fixture
def hosts(scratch):
    """Mounts of the host with flags of their own, each with a directory of programs, in a mount without any."""
    path = scratch / "flags"
    path.mkdir()
    mount("-t", "tmpfs", "flags", path)
    for name, flags in HOST_MOUNTS.items():
        programs = path / name / "programs"
        (path / name).mkdir()
        mount("-t", "tmpfs", name, path / name)
        programs.mkdir()
        programs.chmod(0o777)
        (programs / "script").write_text("#!/bin/sh\necho ran\n")
        (programs / "script").chmod(0o755)
        shutil.copy("/usr/bin/id", programs / "id")
        (programs / "id").chmod(0o4755)
        if flags:
            mount("-o", f"remount,bind,{flags}", path / name)
    yield path
    subprocess.run(["umount", "-R", path], check=True)
    path.rmdir()


def test_flags_of_the_hosts_mounts(runtime, container, rootfs, hosts):
    """What a mount of the host forbids is forbidden by each bind of it, of a part of it, and of what it is mounted in."""
    def change(config):
        def bind(source, destination, *options):
            config["mounts"].append({"destination": destination, "type": "bind", "source": str(source), "options": list(options)})
        bind(hosts, "/tree", "rbind", "rprivate")
        for name in HOST_MOUNTS:
            bind(hosts / name, f"/whole/{name}", "rbind")
            bind(hosts / name / "programs", f"/part/{name}", "bind")
            bind(hosts / name / "programs/script", f"/file/{name}", "bind")
        bind(hosts / "noexec", "/whole/exec", "bind", "exec")
        bind(hosts / "ro", "/whole/rw", "bind", "rw")
        config["process"] |= {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": False}

    found = ran(container, rootfs, MOUNTINFO + f"NAMES = {list(HOST_MOUNTS)}" + """
import os, subprocess
def did(*args):
    try:
        done = subprocess.run(args, capture_output=True, text=True)
        return done.stdout.strip() or done.returncode
    except OSError as e:
        return e.strerror
seen = mounts()
def look(path, programs):
    return {"flags": seen[path]["options"], "script": did(f"{programs}/script"), "id": did(f"{programs}/id", "-u"),
            "write": os.access(programs, os.W_OK)}
out = {}
for name in NAMES:
    out[name] = [look(f"/tree/{name}", f"/tree/{name}/programs"), look(f"/whole/{name}", f"/whole/{name}/programs"), look(f"/part/{name}", f"/part/{name}")]
    out[name].append({"flags": seen[f"/file/{name}"]["options"], "script": did(f"/file/{name}"), "id": None, "write": None})
print(json.dumps({"mounts": out, "exec": look("/whole/exec", "/whole/exec/programs"), "rw": look("/whole/rw", "/whole/rw/programs")}))
""", change)
    flags = {"ro", "nosuid", "nodev", "noexec", "noatime"}
    for name, given in HOST_MOUNTS.items():
        wanted = set(given.split(",")) & flags
        for look in found["mounts"][name]:
            assert set(look["flags"]) & flags == wanted, (name, look)
            assert look["script"] == ("Permission denied" if "noexec" in wanted else "ran"), (name, look)
            if look["id"] is not None:
                user = "Permission denied" if "noexec" in wanted else "1000" if "nosuid" in wanted else "0"
                assert look["id"] == user, (name, look)
                assert look["write"] == ("ro" not in wanted), (name, look)
    if runtime.name != "runc":  # of which 1.1 does nothing for exec, and takes rw for a wish to write
        assert found["exec"]["script"] == "ran" and "noexec" not in found["exec"]["flags"]
        assert "ro" in found["rw"]["flags"] and not found["rw"]["write"]


@only_chiton
def test_the_hosts_side_of_binds(container, rootfs, volume):
    """Nothing works on a share that need not; what is read-only in the guest is so on the host; times are the host's to keep."""
    def change(config):
        for name in ("plain", "ro", "rro", "noatime"):
            config["mounts"].append({"destination": f"/m/{name}", "type": "bind", "source": str(volume),
                                     "options": ["rbind", *BIND[name]]})
    made = container("sleep", "1000", change=change)
    lines = [line.split() for line in pathlib.Path(f"/proc/{made.pid}/mountinfo").read_text().splitlines()]
    options = {line[4]: set(line[5].split(",")) for line in lines}
    shares = ["/mnt/0", "/mnt/1", "/mnt/2", "/mnt/3"]
    for share in shares:
        for path in (share, f"{share}/below"):
            assert {"nosuid", "nodev", "noexec"} <= options[path]
    assert ["ro" in options[path] for path in shares] == [False, True, True, False]
    assert ["ro" in options[f"{path}/below"] for path in shares] == [False, False, True, False]
    assert ["noatime" in options[path] for path in shares] == [False, False, False, True]
    optional = {line[4]: [field for field in line[6:line.index("-")]] for line in lines}
    assert all(optional[path] == [] for path in options), "nothing follows the host's mounts"


def test_access_times(container, rootfs, volume):
    """Reading changes a file's access time unless the mount says otherwise."""
    names = ("strict", "none")
    for name in names:
        (volume / name).write_text("x")
        os.utime(volume / name, (1000, 1000))

    def change(config):
        config["mounts"] += [
            {"destination": "/strict", "type": "bind", "source": str(volume), "options": ["bind", "strictatime"]},
            {"destination": "/none", "type": "bind", "source": str(volume), "options": ["bind", "noatime"]},
        ]
    ran(container, rootfs, MOUNTINFO + "print(json.dumps([open(f'/{name}/{name}').read() for name in ('strict', 'none')]))", change)
    times = [(volume / name).stat().st_atime for name in names]
    assert times[0] > 1000 and times[1] == 1000


def test_later_mounts_of_the_host(container, rootfs, scratch):
    """With rslave what the host mounts below the source appears in the container, and the host can take it away again."""
    source = scratch / "propagating"
    source.mkdir()
    mount("-t", "tmpfs", "source", source)
    try:
        mount("--make-shared", source)
        for name in ("first", "second", "third"):
            (source / name).mkdir()
        mount("-t", "tmpfs", "first", source / "first")
        (source / "first/file").write_text("first\n")

        def change(config):
            for name, propagation in (("follows", "rslave"), ("stays", "rprivate")):
                config["mounts"].append({"destination": f"/{name}", "type": "bind", "source": str(source),
                                         "options": ["rbind", propagation]})
        made = container("sleep", "1000", change=change)
        listed = lambda path: made.output("ls", path).split()  # noqa: E731
        assert listed("/follows/first") == listed("/stays/first") == ["file"]
        assert listed("/follows/second") == listed("/stays/second") == []
        mount("-t", "tmpfs", "second", source / "second")
        (source / "second/file").write_text("second\n")
        wait_for(lambda: listed("/follows/second") == ["file"], 10)
        assert made.output("cat", "/follows/second/file") == "second\n"
        made.output("sh", "-c", "echo back >/follows/second/back")
        assert (source / "second/back").read_text() == "back\n"
        assert listed("/stays/second") == []
        # What the container has looked at and does not use keeps no mount of the host busy.
        for name in ("second", "first"):
            subprocess.run(["umount", source / name], check=True)
            wait_for(lambda name=name: listed(f"/follows/{name}") == [], 10)
        assert listed("/stays/first") == ["file"]
        made.delete()
    finally:
        subprocess.run(["umount", "-R", source], check=True)
        source.rmdir()


@only_chiton
def test_ids_are_mapped(container, rootfs, volume):
    """runc 1.1 does not know it."""
    for name, owner in (("root", 0), ("user", 1000), ("beyond", 5000)):
        (volume / name).write_text(name)
        os.chown(volume / name, owner, owner)
    (volume / "user").chmod(0o600)
    mapping = [{"containerID": 0, "hostID": 100000, "size": 2000}]

    def change(config):
        config["mounts"] += [
            {"destination": "/mapped", "type": "bind", "source": str(volume), "options": ["rbind", "ridmap"],
             "uidMappings": mapping, "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 2000}]},
            {"destination": "/plain", "type": "bind", "source": str(volume), "options": ["rbind"]},
        ]
    found = ran(container, rootfs, MOUNTINFO + """
import os
own = lambda path: [os.stat(path).st_uid, os.stat(path).st_gid]
out = {name: own(f"/mapped/{name}") for name in ("root", "user", "beyond", "below/file")}
out["plain"] = own("/plain/user")
pid = os.fork()
if pid == 0:
    os.setresgid(200007, 200007, 200007); os.setresuid(101000, 101000, 101000)
    os.close(os.open("/mapped/user", os.O_RDONLY))
    os._exit(7)
out["owner reads"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps(out))
""", change)
    assert found == {"root": [100000, 200000], "user": [101000, 201000], "beyond": [65534, 65534],
                     "below/file": [100000, 200000], "plain": [1000, 1000], "owner reads": 7}


@only_chiton
def test_ids_are_mapped_for_a_user_namespace(container, rootfs, volume):
    """By the container's own mappings: files have in the container the owners that they have on the host."""
    os.chown(volume / "file", 1000, 1000)
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for path in (rootfs, rootfs / "dev"):
        os.chown(path, 100000, 100000)

    def change(config):
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=mapping, gidMappings=mapping)
        config["mounts"].append({"destination": "/mapped", "type": "bind", "source": str(volume), "options": ["bind", "idmap"]})
    found = ran(container, rootfs, MOUNTINFO + """
import os
stat = os.stat("/mapped/file")
open("/mapped/made", "w").close()
os.chown("/mapped/made", 7, 8)
made = os.stat("/mapped/made")
print(json.dumps([stat.st_uid, stat.st_gid, made.st_uid, made.st_gid]))
""", change)
    made = (volume / "made").stat()
    assert found == [1000, 1000, 7, 8] and (made.st_uid, made.st_gid) == (7, 8)


def test_device_files_as_sources(container, rootfs):
    """The usual ones are the container's kernel's own."""
    def change(config):
        config["mounts"] += [
            {"destination": "/etc/masked", "type": "bind", "source": "/dev/null", "options": ["bind", "ro"]},
            {"destination": "/zero", "type": "bind", "source": "/dev/zero", "options": ["rbind"]},
        ]
    found = ran(container, rootfs, MOUNTINFO + """
print(json.dumps([open("/etc/masked").read(), open("/zero", "rb").read(3).hex()]))
""", change)
    assert found == ["", "000000"]


def test_what_an_earlier_mount_provides(container, rootfs, volume):
    """Mounts are made in their order below the root directory, so a source below it is what has been mounted there."""
    (rootfs / "filled").mkdir()
    (rootfs / "filled/copied").write_text("copied\n")
    (rootfs / "data").mkdir()
    (rootfs / "data/file").write_text("hidden\n")
    os.symlink("/data", rootfs / "alias")

    def change(config):
        def bind(source, destination, *options):
            config["mounts"].append({"destination": destination, "type": "bind", "source": str(source), "options": list(options)})
        config["mounts"].append({"destination": "/filled", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]})
        bind(rootfs / "data/file", "/before", "bind")
        bind(volume, "/alias", "rbind", "nosuid", "noexec")
        bind(rootfs / "data", "/tree", "rbind", "noexec", "nosuid")
        bind(rootfs / "data/file", "/file", "bind", "ro")
        bind(rootfs / "data/below", "/below", "bind")
        bind(rootfs / "filled", "/again", "bind", "ro")
        bind(rootfs / "again/copied", "/copied", "bind")

    found = ran(container, rootfs, MOUNTINFO + """
def read(path):
    with open(path) as file:
        return file.read()
with open("/filled/new", "w") as file:
    file.write("new")
seen = mounts()
flags = {path: sorted({"ro", "nosuid", "noexec"} & set(seen[path]["options"])) for path in ("/tree", "/file", "/below", "/again")}
print(json.dumps({"read": [read(path) for path in ("/before", "/file", "/tree/file", "/tree/below/file", "/below/file", "/copied", "/again/new")],
                  "flags": flags, "written": os.access("/again", os.W_OK)}))
""", change)
    assert found["read"] == ["hidden\n", "file\n", "file\n", "below\n", "below\n", "copied\n", "new"]
    assert found["flags"]["/tree"] == ["noexec", "nosuid"] and "ro" in found["flags"]["/file"] and "ro" in found["flags"]["/again"]
    assert found["written"] is False
    assert (rootfs / "filled/copied").read_text() == "copied\n" and not (rootfs / "filled/new").exists()


def test_what_is_provided_is_explained(chiton, bundle, scratch):
    """Where the guest alone has the source `explain` says so; what cannot be had is refused by both, in the same words."""
    made = bundle("true")
    root = made.config["root"]["path"]
    made.config["mounts"] += [{"destination": "/data", "type": "tmpfs", "source": "tmpfs"},
                              {"destination": "/m", "type": "bind", "source": f"{root}/data", "options": ["bind"]}]
    explained = chiton.ok("explain", made.save().path / "config.json")
    place = {line.split()[0]: line.split()[1] for line in explained.splitlines() if line.startswith("mounts[")}
    assert place["mounts[8].source"] == "guest", explained
    assert chiton("run", "--bundle", made.path, "provided").returncode == 0
    made.config["root"]["readonly"] = True
    made.config["mounts"][8] |= {"source": root, "options": ["rbind"]}
    words = f"mounts[8].source: {root} is of the read-only root filesystem, with an earlier mount below it"
    done = chiton("run", "--bundle", made.save().path, "provided")
    assert done.returncode == 1 and words in done.stderr, done.stderr
    explained = chiton("explain", made.path / "config.json")
    assert explained.returncode == 1 and words.split(": ")[1] in explained.stdout, explained.stdout
    # A missing part of what is provided is known when it is mounted.
    made.config["root"]["readonly"] = False
    made.config["mounts"][8] |= {"source": f"{root}/data/missing"}
    done = chiton("run", "--bundle", made.save().path, "provided")
    assert done.returncode == 1 and "/data/missing, a source, in the container: no such file" in done.stderr, done.stderr


def test_what_cannot_be_mounted_is_refused_by_name(chiton, bundle, scratch):
    """One container for each: none of them comes to be."""
    listener = socket.socket(socket.AF_UNIX)
    here = scratch / "special"
    here.mkdir()
    os.mkfifo(here / "fifo")
    listener.bind(str(here / "socket"))
    bind = lambda source, *options: {"destination": "/m", "type": "bind", "source": str(source), "options": ["rbind", *options]}  # noqa: E731
    for mount, words in (
        (bind(here / "socket"), "a socket: its other end is on the host"),
        (bind(here / "fifo"), "a FIFO: its other end is on the host"),
        (bind("/dev/kvm"), "a device that the guest does not have"),
        (bind(here, "rshared"), "mounts[7].options: rshared: what the container mounts cannot appear on the host"),
        (bind(here, "shared"), "mounts[7].options: shared"),
        (bind(here, "rubbish"), "mounts[7].options: rubbish: is unknown to bind mounts"),
        (bind(here, "idmap"), "idmap needs mappings"),
        (bind(here / "missing"), "no such file or directory"),
        ({"destination": "/m", "type": "nfs", "source": "server:/"}, "mounts[7].type: "),
    ):
        made = bundle("true")
        made.config["mounts"].append(mount)
        done = chiton("run", "--bundle", made.save().path, "refused")
        assert done.returncode == 1 and words in done.stderr, (mount, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    listener.close()
