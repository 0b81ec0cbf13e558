"""Which class has which type code.

The built-in classes have fixed codes.  Every other class is entered, by its name, when the first of its
instances is stored; codes are given in order from `CODE_MIN` and never used again.  The table is a chain
of blocks of its own, so that a pool can be read, and checked, before any class can be imported:

    ROOT_TYPES of the heap root -> node (0: none)

    node    word  field
            0     offset of the next node, 0 for the last
            1     number of names in this node
            2..   offset of a name block each, `NODE_NAMES` in all

A name block (type number `NAME_TYPE_NUM`) holds "module:qualname" in UTF-8.  The i-th name of the whole
chain has code CODE_MIN + i.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from pmshelve.errors import (
    CorruptionError,
    PickleRefusedError,
    UnknownTypeError,
    UnsupportedTypeError,
)
from pmshelve.pmemobj.layout import ROOT_TYPES

if TYPE_CHECKING:
    from pmshelve.pmemobj.heap import Heap

__all__ = [
    "CODE_MIN",
    "NAME_TYPE_NUM",
    "NODE_NAMES",
    "NODE_TYPE_NUM",
    "OWN_TYPE_NUMS",
    "TypeTable",
    "name_of",
    "register_builtin",
    "register_static",
]

CODE_MIN = 64
CODE_MAX = (1 << 24) - 1
SCALAR_CODE_MAX = 6
NODE_NAMES = 30
NODE_TYPE_NUM = 40
NAME_TYPE_NUM = 41

OWN_TYPE_NUMS = range(31, 42)
"""Type numbers of blocks that this package's classes own; users' blocks with others are left alone."""

_NODE_SIZE = 8 * (2 + NODE_NAMES)
_SCALAR_NAMES = {0: "raw", 1: "str", 2: "bytes", 3: "int", 4: "complex", 5: "pickle"}

_STATIC: dict[int, type] = {}
_BUILTIN: dict[type, Callable[[Any, Any], int]] = {}


_Class = TypeVar("_Class", bound=type)


def register_static(cls: _Class) -> _Class:
    """Give a class the fixed code it names in `_p_code`; a decorator."""
    known: Any = cls
    assert 0 < known._p_code < CODE_MIN
    assert known._p_code not in _STATIC
    _STATIC[known._p_code] = known
    return cls


def register_builtin(builtin: type, maker: Callable[[Any, Any], int]) -> None:
    """Let ``maker(manager, value)`` store instances of exactly `builtin`; it returns the offset."""
    _BUILTIN[builtin] = maker


def name_of(cls: type) -> str:
    """Return the name that a class is stored under."""
    return f"{cls.__module__}:{cls.__qualname__}"


class TypeTable:
    """The type table of one pool.

    Parameters
    ----------
    heap
        Where it lies.

    Attributes
    ----------
    allow_import
        Whether classes that the pool names may be imported, others than this package's.
    """

    def __init__(self, heap: Heap) -> None:
        self.allow_import: bool = True
        self._heap = heap
        self._codes: dict[type, int] = {cls: code for code, cls in _STATIC.items()}
        self._classes: dict[int, type] = dict(_STATIC)
        self._static: dict[type, bool] = {}
        self._names: list[str] | None = None

    def forget(self) -> None:
        """Drop what is kept in Python: a rollback may have taken names back."""
        self._codes = {cls: code for code, cls in _STATIC.items()}
        self._classes = dict(_STATIC)
        self._names = None

    def code_of(self, cls: type) -> int:
        """Return the code of a class, entering it if it is new.  In a transaction.

        Raises
        ------
        UnsupportedTypeError
            The class cannot be found by its name, so its instances could never be read again.
        """
        code = self._codes.get(cls)
        if code is None:
            self.demand_durable(cls)
            name = name_of(cls)
            names = self.names()
            code = CODE_MIN + names.index(name) if name in names else self._enter(name)
            self._codes[cls] = code
            self._classes[code] = cls
        return code

    def class_of(self, code: int) -> Any:
        """Return the class of a code.

        Raises
        ------
        UnknownTypeError
            It cannot be imported, or is not in its module any more.
        PickleRefusedError
            It is a user's, and `allow_import` is off.
        CorruptionError
            There is no such code.
        """
        cls = self._classes.get(code)
        if cls is None:
            cls = self._classes[code] = _STATIC.get(code) or self.import_class(self.name(code))
        return cls

    def import_class(self, name: str) -> type:
        """Return the class of a name, if classes may be imported; raises as `class_of`."""
        if not self.allow_import and not name.startswith("pmshelve."):
            raise PickleRefusedError(
                f"reading the object would import its class, {name}",
                hint="open the pool with allow_pickle=True if you trust whoever wrote it",
            )
        return _find(name)

    def name(self, code: int) -> str:
        """Return the stored name of a code, without importing anything."""
        if code in _STATIC:
            return name_of(_STATIC[code])
        names = self.names()
        if not 0 <= code - CODE_MIN < len(names):
            raise CorruptionError(f"no class has type code {code}", invariant="T1")
        return names[code - CODE_MIN]

    def short_name(self, code: int) -> str:
        """Return the name of a class without its module, or what scalars of a code are."""
        name = _SCALAR_NAMES.get(code)
        return name or self.name(code).rpartition(":")[2].rpartition(".")[2]

    def is_known(self, code: int) -> bool:
        """Whether objects of this code can be: a scalar's, a built-in class's, or one entered."""
        return code < SCALAR_CODE_MAX or code in _STATIC or 0 <= code - CODE_MIN < len(self.names())

    def names(self) -> list[str]:
        """Return all names entered, in the order of their codes."""
        if self._names is None:
            self._names = [self._text(block) for _, blocks in self.nodes() for block in blocks]
        return self._names

    def nodes(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (offset of a node, offsets of its names)."""
        words = self._heap.memory.words
        node = words[(self._heap.start >> 3) + ROOT_TYPES]
        seen = set()
        while node:
            if (
                node in seen
                or not self._heap.is_block(node)
                or self._heap.size_of(node) != _NODE_SIZE
            ):
                raise CorruptionError("the type table is damaged", offset=node, invariant="T2")
            seen.add(node)
            index = node >> 3
            count = words[index + 1]
            if count > NODE_NAMES:
                raise CorruptionError("the type table is damaged", offset=node, invariant="T2")
            yield node, words[index + 2 : index + 2 + count].tolist()
            node = words[index]

    def _text(self, block: int) -> str:
        if not self._heap.is_block(block):
            raise CorruptionError(
                "a name of the type table is no block", offset=block, invariant="T2"
            )
        memory = self._heap.memory
        end = min(
            block + self._heap.size_of(block), memory.size
        )  # what lies behind may not be read
        try:
            return memory.map[block:end].decode()
        except UnicodeDecodeError:
            raise CorruptionError(
                "a name of the type table is no text", offset=block, invariant="T2"
            ) from None

    def _enter(self, name: str) -> int:
        heap = self._heap
        memory = heap.memory
        code = CODE_MIN + len(self.names())
        if code > CODE_MAX:
            raise UnsupportedTypeError("the type table is full: 16 million classes")
        text = name.encode()
        block = heap.alloc(len(text), NAME_TYPE_NUM)
        memory.map[block : block + len(text)] = text
        nodes = list(self.nodes())
        words = memory.words
        if nodes and len(nodes[-1][1]) < NODE_NAMES:
            node, names = nodes[-1]
            index = node >> 3
            memory.snapshot(node + 8, 8)
            memory.snapshot(node + 16 + 8 * len(names), 8)
            words[index + 1] = len(names) + 1
            words[index + 2 + len(names)] = block
        else:
            node = heap.zalloc(_NODE_SIZE, NODE_TYPE_NUM)
            index = node >> 3
            words[index + 1] = 1
            words[index + 2] = block
            link = nodes[-1][0] if nodes else heap.start + 8 * ROOT_TYPES
            memory.snapshot(link, 8)
            words[link >> 3] = node
        self.names().append(name)
        return code

    # Classes ------------------------------------------------------------------------------------

    def is_static(self, cls: type) -> bool:
        """Whether `_p_children` and `_p_blocks` say all about instances of a class."""
        known = self._static.get(cls)
        if known is None:
            known = self._static[cls] = _is_static(cls)
        return known

    def builtin_maker(self, builtin: type) -> Callable[[Any, Any], int] | None:
        """Return what stores instances of exactly a built-in collection, or None."""
        return _BUILTIN.get(builtin)

    def demand_durable(self, cls: type) -> None:
        """Make sure that a class can be found again by its name.

        Raises
        ------
        UnsupportedTypeError
            It is defined in a function, or something else has its name.
        """
        name = name_of(cls)
        problem = ""
        if "<locals>" in cls.__qualname__:
            problem = "it is defined in a function"
        else:
            found: Any = sys.modules.get(cls.__module__)
            for part in cls.__qualname__.split("."):
                found = getattr(found, part, None)
            if found is not cls:
                problem = f"{name} is something else"
        if problem:
            raise UnsupportedTypeError(
                f"instances of {cls.__qualname__} could not be found again: {problem}",
                hint="define the class at the top of a module",
            )


def _find(name: str) -> type:
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownTypeError(
            f"the class {name} of a stored object cannot be found: {error}",
            hint="make it importable under that name again",
        ) from error
    if not isinstance(found, type):
        raise UnknownTypeError(f"{name}, the class of a stored object, is no class")
    return found


def _is_static(cls: type) -> bool:
    if hasattr(cls, "_p_deallocate") or not hasattr(cls, "_p_children"):
        return False
    order = [set(base.__dict__) for base in cls.__mro__]

    def depth(name: str) -> int:
        return next(place for place, names in enumerate(order) if name in names)

    return all(
        depth(static) <= depth(dynamic)
        for static, dynamic in (("_p_children", "_p_traverse"), ("_p_blocks", "_p_substructures"))
    )
