"""What a store may hold after a crash: the model that the crash and fault tests compare with.

A content is a tuple of (key, `Value`) pairs in the order of the last set.  A `Step` does something
to a store and says what that does to a content.  `History` notes which steps had begun and which
had returned at each point of a disk's log, and from that which contents may be found there:

* after a kill, the content before or after the step in flight;
* after a power cut, at least everything up to the last step that promised to be on the disk, and
  of each later step all or nothing.  (Not a prefix of them: that is not promised, since a flag in
  an old sector may reach the disk before a new entry does.  What is promised is each by itself.)
  Bytes of large values that were not synced may be spoilt; their type and shape may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.simdisk import Mark, Op
from tests.support.values import same

__all__ = ["Content", "History", "Step", "Value", "Window", "alike", "matches"]

LARGE = 1 << 16


@dataclass(frozen=True, eq=False)
class Value:
    """One value given to one set; another set of an equal value is another `Value`.

    Attributes
    ----------
    spoils
        A power cut may change the value's bytes while it was not synced.
    """

    value: Any
    spoils: bool = False

    def __repr__(self) -> str:
        text = repr(self.value)
        return text if len(text) < 60 else f"{text[:50]}... ({len(text)})"


Content = tuple[tuple[str, Value], ...]


def with_items(content: Content, items: Iterable[tuple[str, Value]]) -> Content:
    """Return the content after keys were set, in this order."""
    found = dict(content)
    for key, value in items:
        found.pop(key, None)
        found[key] = value
    return tuple(found.items())


def without_keys(content: Content, keys: Iterable[str]) -> Content:
    """Return the content after keys were deleted, those that are there."""
    gone = set(keys)
    return tuple(item for item in content if item[0] not in gone)


@dataclass(frozen=True)
class Step:
    """Something to do with a store.

    Parameters
    ----------
    run
        Does it; gets the store's holder, whose `store` it may replace.
    effect
        What becomes of a content.
    durable
        Once it has returned, all changes so far are on the disk.
    loads_raw
        At every instant in between, `pickle.load` of the file as it is, before anybody opened it,
        gives the content before or after.  (A batch publishes its sets first and then turns older
        entries off; a vacuum in place moves bytes about.)
    """

    label: str
    run: Callable[[Any], None]
    effect: Callable[[Content], Content] = field(default=lambda content: content)
    durable: bool = False
    loads_raw: bool = True


@dataclass(frozen=True)
class Window:
    """What is known of a history at one point of the log.

    `durable` counts the steps that are surely on the disk, `returned` those that have returned,
    `begun` those that have begun (at most one more).
    """

    durable: int
    returned: int
    begun: int


class History:
    """Contents before each step, and the points of the log where steps begin and return."""

    def __init__(self, first: Content, steps: list[Step]) -> None:
        self.steps = steps
        self.contents = [first]
        for step in steps:
            self.contents.append(step.effect(self.contents[-1]))
        self._allowed: dict[tuple[int, int], list[Content]] = {}

    def windows(self, ops: list[Op]) -> list[Window]:
        """Return what is known before each operation, and (one more) after the last."""
        durable = returned = begun = 0
        windows = [Window(0, 0, 0)]
        for op in ops:
            if isinstance(op, Mark) and op.label == "begin":
                begun = op.payload + 1
            elif isinstance(op, Mark) and op.label == "end":
                returned = op.payload + 1
                if self.steps[op.payload].durable:
                    durable = returned
            windows.append(Window(durable, returned, begun))
        return windows

    def after_kill(self, window: Window) -> list[Content]:
        """Return the contents that a kill may leave: one, or two."""
        return self.contents[window.returned : window.begun + 1]

    def after_power_cut(self, window: Window) -> list[Content]:
        """Return the contents that a power cut may leave."""
        key = (window.durable, window.begun)
        if key not in self._allowed:
            allowed: dict[frozenset[tuple[str, int]], Content] = {}
            self._note(allowed, self.contents[window.durable])
            for step in self.steps[window.durable : window.begun]:
                for content in list(allowed.values()):
                    self._note(allowed, step.effect(content))
            self._allowed[key] = list(allowed.values())
        return self._allowed[key]

    @staticmethod
    def _note(allowed: dict[frozenset[tuple[str, int]], Content], content: Content) -> None:
        allowed.setdefault(frozenset((key, id(value)) for key, value in content), content)

    def may_be_spoilt(self, window: Window) -> set[int]:
        """Return the ids of the values whose bytes a power cut may have changed."""
        safe = {id(value) for _, value in self.contents[window.durable]}
        return {
            id(value)
            for content in self.contents[window.durable : window.begun + 1]
            for _, value in content
            if value.spoils and id(value) not in safe
        }


def matches(
    found: Mapping[str, Any], content: Content, spoilt: set[int], *, ordered: bool = False
) -> bool:
    """Tell whether what was found is this content."""
    if len(found) != len(content):
        return False
    if ordered and list(found) != [key for key, _ in content]:
        return False
    for key, value in content:
        if key not in found:
            return False
        if not same(found[key], value.value) and not (
            id(value) in spoilt and alike(found[key], value.value)
        ):
            return False
    return True


def alike(left: Any, right: Any) -> bool:
    """Tell whether two values differ in nothing but the bytes of their large parts."""
    if isinstance(right, np.ma.MaskedArray):
        return (
            isinstance(left, np.ma.MaskedArray)
            and alike(left.data, right.data)
            and left.hardmask == right.hardmask
        )
    if isinstance(right, np.ndarray):
        return (
            isinstance(left, np.ndarray) and left.dtype == right.dtype and left.shape == right.shape
        )
    if type(left) is not type(right):
        return False
    if isinstance(right, dict):
        return list(left) == list(right) and all(alike(left[key], right[key]) for key in right)
    if isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(right, bytes | bytearray) and len(right) > LARGE:
        return len(left) == len(right)
    if isinstance(right, str) and len(right) > LARGE // 4:
        return True  # its characters may be of other sizes now
    return bool(left == right)
