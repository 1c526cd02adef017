"""What crun's tests need of libmount's Python binding, which Debian does not have: entries of a mountinfo file (proc_pid_mountinfo(5))."""


class Entry:
    def __init__(self, line):
        fields, _, rest = line.partition(" - ")
        fields, rest = fields.split(" "), rest.split(" ")
        self.root, self.target, self.vfs_options = fields[3:6]
        self.opt_fields = " ".join(fields[6:])
        self.fstype, self.source, self.fs_options = (rest + ["", "", ""])[:3]


class Table:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.entries = [Entry(line.rstrip("\n")) for line in file if " - " in line]

    def find_target(self, target):
        """The last mount at `target`, which is the one that shows; None if there is none."""
        found = [entry for entry in self.entries if entry.target == target]
        return found[-1] if found else None
