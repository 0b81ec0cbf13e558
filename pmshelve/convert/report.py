"""What a conversion did, or would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BAD_MAX", "BadEntry", "Report"]

BAD_MAX = 100
"""Bad entries that a report names; all are counted."""


@dataclass(frozen=True)
class BadEntry:
    """An entry that was not converted.

    Attributes
    ----------
    key
        As `repr` shows it, shortened.
    problem
        Why, in one sentence.
    """

    key: str
    problem: str


@dataclass
class Report:
    """What a conversion did, or would do.

    Attributes
    ----------
    source, destination
        The names, as they were given.
    kind
        What the source is: one of `KINDS`.
    to, face
        The store of the new file, and the door it is for.
    entries
        How many were converted, or could be.
    bytes
        Of their keys and values, where these are bytes, text, arrays or pickles.
    pickles
        How many values are moved as pickles, unopened.
    left_out
        Entries, or things about them, that are not moved on purpose: what, and how many.
    bad_count, bad
        How many could not be converted; the first of them.
    verified
        How many were read back from the new file and found to be what the source has.
    unverified
        How many came back as they were written, but could not be compared with the source's: these
        objects pickle differently each time.
    written
        Whether the new file is there.
    size
        Of the new file, in bytes.
    notes
        What had better be known.
    """

    source: str
    destination: str
    kind: str
    to: str
    face: str
    entries: int = 0
    bytes: int = 0
    pickles: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    bad_count: int = 0
    bad: list[BadEntry] = field(default_factory=list)
    verified: int = 0
    unverified: int = 0
    written: bool = False
    size: int = 0
    notes: list[str] = field(default_factory=list)

    def add_bad(self, key: object, problem: str) -> None:
        """Count an entry that cannot be converted."""
        self.bad_count += 1
        if len(self.bad) < BAD_MAX:
            shown = repr(key)
            shown = shown if len(shown) <= 200 else shown[:197] + "..."
            self.bad.append(BadEntry(shown, " ".join(problem.split())))

    def as_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, text and numbers, for JSON."""
        return asdict(self)
