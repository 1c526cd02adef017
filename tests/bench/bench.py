"""The benchmark: what containers cost, counted and not timed. Run by `make bench` in the lab under instruction counting.

    bench.py [--only SUBJECT,...] [--vmm NAME=SCRIPT --kernel VMLINUX] OUT.json ROOTFS.tar PROGRAMS CHITON [NAME=RUNTIME...]

All runtimes go through the same verbs in one run of the lab. Figures are millions of instructions (k: thousands), of the host and of
the guests together; time in which nothing is executed is given apart, in the same unit (a microsecond of the lab's clock is a thousand
instructions). All that is measured lies on a tmpfs, and the first run of everything is not counted. PROGRAMS has what is compiled from
the C files beside this one.
"""

import argparse
import pathlib
import shutil
import sys
import tempfile

from verbs import Verbs  # noqa: I001, it makes the modules of tests/e2e known

import cache
import clients
import files
import memory
import pods
import running
import starts
import tcp
import vmms
from figures import Figures
from host import Host

SUBJECTS = {"starts": starts, "pods": pods, "running": running, "clients": clients, "tcp": tcp, "files": files, "memory": memory, "cache": cache}
# Measured when all else has been: beside much page cache of a disk, mapped programs of all runtimes were seen to take more faults.
LAST = ["cache"]


def main():
    arguments = parse()
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    host = Host(work / "host")
    figures = Figures()
    names, runtimes = [], []

    def measure(verbs, subjects):
        for subject in subjects:
            print(f"{verbs.name}: {subject}", file=sys.stderr)
            SUBJECTS[subject].measure(verbs, figures)
            figures.save(arguments.out)

    try:
        host.unpack(arguments.rootfs)
        programs = [path for path in pathlib.Path(arguments.programs).iterdir() if path.is_file()]
        files.prepare(host, programs)
        for program in programs:
            host.install(program)
        for runtime in arguments.runtimes:
            name, _, binary = runtime.rpartition("=")
            verbs = Verbs(host, name or "chiton", binary)
            names.append(verbs.name)
            runtimes.append(verbs)
            measure(verbs, [each for each in arguments.only if each not in LAST])
            if arguments.vmm and verbs.name == "chiton":
                vmms.chiton(verbs, figures)
        if arguments.vmm:
            vmms.prepare(host, arguments.kernel, pathlib.Path(arguments.programs))
        for vmm in arguments.vmm:
            name, _, script = vmm.partition("=")
            names.append(name)
            vmms.Monitor(host, name, script).measure(figures)
        for verbs in runtimes:
            measure(verbs, [each for each in arguments.only if each in LAST])
    finally:
        if figures.values:
            figures.print(names)
            figures.save(arguments.out)
        host.remove()
        shutil.rmtree(work)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=subjects, default=[*SUBJECTS], metavar="SUBJECT,...", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--vmm", action="append", default=[], metavar="NAME=SCRIPT", help="see vmms.py")
    parser.add_argument("--kernel", metavar="VMLINUX", help="what virtual machine monitors boot")
    parser.add_argument("out")
    parser.add_argument("rootfs")
    parser.add_argument("programs")
    parser.add_argument("runtimes", nargs="+")
    return parser.parse_args()


def subjects(text):
    names = text.replace(",", " ").split() or [*SUBJECTS]
    unknown = set(names) - set(SUBJECTS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such subject: {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    main()
