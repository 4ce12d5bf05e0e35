"""How many seconds each part of `make gpu-check` gets, from estimates that every run corrects."""
import contextlib
import dataclasses
import json
import os
from pathlib import Path

MARGIN = 1.2  # time reserved for a part, relative to the last run


@dataclasses.dataclass
class Part:
    """Seconds: `estimate` is used before the first run; with less than `least` left the part is not
    started; `most` is its limit even if there is more time."""
    run: object
    estimate: float
    least: float
    most: float


class Estimates:
    """Seconds that each part took, by GPU, in a small file beside the reports."""

    NAME = "estimates.json"

    def __init__(self, folders, gpu):
        self.path = Path(folders[0]) / self.NAME
        self.gpu = gpu
        self.known = {}
        for folder in reversed(folders):  # the file beside the report is the newest
            with contextlib.suppress(OSError, ValueError):
                for name, seconds in json.loads((Path(folder) / self.NAME).read_text(encoding="utf-8")).items():
                    self.known.setdefault(name, {}).update(seconds)

    def seconds(self, name, part):
        return MARGIN * self.known.get(self.gpu, {}).get(name, part.estimate)

    def correct(self, name, part, seconds, complete):
        """A part that was stopped needs more than it had: at least half as much again."""
        mine = self.known.setdefault(self.gpu, {})
        mine[name] = round(seconds if complete else max(mine.get(name, part.estimate), 1.5 * seconds), 1)
        partial = self.path.with_name(self.NAME + ".partial")
        partial.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def limit_of(name, part, left, later, estimates, asked=None):
    """Seconds that part `name` gets of the `left` ones, or 0 if they are too few. The parts in `later`,
    (name, part) in order, keep what they need as long as all of it fits."""
    most = asked or part.most
    mine = estimates.seconds(name, part)
    kept = 0
    for other, needs in later:
        seconds = estimates.seconds(other, needs)
        kept += seconds if mine + kept + seconds <= left else 0
    limit = min(most, left, max(mine, left - kept))
    return limit if limit >= min(part.least, most) else 0
