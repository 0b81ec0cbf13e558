"""CPython's own tests of `dbm`, `dbm.dumb` and `dbm.gnu`, over our modules.

They come from the `test` package of the running Python, so each version brings its own.  Left out,
by name and with the reason, is what looks into another module's files or asks for what the design
decided otherwise.
"""

from __future__ import annotations

import dbm
import importlib.util
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pytest

from pmshelve.dbm_compat import mmapdict, pmemobj, register, unregister

test_dbm: Any = pytest.importorskip("test.test_dbm", exc_type=ImportError)
test_dumb: Any = pytest.importorskip("test.test_dbm_dumb", exc_type=ImportError)
mapping_tests: Any = pytest.importorskip("test.mapping_tests", exc_type=ImportError)


def load_test_gnu(our_dbm: ModuleType) -> Any:
    """Return CPython's test of `dbm.gnu`, made to believe that our module is it."""
    spec = importlib.util.find_spec("test.test_dbm_gnu")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"dbm.gnu": our_dbm}):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # the names in those tests are relative
    register()
    yield
    unregister()


class TestWhichDB(test_dbm.WhichDBTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.dbm: ModuleType = dbm  # not a fresh one, in which nothing is registered

    def test_ours_are_among_them(self) -> None:
        assert {mmapdict, pmemobj} <= {*test_dbm.dbm_iterator()}


class AsDumb:
    """`dbm.dumb`'s tests.  Two classes of them, one for each of our modules, are made below."""

    our_dbm: ClassVar[Any]

    # They look into dbm.dumb's own two files.
    test_dumbdbm_creation_mode = None
    test_eval = None
    test_line_endings = None
    test_missing_data = None
    test_missing_index = None
    test_nonascii_filename = None
    test_readonly_files = None
    test_sync_empty_unmodified = None
    test_sync_nonempty_unmodified = None
    # It takes 'rf' for wrong, which is dbm.gnu's for fast.
    test_invalid_flag = None

    @pytest.fixture(autouse=True)
    def _ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def open_or_create(file: Any, flag: str = "c", mode: int = 0o666) -> Any:
            return self.our_dbm.open(file, flag, mode)

        ours = SimpleNamespace(open=open_or_create, error=self.our_dbm.error)
        monkeypatch.setattr(test_dumb, "dumbdbm", ours)


class AsGnu:
    """`dbm.gnu`'s tests."""

    # Our class may be instantiated, over a store.
    test_disallow_instantiation = None
    # Another flag is a ValueError here, as in dbm.dumb.
    test_error_conditions = None
    # The message of a closed database is dbm.dumb's.
    test_context_manager = None


class Mapping:
    """The tests that every mapping is given."""

    our_dbm: ClassVar[Any]
    counter = 0

    def _reference(self) -> dict[bytes, bytes]:
        return {b"1": b"2", b"key1": b"value1", b"key2": b"value2"}

    def _empty_mapping(self) -> Any:
        self.counter += 1
        database = self.our_dbm.open(f"db{self.counter}", "n")
        self.addCleanup(database.close)  # type: ignore[attr-defined]
        return database


SUITES: list[type] = [TestWhichDB]

for module in (mmapdict, pmemobj):
    kind = module.__name__.rpartition(".")[2].title()
    for title, bases in {
        f"TestAnyDBM{kind}": (test_dbm.AnyDBMTestCase, unittest.TestCase),
        f"TestAsDumb{kind}": (AsDumb, test_dumb.DumbDBMTestCase),
        f"TestAsGnu{kind}": (AsGnu, load_test_gnu(module).TestGdbm),
        f"TestMapping{kind}": (Mapping, mapping_tests.BasicTestMappingProtocol),
    }.items():
        space: dict[str, Any] = {"module": module, "our_dbm": module, "__module__": __name__}
        if test_dbm.AnyDBMTestCase in bases:
            space["_dict"] = dict(test_dbm.AnyDBMTestCase._dict)  # a test changes it
        globals()[title] = type(title, bases, space)
        SUITES.append(globals()[title])


def test_the_test_package_was_really_used() -> None:
    names = [
        name
        for suite in SUITES
        for name in dir(suite)
        if name.startswith("test") and callable(getattr(suite, name))
    ]
    assert len(names) > 80
