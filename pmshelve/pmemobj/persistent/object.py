"""`PersistentObject`: base of users' classes whose attributes live in a pool.

    anchor   word  field
             0     object header, type code of the class
             1     offset of the PersistentDict of its attributes, 0 while it has none (O1)

Where an attribute is looked for is what Python does for any object, the persistent attributes being in the
place of the instance's `__dict__`:

    1    data descriptors of the class: properties, slots
    2    persistent attributes
    3    what else the class has: methods, defaults
    4    `__getattr__`, if the class has it

Names that begin with ``_v_`` are volatile, and so are the language's own (``__x__``): they are kept in the
Python object's `__dict__`, and are gone with it.  Names that begin with ``_p_`` are this package's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pmshelve.pmemobj.layout import POBJECT_TYPE_NUM, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.persistent.dict import PersistentDict
from pmshelve.pmemobj.persistent.items import shown, starting
from pmshelve.pmemobj.protocol import Persistent
from pmshelve.pmemobj.typetable import register_static

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PersistentObject"]

_MISSING = object()
_RESERVED = ("_p_", "_v_")

# The language's own access, beside the rules below.
_get = object.__getattribute__
_set = object.__setattr__


@register_static
class PersistentObject(Container):
    """Base class of objects in a pool; make instances with ``pool.new(Class, ...)``.

    Notes
    -----
    `__init__` is called when an object is made, and not when it is read from the pool again; `_v__init__` is
    called both times, before `__init__`.  Equality is identity.  `vars` shows volatile attributes only; `dir`
    shows all.

    Each assignment is a transaction by itself, or a part of the running one.  Slots of a subclass are
    volatile.  May not be mixed with another Persistent type.
    """

    __slots__ = ("__dict__", "_p_names", "_p_table")

    _p_code: ClassVar[int] = 22
    _p_size: ClassVar[int] = 16

    _p_spaces: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Namespaces of the class and its bases, up to this one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        spaces = []
        for base in cls.__mro__:
            if base in PersistentObject.__mro__:
                continue
            if issubclass(base, Persistent) and not issubclass(base, PersistentObject):
                raise TypeError(
                    f"{cls.__name__}: PersistentObject may not be mixed with "
                    f"any other Persistent type, and {base.__name__} is one"
                )
            spaces.append(base.__dict__)
        cls._p_spaces = tuple(spaces)

    def _v__init__(self) -> None:
        """Acquire what is volatile: called whenever the Python object is made."""

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        super()._p_attach(manager, offset)
        self._p_forget()

    def _p_forget(self) -> None:
        _set(self, "_p_table", None)
        _set(self, "_p_names", None)

    # The attributes -----------------------------------------------------------------------------

    def _p_attributes(self) -> Any:
        """Return the dict of the attributes; None if there is none yet.  With the lock held."""
        table = _get(self, "_p_table")
        if table is None:
            offset = self._p_words[self._p_index + 1]
            if offset:
                manager = self._p_mm
                table = manager.load(manager.pool_kind, offset)
                _set(self, "_p_table", table)
        return table

    def _p_known(self) -> set[str]:
        """Return the names of the attributes."""
        names: set[str] | None = _get(self, "_p_names")
        if names is None:
            with self._p_lock:
                names = set(self._p_attributes() or ())
                _set(self, "_p_names", names)
        return names

    def _p_make_attributes(self) -> Any:
        manager = self._p_mm
        table = manager.new(PersistentDict)
        _, offset = manager.own(table, self._p_offset)
        manager.memory.snapshot(self._p_offset + 8, 8)
        self._p_words[self._p_index + 1] = offset
        _set(self, "_p_table", table)
        return table

    def _p_get(self, name: str, /) -> Any:
        # Written out where it is short: everything that methods do comes through here.
        if name[:1] == "_" and (name[:3] in _RESERVED or _is_volatile(name)):
            return _get(self, name)
        for space in type(self)._p_spaces:
            if name in space:
                try:
                    names = _get(self, "_p_names")
                except AttributeError:
                    starting(self)  # says that the object is in no pool
                    raise AssertionError("an object in a pool has names") from None
                if names is None:
                    names = self._p_known()
                if name not in names or _is_data(space[name]):
                    return _get(self, name)
                break
        with _get(self, "_p_lock"):
            table = _get(self, "_p_table")
            if table is None:
                table = self._p_attributes()
            if table is not None:
                value = table.get(name, _MISSING)
                if value is not _MISSING:
                    return value
        return _get(self, name)  # AttributeError, or what somebody put into `__dict__`

    def _p_set(self, name: str, value: Any, /) -> None:
        if name[:1] == "_" and _is_volatile(name):
            if name[:3] == "_p_" and name not in _OWN:
                raise AttributeError(f"names that begin with _p_ are reserved: {name}")
            _set(self, name, value)
            return
        for space in type(self)._p_spaces:
            if name in space:
                if _is_data(space[name]):
                    _set(self, name, value)
                    return
                break
        with starting(self):
            table = self._p_attributes()
            if table is None:
                table = self._p_make_attributes()
            table[name] = value
            names = _get(self, "_p_names")
            if names is not None:
                names.add(name)

    def _p_delete(self, name: str, /) -> None:
        if name[:1] == "_" and _is_volatile(name):
            if name[:3] == "_p_":
                raise AttributeError(f"names that begin with _p_ are reserved: {name}")
            object.__delattr__(self, name)
            return
        for space in type(self)._p_spaces:
            if name in space:
                if _is_data(space[name]):
                    object.__delattr__(self, name)
                    return
                break
        with self._p_op:
            table = self._p_attributes()
            if table is None or name not in table:
                object.__delattr__(self, name)  # AttributeError, in Python's words
            else:
                del table[name]
                names = _get(self, "_p_names")
                if names is not None:
                    names.discard(name)

    if not TYPE_CHECKING:  # to whom an object would have any attribute, instead of its class's
        __getattribute__ = _p_get
        __setattr__ = _p_set
        __delattr__ = _p_delete

    def __dir__(self) -> Iterable[str]:
        return sorted({*super().__dir__(), *self._p_known()})

    def __repr__(self) -> str:
        return shown(self, self._p_describe, "...")

    def _p_describe(self) -> str:
        with self._p_lock:
            table = self._p_attributes()
            pairs = list(table.items()) if table is not None else []
        return ", ".join([f"{name}={value!r}" for name, value in pairs])

    def __hash__(self) -> int:
        return hash(self._p_oid)  # also of the Python object that stands for the same one tomorrow

    def __eq__(self, other: object, /) -> bool:
        return self is other or NotImplemented

    # Without an object ------------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        table = manager.words[(offset >> 3) + 1]
        return [table] if table else []

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:  # noqa: ARG004
        return []

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of all that is wrong with the object at `offset`."""
        heap, words = manager.heap, manager.words
        if heap.size_of(offset) < PersistentObject._p_size:
            yield "the anchor of an object is too short", offset, "O1"
            return
        table = words[(offset >> 3) + 1]
        if table and not (
            heap.is_block(table)
            and heap.type_num_of(table) == POBJECT_TYPE_NUM
            and words[table >> 3] >> TYPE_CODE_SHIFT == PersistentDict._p_code
        ):
            yield f"the attributes of an object are no dict, at {table:#x}", offset, "O1"


_OWN = frozenset(
    name
    for base in PersistentObject.__mro__
    for name in getattr(base, "__slots__", ())
    if name.startswith("_p_")
)


def _is_volatile(name: str) -> bool:
    """Whether a name that begins with an underscore is none of a persistent attribute."""
    return name[:3] in _RESERVED or (name[:2] == "__" and name[-2:] == "__")


def _is_data(found: Any) -> bool:
    """Whether what a class has under a name comes before what its instances have."""
    cls = type(found)
    return hasattr(cls, "__set__") or hasattr(cls, "__delete__")
