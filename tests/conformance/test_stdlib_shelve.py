"""CPython's own tests of `shelve`: over our dbm modules, and with `pmshelve.open` in its place."""

from __future__ import annotations

import pickle
import shelve
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import pmshelve
from pmshelve.dbm_compat import mmapdict, pmemobj, register, unregister
from pmshelve.dbm_compat.database import Database
from pmshelve.shelf import ClassicShelf, NativeShelf, ShelveError

test_shelve: Any = pytest.importorskip("test.test_shelve", exc_type=ImportError)
mapping_tests: Any = pytest.importorskip("test.mapping_tests", exc_type=ImportError)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # the names in those tests are relative
    register("mmapdict")
    yield
    unregister()


# The standard library's shelf over our dbm module -----------------------------------------------


class TestShelveOverMmapdict(test_shelve.TestCase):
    # CPython 3.15: it expects the error of dbm.sqlite3, the default module there.
    test_custom_incomplete_serializer_and_deserializer = None

    default = mmapdict

    @pytest.fixture(autouse=True)
    def _default(self) -> None:
        register(self.default.__name__)

    def test_the_files_are_ours(self) -> None:
        with shelve.open("shelf") as shelf:
            assert isinstance(shelf.dict, Database)  # type: ignore[attr-defined]
        assert self.default.recognizes("shelf")


class TestShelveOverPool(TestShelveOverMmapdict):
    default = pmemobj


class OverMmapdict(test_shelve.TestShelveFileBase):
    dbm_mod = mmapdict


class OverPool(test_shelve.TestShelveFileBase):
    dbm_mod = pmemobj


# Our shelves ------------------------------------------------------------------------------------


class TestShelveIsOurs(test_shelve.TestCase):
    # CPython 3.15: it expects the error of dbm.sqlite3, the default module there.
    test_custom_incomplete_serializer_and_deserializer = None

    backend = "mmapdict"

    @pytest.fixture(autouse=True)
    def _ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = SimpleNamespace(
            open=partial(pmshelve.open, backend=self.backend),
            Shelf=ClassicShelf,
            BsdDbShelf=shelve.BsdDbShelf,
            ShelveError=ShelveError,
        )
        monkeypatch.setattr(test_shelve, "shelve", ours)


class TestShelveIsOurPool(TestShelveIsOurs):
    backend = "pmemobj"


class Ours(test_shelve.TestShelveBase):
    counter = 0
    _args: dict[str, Any]

    def _empty_mapping(self) -> Any:
        self.counter += 1
        shelf = pmshelve.open(f"shelf{self.counter}", **self._args)
        self.addCleanup(shelf.close)
        return shelf


class OursNative(Ours):
    def _empty_mapping(self) -> Any:
        shelf = super()._empty_mapping()
        assert isinstance(shelf, NativeShelf)
        return shelf


class OursClassic(Ours):
    _args: ClassVar = {"serializer": pickle.dumps, "deserializer": pickle.loads}


class OursPool(OursNative):
    _args: ClassVar = {"backend": "pmemobj"}


class OursClassicPool(OursClassic):
    _args: ClassVar = {**OursClassic._args, "backend": "pmemobj"}


class OursInMemory(test_shelve.TestShelveBase):
    _args: dict[str, Any]

    def _empty_mapping(self) -> Any:
        return ClassicShelf(test_shelve.byteskeydict(), **self._args)


def make(base: type, name: str, **arguments: Any) -> type:
    """Return CPython's tests of the mapping protocol for one way to open a shelf."""
    arguments = {**getattr(base, "_args", {}), **arguments}
    bases = (base, mapping_tests.BasicTestMappingProtocol)
    return type(name, bases, {"_args": arguments, "__module__": __name__})


BASES = (OverMmapdict, OverPool, OursNative, OursClassic, OursPool, OursClassicPool, OursInMemory)

for base in BASES:
    for protocol in PROTOCOLS:
        title = f"Test{base.__name__}Protocol{protocol}"
        globals()[title] = make(base, title, protocol=protocol)
    title = f"Test{base.__name__}Writeback"
    globals()[title] = make(base, title, writeback=True)
