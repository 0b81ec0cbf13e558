"""CPython's own tests of its collections, made to believe that ours are the built-in ones.

A test module of the `test` package is loaded afresh with `list`, `dict`, `set`, `frozenset` and
`tuple` in its globals replaced by *stand-ins*; the displays ``[...]``, ``{...}`` may be rewritten into
calls of them.  A stand-in:

* makes, when called, an instance of exactly our class in the current pool (of the built-in where no
  pool is open: while the module is imported);
* can be subclassed, as the tests like to do inside of functions; such a class gets a name under which a
  pool finds it again;
* equals our class and the built-in one, so that ``type(x) == thetype`` holds (what operators return is
  a plain collection, in no pool).

Those tests put anything into a collection: modules' functions, instances of classes made on the spot,
plain lists.  `keep_anything` makes a pool take what it would refuse, for as long as the process lives:
what is stored is a number, what comes back is the very object.
"""

from __future__ import annotations

import abc
import ast
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["current", "keep_anything", "load_suite", "stand_in"]

current: list[Any] = []
"""The pool that stand-ins make their instances in, if there is one."""


# Anything is kept -------------------------------------------------------------------------------

_kept: list[Any] = []


class Token:
    """Stands in a pool for the object `_kept[number]`; unpickled, it is that object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return recall, (self.number,)


def recall(number: int) -> Any:
    """Return the object that was kept under a number."""
    return _kept[number]


class _AnyScalars:
    """A pool's `Scalars`, and behind it a place for everything else."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        inner.nominate(Token)

    def store(self, value: Any) -> Any:
        offset = self.inner.store(value)
        if offset is None and type(value) not in (tuple, frozenset):
            _kept.append(value)
            offset = self.inner.store(Token(len(_kept) - 1))
        return offset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def keep_anything(pool: Any) -> None:
    """Let a pool take every object (see the module's text)."""
    pool.mm.scalars = _AnyScalars(pool.mm.scalars)


def forget_kept() -> None:
    """Drop what was kept; the pools that knew it are closed."""
    _kept.clear()


# Stand-ins --------------------------------------------------------------------------------------


class StandIn(abc.ABCMeta):
    """Metaclass of the stand-ins."""

    count = 0

    def __new__(
        mcs, name: str, bases: tuple[type, ...], space: dict[str, Any], **kw: Any
    ) -> StandIn:
        if "exact" not in space:  # a test's own subclass
            mcs.count += 1
            name_found = f"{name}_{mcs.count}"
            space = {**space, "__module__": __name__, "__qualname__": name_found}
        cls = super().__new__(mcs, name, bases, space, **kw)
        if "exact" not in space:
            globals()[cls.__qualname__] = cls
        return cls

    def __call__(cls, *args: Any, **kw: Any) -> Any:
        builtin, ours = cls.__dict__.get("exact", (None, cls))
        if current:
            return current[-1].new(ours, *args, **kw)
        return (builtin or object)(*args, **kw)

    def __instancecheck__(cls, thing: Any) -> bool:
        exact = cls.__dict__.get("exact")
        return isinstance(thing, exact) if exact else super().__instancecheck__(thing)

    def __eq__(cls, other: object) -> bool:
        exact = cls.__dict__.get("exact")
        return cls is other or (exact is not None and other in exact)

    def __hash__(cls) -> int:
        exact = cls.__dict__.get("exact")
        return hash(exact[1]) if exact else super().__hash__()


def stand_in(builtin: type, ours: type) -> Any:
    """Return the stand-in of our class for a built-in one."""
    return StandIn(builtin.__name__, (ours,), {"exact": (builtin, ours), "__slots__": ()})


# Modules ----------------------------------------------------------------------------------------


class _Displays(ast.NodeTransformer):
    """Turns displays and comprehensions into calls of the stand-ins."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)

    def _call(self, name: str, argument: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(name, ast.Load()), [argument], [])

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        if "list" in self.names and isinstance(node.ctx, ast.Load):
            return self._call("list", node)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        self.generic_visit(node)
        return self._call("list", node) if "list" in self.names else node

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        if "set" in self.names:
            return self._call("set", ast.List(node.elts, ast.Load()))
        return node

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        self.generic_visit(node)
        return self._call("set", node) if "set" in self.names else node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        return self._call("dict", node) if "dict" in self.names else node

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        self.generic_visit(node)
        return self._call("dict", node) if "dict" in self.names else node


def load_suite(
    name: str, stand_ins: dict[str, Any], displays: Iterable[str] = ()
) -> types.ModuleType:
    """Return a fresh copy of a module of the `test` package that uses stand-ins.

    Parameters
    ----------
    displays
        Names of the types whose displays become calls.
    """
    spec = importlib.util.find_spec(f"test.{name}")
    if spec is None or spec.origin is None:
        raise ImportError(f"no module test.{name}")
    module = importlib.util.module_from_spec(spec)
    vars(module).update(stand_ins)
    tree = _Displays(displays).visit(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    exec(compile(ast.fix_missing_locations(tree), spec.origin, "exec"), vars(module))
    return module


assert sys.implementation.name == "cpython"
