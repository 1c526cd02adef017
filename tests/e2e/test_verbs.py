"""Verbs and flags: exit codes, the shape of what is printed, and runc's words, which callers match. Each text here is what runc prints."""

import json
import pathlib
import re
import time

from chiton import both, ended, only_chiton, subreaper, wait_for

VERBS = {"create": 1, "run": 1, "start": 1, "state": 1, "delete": 1, "pause": 1, "resume": 1, "update": 1, "events": 1,
         "checkpoint": 1, "restore": 1, "exec": None, "kill": None, "ps": None, "list": 0, "features": 0}

# Prints as long as it runs, so that what is suspended can be told.
TICK = ("sh", "-c", "while sleep 0.02; do echo tick; done")


def words(text, runtime):
    """A message without what the log format adds, and without the program's name."""
    found = re.fullmatch(r'time="[^"]+" level=error msg=(".*")', text)
    text = json.loads(found[1]) if found else text
    return re.sub(rf"^({runtime.binary}|{runtime.name})( \w+ failed)?: ", r"RUNTIME\2: ", text.strip())


def said(done, runtime):
    """The exit code and the last message."""
    lines = done.stderr.strip().splitlines()
    return done.returncode, words(lines[-1], runtime) if lines else ""


def check(runtime, table):
    """Runs each call; its exit code and message must be those of the table. All that are wrong are told at once."""
    wrong = []
    for line, code, text in table:
        args = line if isinstance(line, tuple) else line.split()
        found = said(runtime(*args), runtime)
        if found != (code, text):
            wrong.append((args, found, (code, text)))
    assert wrong == []


@both
def test_wrong_usage(runtime):
    table = [("frob", 3, "No help topic for 'frob'"),
             ("--frob list", 1, "flag provided but not defined: -frob"),
             ("-frob=1 list", 1, "flag provided but not defined: -frob"),
             ("list -quiet=frob", 1, 'invalid boolean value "frob" for -quiet: parse error'),
             ("create --bundle", 1, "flag needs an argument: -bundle"),
             ("kill a b c", 1, 'RUNTIME: "kill" requires a maximum of 2 argument(s)'),
             # After the operand, too, a flag has to be one that there is.
             ("state x --frob", 1, 'RUNTIME: "state" requires exactly 1 argument(s)')]
    for verb, exactly in VERBS.items():
        demand = "a minimum of 1" if exactly is None else f"exactly {exactly}"
        table.append((f"{verb} --frob x", 1, "flag provided but not defined: -frob"))
        if exactly != 0:
            table.append((verb, 1, f'RUNTIME: "{verb}" requires {demand} argument(s)'))
        if exactly is not None:
            table.append((f"{verb} x" + " y" * exactly, 1, f'RUNTIME: "{verb}" requires {demand} argument(s)'))
    check(runtime, table)
    assert said(runtime("--root"), runtime) == (1, "flag needs an argument: -root")
    for args, text in ((("--log-format", "xml", "list"), "invalid log-format: xml"), (("list", "--format", "xml"), "invalid format option"),
                       (("update", "--pids-limit", "x", "c"), 'invalid value "x" for flag -pids-limit: parse error')):
        assert said(runtime(*args), runtime) == (1, text)


# Every flag of runc 1.2 (--root is in every call) with a value that it takes; None for one without. "+": Debian's runc does not have it yet.
FLAGS = {
    "": "log=/dev/null log-format=json debug systemd-cgroup criu=/no/such rootless=auto",
    "create": "bundle=/no/such b=/no/such console-socket=/no/such pidfd-socket=/no/such+ pid-file=/no/such no-pivot no-new-keyring preserve-fds=0",
    "run": "bundle=/no/such b=/no/such console-socket=/no/such pidfd-socket=/no/such+ pid-file=/no/such no-pivot no-new-keyring preserve-fds=0 "
           "detach d keep no-subreaper",
    "start": "", "state": "", "pause": "", "resume": "", "features": "",
    "exec": "console-socket=/no/such pidfd-socket=/no/such+ cwd=/ env=A=b e=A=b tty t user=1:2 u=1 additional-gids=5 g=5 process=/no/such p=/no/such detach d "
            "pid-file=/no/such process-label=x apparmor=x no-new-privs cap=CAP_KILL c=CAP_KILL preserve-fds=0 cgroup=x ignore-paused",
    "kill": "all a", "delete": "force f", "list": "format=json f=table quiet q", "ps": "format=json f=table",
    "update": "blkio-weight=10 cpu-period=1000 cpu-quota=1000 cpu-burst=1+ cpu-share=2 cpu-idle=1+ cpu-rt-period=1 "
              "cpu-rt-runtime=1 cpuset-cpus=0 cpuset-mems=0 memory=64m memory-reservation=1m memory-swap=1g kernel-memory=1 "
              "kernel-memory-tcp=1 pids-limit=5 l3-cache-schema=x mem-bw-schema=x resources=/no/such r=/no/such",
    "events": "interval=1s stats", "spec": "bundle=/no/such b=/no/such rootless",
    "checkpoint": "image-path=/dev/null/x work-path=/dev/null/x parent-path=no/such leave-running tcp-established tcp-skip-in-flight+ link-remap+ ext-unix-sk "
                  "shell-job lazy-pages status-fd=1 page-server=1.2.3.4:5 file-locks pre-dump manage-cgroups-mode=soft "
                  "empty-ns=network auto-dedup",
    "restore": "bundle=/no/such b=/no/such image-path=/dev/null/x work-path=/dev/null/x detach d pid-file=/no/such console-socket=/no/such no-subreaper no-pivot "
               "lsm-profile=apparmor:x lsm-mount-context=x tcp-established ext-unix-sk shell-job file-locks manage-cgroups-mode=soft "
               "empty-ns=network auto-dedup lazy-pages",
}

# What is asked of each verb beside the flag: what follows it, the exit code, and what is said if all runtimes say the same.
ASKED = {"": ("list", 0, ""), "create": ("-b /no/such x", 1, None), "run": ("-b /no/such x", 1, None),
         "exec": ("missing true", 255, "exec failed: container does not exist"), "list": ("", 0, ""), "features": ("", 0, ""),
         "spec": ("-b /no/such", 1, None), "checkpoint": ("missing", 1, None), "restore": ("-b /no/such x", 1, None)}


@both
def test_every_flag_of_every_verb(runtime):
    """Each is understood, in both ways to write it, and what is wrong with its value is said in runc's words."""
    runtime.root.mkdir(exist_ok=True)
    assert set(FLAGS) - {""} == set(VERBS) | {"spec"}
    wrong = []

    def expect(line, code, text):
        found = said(runtime(*line.split()), runtime)
        undefined = "flag provided but not defined" in found[1]
        if found[0] != code or undefined or (text is not None and found[1] != text):
            wrong.append((line, found, (code, text)))

    for verb, flags in FLAGS.items():
        rest, code, text = ASKED.get(verb, ("missing", 1, "container does not exist"))
        expect(f"{verb} {rest}", code, text)
        for flag in flags.split():
            if flag.endswith("+") and runtime.name == "runc":
                continue
            name, _, value = flag.rstrip("+").partition("=")
            forced = (verb, name) in {("delete", "force"), ("delete", "f")}
            # The flags of exec are read before the container is looked for, one way or the other.
            outcome = (0, "") if forced else (code, text)
            if value:
                expect(f"{verb} --{name} {value} {rest}", *outcome)
                expect(f"{verb} --{name}", 1, f"flag needs an argument: -{name}")
            else:
                expect(f"{verb} -{name}=true {rest}", *outcome)
                expect(f"{verb} --{name}=frob {rest}", 1, f'invalid boolean value "frob" for -{name}: parse error')
    assert wrong == []


@both
def test_ids_that_are_not_there(runtime, bundle):
    made = bundle("true").save()
    missing = "container does not exist"
    table = [(f"{verb} missing", 1, missing) for verb in
             ("start", "state", "delete", "pause", "resume", "events", "events --stats", "ps", "kill",
              "kill --all", "update", "checkpoint")]
    table += [("kill missing FROB", 1, missing), ("delete --force missing", 0, ""), ("delete -f missing", 0, ""),
              ("exec missing true", 255, f"exec failed: {missing}")]
    for name in ("a/b", "..", ".", "sp ace", "", "a\nb", "é"):
        text = "invalid container ID format" if name else "container id cannot be empty"
        table += [(("state", name), 1, text), (("kill", name, "9"), 1, text), (("exec", name, "true"), 255, f"exec failed: {text}"),
                  (("create", "--bundle", str(made.path), name), 1, f"RUNTIME create failed: {text}"),
                  (("run", "--bundle", str(made.path), name), 1, f"RUNTIME run failed: {text}")]
    check(runtime, table)
    for verb in ("create", "run"):
        done = runtime(verb, "--bundle", "/no/such", "x")
        code, text = said(done, runtime)
        assert code == 1 and text.startswith(f"RUNTIME {verb} failed: ") and "/no/such" in text
        assert "no such file or directory" in text.lower()


def ticks(c):
    """Whether its program runs: it prints while we look."""
    output = c.bundle.path / "output"
    size = output.stat().st_size
    time.sleep(0.3)
    return output.stat().st_size != size


def test_each_status_allows_its_verbs(runtime, container, bundle):
    c = container(*TICK, verb=("create",))
    name = c.name
    again = ("create", "--bundle", bundle("true").save().path, name)
    exists = (again, 1, "RUNTIME create failed: container with given ID already exists")
    unknown = (f"kill {name} FROB", 1, 'unknown signal "FROB"')
    not_paused = (f"resume {name}", 1, "container not paused")
    assert c.status == "created"
    check(runtime, [exists, unknown, not_paused, (f"kill {name} 0", 0, "")])
    assert not ticks(c)

    c.verb("start")
    assert c.status == "running"
    check(runtime, [
        exists, unknown, not_paused, (f"kill {name} 0", 0, ""),
        (f"start {name}", 1, "cannot start an already running container"),
        (f"delete {name}", 1, f"cannot delete container {name} that is not stopped: running")])
    wait_for(lambda: ticks(c))

    c.verb("pause")
    assert (c.status, runtime.state(name)["pid"]) == ("paused", c.pid)
    wait_for(lambda: not ticks(c), 5)
    check(runtime, [
        exists, unknown, (f"kill {name} 0", 0, ""),
        (f"start {name}", 1, "cannot start a container in the paused state"),
        (f"pause {name}", 1, "container not running"),
        (f"delete {name}", 1, f"cannot delete container {name} that is not stopped: paused"),
        (f"exec {name} true", 255,
         "exec failed: cannot exec in a paused container (use --ignore-paused to override)")])
    # What is asked of a paused container lets none of its processes go on.
    output = c.bundle.path / "output"
    size = output.stat().st_size
    for _ in range(5):
        c.verb("ps", "--format=json")
        json.loads(c.verb("events", "--stats"))
    assert output.stat().st_size == size and c.status == "paused"

    c.verb("resume")
    assert c.status == "running" and ticks(c)
    c.verb("pause")
    c.verb("kill", "KILL")
    c.ends()
    assert runtime.state(name)["pid"] == 0
    check(runtime, [
        exists, unknown, not_paused,
        (f"start {name}", 1, "cannot start a container that has stopped"),
        (f"kill {name}", 1, "container not running"),
        (f"kill {name} 0", 1, "container not running"),
        (f"kill --all {name} KILL", 0, ""),
        (f"pause {name}", 1, "container not running"),
        (f"update --pids-limit 7 {name}", 1, "container not running"),
        (f"events --stats {name}", 1, f"container with id {name} is not running"),
        (f"events {name}", 1, f"container with id {name} is not running"),
        (f"exec {name} true", 255, "exec failed: cannot exec in a stopped container")])
    assert json.loads(c.verb("ps", "--format=json")) in ([], None)  # runc prints null
    assert c.verb("ps").split()[:2] == ["UID", "PID"]
    c.verb("delete")
    assert c.status is None


def test_a_created_container_can_be_paused_and_deleted(container):
    c = container("true", verb=("create",))
    c.verb("pause")
    assert c.status == "paused"
    c.verb("resume")
    assert c.status == "created"
    c.verb("delete")
    assert c.status is None


def test_state_and_list(runtime, container):
    runtime.root.mkdir(exist_ok=True)  # One that is missing is an error, as in newer versions of runc.
    assert runtime.ok("list", "--quiet") == ""
    header = "ID PID STATUS BUNDLE CREATED OWNER"
    assert runtime.ok("list").split() == header.split()
    # runc 1.1 prints null, which is no list.
    assert json.loads(runtime.ok("list", "--format", "json")) in ([], None)

    def annotated(config):
        config["annotations"] = {"org.example.key": "value"}
    created = container("true", verb=("create",))
    running = container("sleep", "1000", change=annotated)
    state = runtime.state(running.name)
    assert set(state) == {"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"}
    assert state | {"ociVersion": 0, "created": 0, "owner": 0} == {
        "ociVersion": 0, "id": running.name, "pid": running.pid, "status": "running", "bundle": str(running.bundle.path),
        "rootfs": running.bundle.config["root"]["path"], "created": 0, "annotations": {"org.example.key": "value"}, "owner": 0}
    assert re.fullmatch(r"1\.\d+\.\d+(-dev)?", state["ociVersion"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", state["created"])
    assert "annotations" not in runtime.state(created.name)

    names = [created.name, running.name]
    listed = json.loads(runtime.ok("list", "-f", "json"))
    assert sorted(c["id"] for c in listed) == sorted(names)
    assert {tuple(sorted(c)) for c in listed} == {tuple(sorted(state)), tuple(sorted(set(state) - {"annotations"}))}
    assert [c["owner"] for c in listed] == ["root"] * 2
    assert sorted(runtime.ok("list", "-quiet").split()) == sorted(names)
    assert runtime.ok("list", "--quiet=true") == runtime.ok("list", "-q", "--format", "table")
    table = runtime.ok("list", "--quiet=false").splitlines()
    # The columns are where runc has them: each as wide as its longest entry, three spaces between.
    assert [line.split()[:4] for line in table[1:]] == [
        [c["id"], str(c["pid"]), c["status"], c["bundle"]] for c in listed]
    width = max(12, len(str(running.bundle.path)) + 3)
    assert table[0].index("CREATED") - table[0].index("BUNDLE") == width
    assert {line.rindex("root") for line in table[1:]} == {table[0].index("OWNER")}


def test_ps(runtime, container):
    c = container("sh", "-c", "sleep 1000 & wait")
    commands = ["sh -c sleep 1000 & wait", "sleep 1000"]

    def table(*options):
        return [line.split(None, 7) for line in runtime.ok("ps", c.name, *options).splitlines()]
    wait_for(lambda: sorted(line[7] for line in table()[1:]) == commands)
    assert table()[0] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    # The operands are ps(1)'s own.
    chosen = [line.split(None, 1) for line in runtime.ok("ps", c.name, "-o", "pid,args").splitlines()]
    assert chosen[0][0] == "PID" and sorted(line[1] for line in chosen[1:]) == commands
    pids = json.loads(runtime.ok("ps", "--format=json", c.name))
    # The numbers are for callers that look for them on the host. There chiton has one process, the machine.
    assert pids == [c.pid] if runtime.name == "chiton" else sorted(pids) == sorted(int(line[1]) for line in table()[1:])


def test_logs(runtime, scratch):
    """containerd reads the last line of the log; conmon shows standard error."""
    log = scratch / f"log-{runtime.name}"
    for args, code, text in (("state x", 1, "container does not exist"), ("frob", 3, "No help topic for 'frob'"),
                             ("exec x true", 255, "exec failed: container does not exist"),
                             ("state", 1, 'RUNTIME: "state" requires exactly 1 argument(s)')):
        before = log.stat().st_size if log.exists() else 0
        for flags in (("--log", log, "--log-format", "json"), (f"-log={log}", "-log-format=json", "--debug=false")):
            done = runtime(*flags, *args.split())
            assert said(done, runtime) == (code, text)
            last = json.loads(log.read_text().splitlines()[-1])
            assert set(last) == {"level", "msg", "time"} and last["level"] == "error"
            assert words(last["msg"], runtime) == text
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", last["time"])
        done = runtime("--log", log, *args.split())
        assert said(done, runtime) == (code, text)
        assert words(log.read_text().splitlines()[-1], runtime) == text
        assert log.stat().st_size > before  # appended to
    code, text = said(runtime("--log", "/no/such", "list"), runtime)
    assert code == 1 and text.lower().startswith("open /no/such: no such file or directory")


def test_flags_may_follow_the_operand(chiton, bundle, scratch):
    """So crun and newer callers have it; runc 1.1 takes what follows the first operand for another one, as chiton does for exec and ps."""
    pid_file = scratch / "after"
    chiton.ok("create", "after", "-bundle", bundle("true").save().path, "--pid-file", pid_file, "--no-pivot",
              "--no-new-keyring=true", stdout=None, stderr=None)
    assert chiton.state("after")["pid"] == int(pid_file.read_text())
    chiton.ok("delete", "after", "--force=false")
    chiton.ok("delete", "after", "--force")


def test_version_features_and_help(runtime):
    for flag in ("--version", "-v", "-version"):
        lines = runtime.ok(flag).splitlines()
        assert re.fullmatch(rf"{runtime.name} version \d+\.\d+\.\d+\S*", lines[0])
        assert lines[1].startswith("commit: ") and re.fullmatch(r"spec: \d+\.\d+\.\d+(-dev)?", lines[2])
        if runtime.name == "chiton":
            assert len(lines) == 3
    features = json.loads(runtime.ok("features"))
    assert {"ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "linux"} <= set(features)
    assert features["ociVersionMin"] == "1.0.0"
    assert {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} == set(features["hooks"])
    assert {"ro", "rbind", "nosuid", "rprivate"} <= set(features["mountOptions"])
    linux = features["linux"]
    assert {"pid", "network", "ipc", "uts", "mount", "cgroup", "user", "time"} >= set(linux["namespaces"]) >= {"pid", "network", "mount"}
    assert {"CAP_KILL", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"} <= set(linux["capabilities"])
    assert linux["cgroup"]["v2"] is True and linux["seccomp"]["enabled"] is True
    assert {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"} <= set(linux["seccomp"]["actions"])
    assert {"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"} <= set(linux["seccomp"]["operators"])
    assert "SCMP_ARCH_X86_64" in linux["seccomp"]["archs"]
    for args in ((), ("help",), ("--help",), ("state", "--help"), ("exec", "-h")):
        done = runtime(*args)
        assert done.returncode == 0 and "usage" in done.stdout.lower() and done.stderr == ""


def test_spec(runtime, scratch):
    path = scratch / f"spec-{runtime.name}"
    path.mkdir()
    runtime.ok("spec", "--bundle", path)
    config = json.loads((path / "config.json").read_text())
    assert {"ociVersion", "process", "root", "hostname", "mounts", "linux"} <= set(config)
    check(runtime, [(("spec", "--bundle", path), 1, "File config.json exists. Remove it first")])
    assert json.loads((path / "config.json").read_text()) == config


@only_chiton
def test_there_is_no_checkpointing(runtime, container):
    c = container("sleep", "1000")
    for args in (("checkpoint", "--image-path", "/tmp", c.name), ("restore", "--bundle", c.bundle.path, "x")):
        code, text = said(runtime(*args), runtime)
        assert code == 1 and args[0] in text and "not supported" in text
    assert c.status == "running"


@only_chiton
def test_a_state_root_that_is_not_there(runtime):
    """runc 1.1 makes it, newer ones say that it is not there."""
    code, text = said(runtime("list"), runtime)
    assert code == 1 and str(runtime.root) in text and "no such file" in text.lower()
    assert not runtime.root.exists()


@only_chiton
def test_a_paused_container_takes_no_cpu(container):
    c = container("sh", "-c", "while :; do :; done")

    def used():
        fields = pathlib.Path(f"/proc/{c.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, proc(5)

    busy = used()
    wait_for(lambda: used() > busy)
    c.verb("pause")
    before = used()
    time.sleep(1)
    assert used() == before
    c.verb("resume")
    wait_for(lambda: used() > before)


def test_run_in_the_foreground(runtime, bundle):
    for program, code in (("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$; exit 3", 3)):
        done = runtime("run", "--bundle", bundle("sh", "-c", f"echo out; echo err >&2; {program}").save().path, "fore")
        assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")
        assert runtime.status("fore") is None
    made = bundle("sh", "-c", "exit 9").save()
    done = runtime("run", "--keep", "--bundle", made.path, "kept")
    assert done.returncode == 9 and runtime.status("kept") == "stopped"
    runtime.ok("delete", "kept")
    with subreaper():
        runtime.ok("run", "-d", "-b", made.path, "--pid-file", made.path / "pid", "kept", stdout=None, stderr=None)
        assert ended(int((made.path / "pid").read_text())) == 9
    runtime.ok("delete", "kept")
