"""Users' own classes on the Persistent protocol, as docs/pmemobj-classes.md explains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from pmshelve.pmemobj import OID_NULL, Persistent, PersistentDict, PersistentList, PersistentObject


class Counter(Persistent):
    """A number in a pool that counts."""

    #   word 0  object header, the manager's
    #        1  the number, signed

    def _p_new(self, manager):
        self._p_resurrect(manager, manager.zalloc(16))

    def _p_resurrect(self, manager, oid):
        self._p_mm = manager
        self._p_oid = oid

    def _p_traverse(self):
        return ()  # it holds no objects

    def _p_substructures(self):
        return ()  # nor blocks other than its anchor

    def __init__(self, start=0):
        self.add(start - self.value)

    @property
    def value(self):
        manager = self._p_mm
        with manager.lock:
            return manager.signed[self._p_oid[1] // 8 + 1]

    def add(self, number=1):
        manager = self._p_mm
        with manager.operation:  # a transaction of its own, or a part of the running one
            manager.snapshot_range(self._p_oid, 8, offset=8)  # before the store, always
            manager.signed[self._p_oid[1] // 8 + 1] += number

    def _p_dump(self):
        return [self.value]

    def _p_load(self, state):
        self.add(state[0])


NODE = 1000  # a type number for its nodes: any from 64 on


class LinkedList(Persistent):
    """A queue in a pool, one block for each value."""

    #   anchor  word 0     object header
    #                1     length
    #                2, 3  oid of the first node
    #                4, 5  oid of the last node
    #   node    word 0, 1  oid of the next node
    #                2, 3  oid of the value

    def _p_new(self, manager):
        self._p_resurrect(manager, manager.zalloc(48))

    def _p_resurrect(self, manager, oid):
        self._p_mm = manager
        self._p_oid = oid

    def _p_traverse(self):
        return [self._read(node, 16) for node in self._nodes()]

    def _p_substructures(self):
        return list(self._nodes())

    def __init__(self, values=()):
        for value in values:
            self.append(value)

    def __len__(self):
        with self._p_mm.lock:
            return self._p_mm.words[self._p_oid[1] // 8 + 1]

    def __iter__(self):
        manager = self._p_mm
        for node in self._nodes():
            yield manager.resurrect(self._read(node, 16))

    def append(self, value):
        manager = self._p_mm
        with manager.operation:
            oid = manager.persist(value)
            manager.incref(oid)  # the list holds it from now on
            node = manager.zalloc(32, NODE)
            self._write(node, 16, oid)
            last = self._read(self._p_oid, 32)
            if last == OID_NULL:
                self._write(self._p_oid, 16, node)
            else:
                self._write(last, 0, node)
            self._write(self._p_oid, 32, node)
            self._count(+1)

    def popleft(self):
        manager = self._p_mm
        with manager.operation:
            node = self._read(self._p_oid, 16)
            if node == OID_NULL:
                raise IndexError("pop from an empty list")  # undoes this operation, no more
            following, oid = self._read(node, 0), self._read(node, 16)
            value = manager.resurrect(oid)
            self._write(self._p_oid, 16, following)
            if following == OID_NULL:
                self._write(self._p_oid, 32, OID_NULL)
            self._count(-1)
            manager.free(node)
            manager.decref(oid)  # last, for it may free the value
            return value

    def _nodes(self):
        node = self._read(self._p_oid, 16)
        while node != OID_NULL:
            yield node
            node = self._read(node, 0)

    def _read(self, oid, offset):
        manager = self._p_mm
        with manager.lock:
            index = (oid[1] + offset) // 8
            return manager.words[index], manager.words[index + 1]

    def _write(self, oid, offset, value):
        manager = self._p_mm
        manager.snapshot_range(oid, 16, offset)
        index = (oid[1] + offset) // 8
        manager.words[index], manager.words[index + 1] = value

    def _count(self, change):
        manager = self._p_mm
        manager.snapshot_range(self._p_oid, 8, offset=8)
        manager.words[self._p_oid[1] // 8 + 1] += change

    def _p_dump(self):
        return list(self)

    def _p_load(self, state):
        self.__init__(state)


# What the documentation does not show, for tests ------------------------------------------------


class Deallocating(LinkedList):
    """Gives up what it holds by itself."""

    calls: ClassVar[list[str]] = []

    def _p_deallocate(self) -> None:
        self.calls.append("deallocated")
        manager = self._p_mm
        for node in list(self._nodes()):
            oid = self._read(node, 16)
            manager.free(node)
            manager.decref(oid)


class Point(PersistentObject):
    """Attributes in a pool."""

    def __init__(self, x: Any = 0, y: Any = 0) -> None:
        self.x = x
        self.y = y


class Hashed(PersistentObject):
    """Equal to, and hashed as, its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and self.name == other.name


class MyList(PersistentList):
    """A subclass of a collection."""


class MyDict(PersistentDict):
    """A subclass of a collection that says by itself what it holds."""

    def _p_traverse(self) -> Iterable[Any]:
        return super()._p_traverse()


class Outsider:
    """Follows the protocol without deriving from the ABC."""

    def _p_new(self, manager: Any) -> None:
        self._p_mm = manager
        self._p_oid = manager.zalloc(24)

    def _p_resurrect(self, manager: Any, oid: Any) -> None:
        self._p_mm = manager
        self._p_oid = oid

    def _p_traverse(self) -> Iterator[Any]:
        yield from ()

    def _p_substructures(self) -> Iterator[Any]:
        yield from ()


class Mute(Outsider):
    """Says nothing that could be dumped."""
