"""Figures by name and runtime, and the table of them."""

import json
import pathlib
import statistics

# Runs whose figures lie further apart than this are marked, and the reason is given.
AGREEMENT = 0.005


class Figures:
    """Figures by name, with every run's value."""

    def __init__(self):
        self.values = {}

    def add(self, name, runtime, runs, unit="M"):
        self.values.setdefault(name, {"unit": unit, "of": {}})["of"][runtime] = runs

    def add_counts(self, name, runtime, counts):
        """Instructions, and beside them the time in which none were executed."""
        self.add(name, runtime, [count.busy for count in counts])
        self.add(f"{name}, idle", runtime, [count.idle for count in counts])

    def add_exits(self, what, runtime, counted, reasons=8):
        self.add(f"{what}: VM exits", runtime, [counted.total], "")
        self.add(f"{what}: VM exits to user space", runtime, [counted.user], "")
        for reason, count in sorted(counted.reasons.items(), key=lambda item: -item[1])[:reasons]:
            self.add(f"{what}: VM exits, {reason}", runtime, [count], "")

    def save(self, path):
        pathlib.Path(path).write_text(json.dumps(self.values, indent=1) + "\n")

    def print(self, runtimes):
        width = max(map(len, self.values)) + 2
        print(f"{'':{width}}" + "".join(f"{name:>22}" for name in runtimes))
        for name, figure in self.values.items():
            cells = [_cell(figure["of"].get(runtime)) for runtime in runtimes]
            if any(cells):
                print(f"{name:{width}}" + "".join(f"{cell:>22}" for cell in cells) + f"  {figure['unit']}")


def spread(runs):
    middle = statistics.median(runs)
    return (max(runs) - min(runs)) / middle if middle else 0


def _cell(runs):
    if not runs:
        return ""
    middle = statistics.median(runs)
    text = f"{middle}" if isinstance(middle, int) else f"{middle:.2f}" if middle >= 1 else f"{middle:.4f}"
    apart = spread(runs)
    return text + (f" (±{50 * apart:.1f}%)" if apart > 2 * AGREEMENT else "")
