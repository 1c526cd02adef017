"""The suites: what their tests are, how each is pointed at a runtime, and what its output says."""

import collections
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent

# Each test has mounts of its own, shared among themselves as those of a host are.
ISOLATED = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", 'mount --make-rshared / && exec "$@"', "sh"]


class Outcome:
    """What came of one program: `tests` maps what it tested to ok, not ok, skip or todo."""

    def __init__(self, tests, text, code, seconds):
        self.tests, self.text, self.code, self.seconds = tests, text, code, seconds

    @property
    def verdict(self):
        counts = collections.Counter(self.tests.values())
        if self.code is None:
            return "timeout"
        if counts["not ok"] or self.code:
            return "fail"
        if counts["ok"]:
            return "pass"
        return "skip" if counts["skip"] else "empty"

    def record(self):
        return {"verdict": self.verdict, "tests": self.tests, "code": self.code, "seconds": round(self.seconds, 1)}

    def __str__(self):
        counts = collections.Counter(self.tests.values())
        failed = [name for name, verdict in self.tests.items() if verdict == "not ok"]
        numbers = " ".join(f"{counts[verdict]:4} {verdict}" for verdict in ("ok", "not ok", "skip"))
        return f"{self.verdict:8} {numbers} {self.seconds:6.1f} s  {'; '.join(failed)[:400]}"


class Suite:
    """A suite, its checkout and a directory to work in."""

    def __init__(self, checkout, runtime, work):
        self.checkout, self.work = checkout, work
        for name in ("tmp", "bin"):
            (work / name).mkdir()
        # Started from here it is read once, not from the lab's host each time.
        self.runtime = pathlib.Path(shutil.copy2(runtime, work / "bin"))
        self.environment = dict(os.environ, TMPDIR=str(work / "tmp"), RUST_BACKTRACE="0", LANG="C")
        self.cwd = work
        self.prepare()

    def run(self, name, limit, log):
        begun = time.monotonic()
        with open(log, "wb", buffering=0) as log:
            text, code = self.execute(self.command(name, limit), self.limit(limit), log)
        tests = self.tests(name, text)
        return Outcome(tests, text, code, time.monotonic() - begun)

    def limit(self, limit):
        """How long a program may take, if a test may take that long."""
        return limit

    def execute(self, command, limit, log):
        """Output, also to a file as it comes, and exit code of a command with a terminal; None for a command that did not end in time."""
        master, slave = pty.openpty()
        process = subprocess.Popen([*ISOLATED, *command], stdin=slave, stdout=slave, stderr=slave, cwd=self.cwd,
                                   env=self.environment, start_new_session=True)
        os.close(slave)
        output, end = bytearray(), time.monotonic() + limit
        while time.monotonic() < end:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    piece = os.read(master, 1 << 16)
                except OSError:
                    break  # nobody has the terminal any more
                output += piece
                log.write(piece)
            elif process.poll() is not None:
                break  # containers that were left may have it still
        over = process.poll() is None and time.monotonic() >= end
        if over:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.end_leftovers()
        os.close(master)
        text = output.decode(errors="replace").replace("\r\n", "\n")
        return text, None if over else process.returncode

    def end_leftovers(self):
        """Ends what a test left running: processes of the runtime's program, and in its directory."""
        for entry in pathlib.Path("/proc").iterdir():
            try:
                paths = [os.readlink(entry / "exe"), os.readlink(entry / "cwd")] if entry.name.isdigit() else []
            except OSError:
                continue
            if any(path.startswith(f"{self.work}/") for path in paths):
                try:
                    os.kill(int(entry.name), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for entry in (self.work / "tmp").iterdir():
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()

    def numbered(self, lines):
        """Tests by name; names that come again get a number."""
        tests = {}
        for name, verdict in lines:
            unique, number = name, 1
            while unique in tests:
                number += 1
                unique = f"{name} ({number})"
            tests[unique] = verdict
        return tests


class RuntimeTools(Suite):
    """TAP programs that run in the checkout, where the root filesystem's archive is."""

    def prepare(self):
        self.cwd = self.checkout
        self.environment["RUNTIME"] = str(self.runtime)

    def select(self, names):
        return names or sorted(path.stem for path in self.checkout.glob("validation/*/*.t"))

    def command(self, name, _limit):
        return [f"validation/{name}/{name}.t"]

    def tests(self, _name, text):
        found = []
        for match in re.finditer(r"^(ok|not ok)\b[ \d-]*(.*)$", text, re.MULTILINE):
            directive = re.search(r"#\s*(skip|todo)", match[2], re.IGNORECASE)
            verdict = directive[1].lower() if directive else match[1]
            found.append((match[2].split(" # ")[0].strip() or "(no name)", verdict))
        if not found and '"error"' in text:
            # Some programs report a failure as a diagnostic only.
            found.append(("(diagnostic)", "not ok"))
        return self.numbered(found)


class Contest(Suite):
    """One program with groups of tests; a panic in a test ends it, hence a group at a time."""

    def prepare(self):
        for name in ("contest", "runtimetest"):
            shutil.copy2(self.checkout / name, self.work / "bin")
        shutil.copy2(self.checkout / "tests/contest/contest/bundle.tar.gz", self.work)
        # Neither "youki" nor "runc": tests that are known to fail with those are run, too.
        self.environment.update(RUNTIME_KIND="other", REAL_RUNTIME=str(self.runtime))

    def select(self, names):
        return names or subprocess.check_output([self.work / "bin/contest", "list"], cwd=self.cwd, text=True).split()

    def command(self, name, _limit):
        binary = self.work / "bin"
        return [binary / "contest", "run", "--runtime", HERE / "in-turn", "--runtimetest", binary / "runtimetest", "-t", name]

    def tests(self, _name, text):
        lines = re.findall(r"^\d+ / \d+ : (.+?) : (ok|not ok|skipped)", text, re.MULTILINE)
        return {name: "skip" if verdict == "skipped" else verdict for name, verdict in lines}


class Crun(Suite):
    """Python files with a table of tests each."""

    def prepare(self):
        shutil.copytree(self.checkout / "tests", self.work / "tests", symlinks=True)
        shutil.copy2(HERE / "libmount.py", self.work / "tests")
        self.environment.update(INIT=str(self.work / "tests/init"), OCI_RUNTIME=str(HERE / "as-crun"),
                                REAL_RUNTIME=str(self.runtime), CRUN_TESTS=str(self.work / "tests"),
                                PYTHONDONTWRITEBYTECODE="1")
        self.cwd = self.work / "tmp"

    def select(self, names):
        return names or sorted(path.stem for path in (self.work / "tests").glob("test_*.py"))

    def command(self, name, limit):
        file, _, tests = name.partition(":")
        return [HERE / "crun_tests", str(limit), file, *filter(None, tests.split(","))]

    def limit(self, limit):
        """Each test has a limit, which the program sees to."""
        return limit * 100

    def tests(self, _name, text):
        lines = re.findall(r"^(ok|not ok) \d+ - (\S+)(.*)$", text, re.MULTILINE)
        return {test: "skip" if "#SKIP" in rest else verdict for verdict, test, rest in lines}


SUITES = {"runtools": RuntimeTools, "contest": Contest, "crun": Crun}
