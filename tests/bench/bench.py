"""The benchmark: what containers cost, counted and not timed. Run by `make bench` in the lab under instruction counting.

    bench.py [--only SUBJECT,...] OUT.json ROOTFS.tar PROGRAMS CHITON [NAME=RUNTIME...]

All runtimes go through the same verbs in one run of the lab. Figures are millions of instructions (k: thousands), of the host and of
the guests together; time in which nothing is executed is given apart, in the same unit (a microsecond of the lab's clock is a thousand
instructions). All that is measured lies on a tmpfs, and the first run of everything is not counted. PROGRAMS has what is compiled from
the C files beside this one.
"""

import argparse
import pathlib
import shutil
import tempfile

from verbs import Verbs  # noqa: I001, it makes the modules of tests/e2e known

import files
import memory
import running
import starts
from figures import Figures
from host import Host

SUBJECTS = {"starts": starts, "running": running, "files": files, "memory": memory}
# The lab under instruction counting stands still at times while `files` runs: it is measured when it is asked for.
USUAL = [name for name in SUBJECTS if name != "files"]


def main():
    arguments = parse()
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    host = Host(work / "host")
    figures = Figures()
    names = []
    try:
        host.unpack(arguments.rootfs)
        files.prepare(host, [path for path in pathlib.Path(arguments.programs).iterdir() if path.is_file()])
        for runtime in arguments.runtimes:
            name, _, binary = runtime.rpartition("=")
            verbs = Verbs(host, name or "chiton", binary)
            names.append(verbs.name)
            for subject in arguments.only:
                SUBJECTS[subject].measure(verbs, figures)
    finally:
        host.remove()
        shutil.rmtree(work)
        if figures.values:
            figures.print(names)
            figures.save(arguments.out)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=subjects, default=USUAL, metavar="SUBJECT,...", help=f"of {', '.join(SUBJECTS)}; {', '.join(USUAL)} if not given")
    parser.add_argument("out")
    parser.add_argument("rootfs")
    parser.add_argument("programs")
    parser.add_argument("runtimes", nargs="+")
    return parser.parse_args()


def subjects(text):
    names = text.replace(",", " ").split() or USUAL
    unknown = set(names) - set(SUBJECTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such subject: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    main()
