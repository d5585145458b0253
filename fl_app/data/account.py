"""What was read of a data set and what was not, in one line: nothing is lost unsaid."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fl_app.data.tree import AGAIN, BROKEN, SPECIAL, UNREAD

_SINGLE = {
    BROKEN: "link into nowhere",
    AGAIN: "link to a folder read",
    SPECIAL: "special file",
}
WARN_ABOVE = 0.05
"""Share of the files that may be passed over without a warning."""


@dataclass
class Account:
    """Grows while a data set is read; `line` says it."""

    num_images: int = 0
    num_classes: int = 0
    num_splits: int = 1
    num_owners: int = 0
    num_leftovers: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of files by kind: a suffix, or words."""
    notes: list[str] = field(default_factory=list)
    """Decisions that the owner should know of."""
    done: Counter[str] = field(default_factory=Counter)
    """Number of images by what was done to them, in words."""
    cautions: list[str] = field(default_factory=list)
    """What is odd enough for a warning."""

    def line(self) -> str:
        """Return all of it as one line."""
        parts = [
            f"read {_counted(self.num_images, 'image')} of "
            f"{_counted(self.num_classes, 'class', 'classes')} from "
            + _counted(self.num_splits, "split")
            + (f" of {_counted(self.num_owners, 'client')}" if self.num_owners else "")
        ]
        if number := self.passed_over.total():
            parts.append(
                f"passed over {_counted(number, 'file')}: "
                + kinds(self.passed_over, helpful=False)
            )
        if self.num_leftovers:
            parts.append(
                f"{_counted(self.num_leftovers, 'leftover')} of operating systems"
            )
        return "; ".join([*parts, *self.notes, *said_of(self.done)])

    def warnings(self) -> list[str]:
        """Return what deserves more than a line."""
        number = self.passed_over.total() - self.passed_over[AGAIN]
        found = list(self.cautions)
        unread = {k: n for k, n in self.passed_over.items() if k in UNREAD}
        if number > WARN_ABOVE * (self.num_images + number):
            found.append(
                f"{number:,} of {self.num_images + number:,} files were passed over: "
                + kinds(self.passed_over)
            )
        elif unread:
            found.append(f"files that may hold images are not read: {kinds(unread)}")
        return found


def kinds(numbers: Mapping[str, int], *, helpful: bool = True) -> str:
    """Return numbers of files by kind, with what to do about those that hold images."""
    last = tuple(_SINGLE)
    ordered = sorted(
        numbers.items(), key=lambda item: (item[0] in last, -item[1], item[0])
    )
    found = []
    for kind, number in ordered:
        hint = UNREAD.get(kind) if helpful else None
        named = kind if number > 1 else _SINGLE.get(kind, kind)
        found.append(f"{number:,} {named}" + (f": {hint}" if hint else ""))
    return ", ".join(found)


def said_of(done: Mapping[str, int]) -> Sequence[str]:
    """Return what was done to how many images, the most frequent first."""
    ordered = sorted(done.items(), key=lambda item: (-item[1], item[0]))
    return [f"{what}: {number:,}" for what, number in ordered]


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
