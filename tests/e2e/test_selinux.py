"""SELinux: the host's policy confines the machine process and its stubs. In a lab whose kernel has SELinux, with a policy of our own: what
distributions' policies say is not shown here."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from chiton import alive, both, only_chiton
from test_pods import SHARED, joining, member  # noqa: F401

ROOT = pathlib.Path("/sys/fs/selinux")
CLASSES = {
    "process": "transition dyntransition setcurrent",
    "file": "read write open append create getattr setattr unlink link rename execute entrypoint map lock ioctl relabelfrom relabelto",
    "dir": "read write open search add_name remove_name create getattr setattr rmdir rename reparent relabelfrom relabelto mounton",
}
SIDS = """kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet icmp_socket tcp_socket sysctl_modprobe
    sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix sysctl_vm sysctl_dev kmod policy scmp_packet devnull"""
TYPES = "host_t proc_t container_t machine_t other_t closed_t container_file_t"
CONTEXT = "(u object_r host_t (low low))"

# The host's own processes may do everything but become closed_t. Containers may use files of theirs, and of those the ones of their level.
# Nothing that is not named here is forbidden.
POLICY = "\n".join([
    "(handleunknown allow) (mls true) (policycap nnp_nosuid_transition) (policycap extended_socket_class)",
    f"(classorder ({' '.join(CLASSES)}))", *(f"(class {name} ({names}))" for name, names in CLASSES.items()),
    "(sensitivity s0) (sensitivityorder (s0))", *(f"(category c{number})" for number in range(8)),
    "(categoryorder (c0 c1 c2 c3 c4 c5 c6 c7)) (sensitivitycategory s0 (range c0 c7))",
    "(level low (s0)) (level high (s0 (range c0 c7)))",
    "(role r) (role object_r) (user u) (userrole u r) (userrole u object_r) (userlevel u low) (userrange u (low high))",
    *(f"(type {name}) (roletype r {name}) (roletype object_r {name})" for name in TYPES.split()),
    f"(typeattribute all_types) (typeattributeset all_types ({TYPES}))",
    "(typeattribute contained) (typeattributeset contained (container_t machine_t other_t closed_t))",
    "(allow host_t all_types (file (all))) (allow host_t all_types (dir (all)))",
    "(allow host_t host_t (process (all))) (allow host_t container_t (process (all)))",
    "(allow host_t machine_t (process (all))) (allow host_t other_t (process (all)))",
    "(allow contained container_file_t (file (all))) (allow contained container_file_t (dir (all)))",
    "(allow contained self (file (all))) (allow contained self (dir (all)))",
    "(allow container_t proc_t (file (all))) (allow container_t proc_t (dir (all)))",
    "(mlsconstrain (file (read write open append execute)) (or (dom h1 h2) (neq t1 contained)))",
    "(mlsconstrain (dir (read open search add_name remove_name)) (or (dom h1 h2) (neq t1 contained)))",
    *(f"(sid {name}) (sidcontext {name} (u {'r' if name in ('kernel', 'init') else 'object_r'} host_t (low low)))" for name in SIDS.split()),
    f"(sidorder ({SIDS}))",
    f"(fsuse xattr ext4 {CONTEXT}) (fsuse xattr overlay {CONTEXT}) (fsuse trans tmpfs {CONTEXT}) (fsuse trans devtmpfs {CONTEXT})",
    f"(fsuse trans devpts {CONTEXT}) (fsuse trans mqueue {CONTEXT})",
    "(genfscon proc / (u object_r proc_t (low low)))",
])

CONTEXTS = """process = "u:r:container_t:s0"
file = "u:object_r:container_file_t:s0"
"""
KVM = 'kvm_process = "u:r:machine_t:s0"\n'

LEVEL, OTHER = "s0:c1,c2", "s0:c3,c4"
FILES = f"u:object_r:container_file_t:{LEVEL}"


@pytest.fixture(scope="module", autouse=True)
def policy(scratch):
    """The kernel with a policy, enforced. It cannot be taken away again: this is for a lab alone."""
    if os.environ.get("CHITON_LAB") != "lab" or "selinux" not in pathlib.Path("/sys/kernel/security/lsm").read_text():
        pytest.skip("this is not a lab with SELinux")
    if not os.path.ismount(ROOT):
        subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", ROOT], check=True)
    (scratch / "policy.cil").write_text(POLICY)
    subprocess.run(["secilc", "-o", "policy", "-f", "file_contexts", "policy.cil"], cwd=scratch, check=True)
    (ROOT / "load").write_bytes((scratch / "policy").read_bytes())
    (ROOT / "enforce").write_text("1")
    contexts = pathlib.Path("/etc/selinux/test/contexts")
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text(CONTEXTS + KVM)
    (contexts.parent.parent / "config").write_text("SELINUX=enforcing\nSELINUXTYPE=test\n")
    assert label_of("self") == "u:r:host_t:s0"


def denials():
    """What the kernel has denied, and said so."""
    return [line for line in subprocess.check_output(["dmesg"], text=True).splitlines() if "avc:  denied" in line]


@pytest.fixture(autouse=True)
def denied():
    """What is denied in a test is shown with it if it fails."""
    before = len(denials())
    yield lambda: denials()[before:]
    print(*denials()[before:], sep="\n")


@pytest.fixture
def rootfs(scratch, debian):
    """As engines mount it: all of it has the label of the container's files."""
    base = scratch / "labelled"
    for name in ("upper", "work", "root"):
        (base / name).mkdir(parents=True, exist_ok=True)
    options = f'lowerdir={debian},upperdir={base}/upper,workdir={base}/work,context="{FILES}"'
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, base / "root"], check=True)
    yield base / "root"
    subprocess.run(["umount", base / "root"], check=True)
    subprocess.run(["rm", "-rf", base], check=True)


@pytest.fixture
def bundle(bundle):
    """The output of containers is theirs to write to."""
    def labelled(*args):
        made = bundle(*args)
        relabel(made.path, "u:object_r:container_file_t:s0")
        return made
    return labelled


def relabel(path, label):
    os.setxattr(path, "security.selinux", label.encode() + b"\0")


def file_label(path):
    return os.getxattr(path, "security.selinux").rstrip(b"\0").decode()


def mounts(directory, *names):
    """Makes a change to a configuration that mounts directories of this one."""
    def change(config):
        for name in names:
            config["mounts"].append({"destination": f"/{name}", "type": "bind", "source": str(directory / name), "options": ["bind", "rw"]})
    return change


def streams(made):
    """Output to a file that the container may write to."""
    (made.path / "output").touch()
    relabel(made.path / "output", "u:object_r:container_file_t:s0")
    return {"stdout": open(made.path / "output", "a"), "stderr": subprocess.STDOUT}


def label_of(pid):
    return pathlib.Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")


def label(kind="container_t", level=LEVEL, files=FILES, more=lambda config: None):
    def change(config):
        config["process"]["selinuxLabel"] = kind and f"u:r:{kind}:{level}"
        config["linux"]["mountLabel"] = files
        more(config)
    return change


def own(runtime, level=LEVEL):
    """The label of a container's process: a machine has a type of its own."""
    return f"u:r:{'machine_t' if runtime.name == 'chiton' else 'container_t'}:{level}"


def audited(made):
    done = made.runtime("audit", "--format", "json", made.name)
    found = [finding for finding in json.loads(done.stdout) if finding["point"] == "selinux"]
    return done.returncode, [(finding["verdict"], finding["text"]) for finding in found]


def detached(made, *options):
    """The label of what stands for a process that is executed."""
    path = made.bundle.path / "exec.pid"
    made.runtime.ok("exec", "--detach", "--pid-file", path, *options, made.name, "sleep", "1000", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return label_of(int(path.read_text()))


@both
def test_a_container_has_its_label(runtime, container):
    made = container("sleep", "1000", change=label())
    assert label_of(made.pid) == own(runtime)
    assert {label_of(f"{made.pid}/task/{name}") for name in os.listdir(f"/proc/{made.pid}/task")} == {own(runtime)}
    assert detached(made) == own(runtime)
    if runtime.name == "chiton":
        assert audited(made) == (0, [("ok", own(runtime))] * 2)


@only_chiton
def test_what_a_machine_process_writes_to_has_the_label_of_files(runtime, container):
    made = container("sleep", "1000", change=label())
    state = runtime.root / made.name
    assert {name: file_label(state / name) for name in ("journal", "log", "control.sock")} == \
        {"journal": FILES, "log": FILES, "control.sock": "u:object_r:host_t:s0"}
    # The tmpfs that holds the shares, and what the guest's kernel looks up in the list of open descriptors.
    root = pathlib.Path(f"/proc/{made.pid}/root")
    assert {file_label(path) for path in (root, root / "mnt", root / "mapped")} == {FILES}
    assert file_label(f"/proc/{made.pid}/fd") == own(runtime)


@both
def test_levels_keep_containers_apart(runtime, container, scratch, denied):
    """What the guest does is done by the machine process: files of the same type and of another level are not its."""
    volumes = scratch / f"volumes-{runtime.name}"
    volumes.mkdir()
    for name, level in (("own", LEVEL), ("all", "s0"), ("others", OTHER)):
        (volumes / name).mkdir()
        (volumes / name / "file").write_text(f"{name}\n")
        for path in (volumes / name / "file", volumes / name):
            relabel(path, f"u:object_r:container_file_t:{level}")
    names = sorted(os.listdir(volumes))
    script = "for name in " + " ".join(names) + "; do cat /$name/file; (echo $name >/$name/new) 2>/dev/null && echo wrote; done 2>&1; echo end"
    made = container("sh", "-c", script, change=label(more=mounts(volumes, *names)))
    made.ends()
    output = (made.bundle.path / "output").read_text().splitlines()
    assert output == ["all", "wrote", "cat: /others/file: Permission denied", "own", "wrote", "end"]
    assert not (volumes / "others" / "new").exists()
    assert [file_label(volumes / name / "new") for name in ("own", "all")] == [FILES] * 2
    # By the kernel's own account.
    text = f"scontext={own(runtime)} tcontext=u:object_r:container_file_t:{OTHER} tclass=dir permissive=0"
    assert [line for line in denied() if text in line], denied()


@both
def test_a_directory_of_no_containers_type(runtime, bundle, scratch):
    """The machine process may not even look at it, so that it cannot be mounted; with runc the container starts and cannot use it."""
    volumes = scratch / f"unlabelled-{runtime.name}"
    (volumes / "volume").mkdir(parents=True)
    made = bundle("ls", "/volume")
    label(more=mounts(volumes, "volume"))(made.config)
    done = runtime("run", "--bundle", made.save().path, "unlabelled", **streams(made))
    output = (made.path / "output").read_text()
    assert done.returncode != 0 and ("clone the mount" if runtime.name == "chiton" else "/volume") in output and "ermission denied" in output, output


@only_chiton
@pytest.mark.parametrize("kind", ["other_t", "machine_t"])
def test_another_type_is_taken_as_it_is(container, kind):
    made = container("sleep", "1000", change=label(kind))
    assert label_of(made.pid) == f"u:r:{kind}:{LEVEL}"


@both
def test_an_exec_has_a_label_of_its_own(runtime, container, scratch):
    made = container("sleep", "1000", change=label())
    assert detached(made, "--process-label", f"u:r:other_t:{LEVEL}") == f"u:r:other_t:{LEVEL}"
    done = made.exec("true", options=["--process-label", f"u:r:closed_t:{LEVEL}", "--detach"])
    assert done.returncode == (255 if runtime.name == "chiton" else 0) and "ermission denied" in done.stderr, done.stderr
    if runtime.name == "chiton":
        assert "set process label" in done.stderr and f"u:r:closed_t:{LEVEL}" in done.stderr, done.stderr
        assert [verdict for verdict, _ in audited(made)[1]] == ["ok", "note"]
        done = made.exec("true", options=["--process-label", f"u:r:other_t:{OTHER}"])
        assert done.returncode == 255 and f'{OTHER}\\": the machine has another SELinux level' in done.stderr, done.stderr
        # One whose output the machine process may not write to.
        with open(scratch / "unwritable", "w") as output:
            done = made.exec("true", stdout=output, stderr=subprocess.PIPE)
        assert done.returncode == 255 and "does not let the machine process have one of the descriptors" in done.stderr, done.stderr
    assert made.exec("true").returncode == 0


@both
@pytest.mark.parametrize("kind, level", [("closed_t", LEVEL), ("no_such_t", LEVEL), ("container_t", "s0:c9"), ("container_t", "x")])
def test_a_label_that_cannot_be_had(runtime, bundle, kind, level):
    """That nothing is left is seen by the fixture of the runtime."""
    made = bundle("true")
    label(kind, level)(made.config)
    done = runtime("run", "--bundle", made.save().path, "refused")
    error = "ermission denied" if kind == "closed_t" else "nvalid argument"
    assert done.returncode == 1 and error in done.stderr, done.stderr
    if runtime.name == "chiton":
        doing = "set process label" if kind == "closed_t" else "is not a label that this host's policy knows"
        assert doing in done.stderr and f"{kind.replace('container', 'machine')}:{level}" in done.stderr, done.stderr
    assert runtime.status("refused") is None


@only_chiton
def test_a_pod_has_one_level(runtime, container, member, bundle):  # noqa: F811
    pod = container("sleep", "1000", change=label())
    first = member(pod, "sleep", "1000", change=label("other_t"))
    second = member(pod, "sleep", "1000", change=label("", files=""))
    assert [label_of(each.pid) for each in (pod, first, second)] == [own(runtime), f"u:r:other_t:{LEVEL}", own(runtime)]
    assert [each.output("echo", "here") for each in (first, second)] == ["here\n"] * 2
    assert [file_label(runtime.root / each.name / "journal") for each in (first, second)] == [FILES] * 2
    assert detached(second) == own(runtime)
    code, found = audited(first)
    assert code == 0 and {verdict for verdict, _ in found} == {"ok"} and len(found) == 4
    made = bundle("true")
    joining(pod.pid, *SHARED, change=label(level=OTHER))(made.config)
    done = runtime("run", "--bundle", made.save().path, "apart")
    assert done.returncode == 1 and "process.selinuxLabel" in done.stderr and "another SELinux level" in done.stderr, done.stderr
    assert alive(pod.pid)


@only_chiton
def test_without_a_label_it_is_the_callers(runtime, container):
    made = container("sleep", "1000")
    assert label_of(made.pid) == label_of("self")
    assert audited(made) == (0, [("note", "no label was asked for; it has u:r:host_t:s0")])


@only_chiton
def test_what_is_said_of_it(runtime, bundle):
    assert json.loads(runtime.ok("features"))["linux"]["selinux"] == {"enabled": True}
    made = bundle("true")
    label()(made.config)
    ledger = runtime.ok("explain", "--bundle", made.save().path)
    assert re.search(r"process\.selinuxLabel +host", ledger) and re.search(r"linux\.mountLabel +host", ledger), ledger
    contexts = pathlib.Path("/etc/selinux/test/contexts/lxc_contexts")
    said = [line for line in runtime("check").stdout.splitlines() if "SELinux" in line]
    assert said == []
    try:
        contexts.write_text(CONTEXTS)
        assert "SELinux has no type for machines" in runtime("check").stdout
        contexts.write_text(CONTEXTS + KVM.replace("machine_t", "no_such_t"))
        assert 'SELinux labels cannot be applied: "u:r:no_such_t:s0" is not a label' in runtime("check").stdout
    finally:
        contexts.write_text(CONTEXTS + KVM)
