"""CPython's own tests of list, dict, set, frozenset and tuple, over the collections of a pool.

They come from the `test` package of the running Python, so each version brings its own.  How they are
made to use ours: `tests.support.stdlib`.  Each test has a pool of its own, which must be sound after it.

Left out, by name and with the reason, is what cannot apply to a collection that lives in a file.
"""

from __future__ import annotations

import contextlib
import os
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from tests.support import stdlib
from tests.support.pools import assert_sound, without_syncs

for name in ("list_tests", "mapping_tests", "test_set", "test_tuple", "test_list", "test_dict"):
    pytest.importorskip(f"test.{name}", exc_type=ImportError)

LIST = stdlib.stand_in(list, pmemobj.PersistentList)
DICT = stdlib.stand_in(dict, pmemobj.PersistentDict)
SET = stdlib.stand_in(set, pmemobj.PersistentSet)
FROZENSET = stdlib.stand_in(frozenset, pmemobj.PersistentFrozenSet)
TUPLE = stdlib.stand_in(tuple, pmemobj.PersistentTuple)


@pytest.fixture(autouse=True)
def _pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    without_syncs(monkeypatch)
    pool = pmemobj.create(tmp_path / "pool", durability="lazy")
    stdlib.keep_anything(pool)
    stdlib.current.append(pool)
    try:
        yield
        assert_sound(pool)
    finally:
        stdlib.current.clear()
        with contextlib.suppress(Exception):
            pool.close()
        stdlib.forget_kept()


def adapt(suite: type, name: str, left_out: dict[str, str], **attributes: Any) -> type:
    """Return a class of CPython's tests, without those left out."""
    present = {test: reason for test, reason in left_out.items() if hasattr(suite, test)}
    assert all(present.values()), "each is left out for a reason"
    space = {**dict.fromkeys(present), **attributes, "__module__": __name__}
    bases = (suite,) if issubclass(suite, unittest.TestCase) else (suite, unittest.TestCase)
    return type(name, bases, space)


PICKLE = "what lives in a pool is not pickled; a plain copy of it is"
MEMORY = "it looks at CPython's memory management of the built-in type"
IDENTITY = "it asks for the very object that was put in; an equal one comes back from a pool"
NEW = "`pool.new` calls `__new__` without arguments, as reading an object from the file does"
COUNTS = (
    "it counts calls of `__hash__`; which a pool calls for keys that have no stable hash of ours"
)
REPR = "the repr says what the collection is: PersistentList([...]); tested in the unit tests"

# Sequences --------------------------------------------------------------------------------------

SEQUENCE_OUT = {
    "test_pickle": PICKLE,
    "test_iterator_pickle": PICKLE,
    "test_reversed_pickle": PICKLE,
    "test_repr": REPR,
    "test_repr_deep": "building it is 50,000 commits; the unit tests have a deep one",
    "test_repr_large": REPR,
    "test_free_after_iterating": MEMORY,
    "test_keywords_in_subclass": NEW,
}
LIST_OUT = {
    **SEQUENCE_OUT,
    "test_preallocation": MEMORY,
    "test_no_comdat_folding": "a tuple and a list are not added by either",
}
TUPLE_OUT = {
    **SEQUENCE_OUT,
    "test_constructors": "tuple(t) is t there; TestTupleCommon has the rest of it",
    "test_track_literals": MEMORY,
    "test_track_dynamic": MEMORY,
    "test_track_subtypes": MEMORY,
    "test_bug7466": MEMORY,
    "test_no_comdat_folding": "a list and a tuple are not added by either",
}

list_tests = stdlib.load_suite("list_tests", {})
test_list = stdlib.load_suite("test_list", {"list": LIST})
test_tuple = stdlib.load_suite("test_tuple", {"tuple": TUPLE})

TestListCommon = adapt(list_tests.CommonTest, "TestListCommon", LIST_OUT, type2test=LIST)
TestTupleCommon = adapt(
    test_tuple.seq_tests.CommonTest, "TestTupleCommon", SEQUENCE_OUT, type2test=TUPLE
)
TestList = adapt(test_list.ListTest, "TestList", LIST_OUT)
TestTuple = adapt(test_tuple.TupleTest, "TestTuple", TUPLE_OUT)

# Mappings ---------------------------------------------------------------------------------------

DEATH = "it depends on the instant at which a plain object's `__del__` runs"
FROMKEYS = "the class knows no pool; its instances do"
ATOMIC = (
    "`update` has all that it is given before it begins, so that nothing can change it meanwhile"
)

DICT_OUT = {
    "test_pickle": PICKLE,
    "test_iterator_pickling": PICKLE,
    "test_itemiterator_pickling": PICKLE,
    "test_valuesiterator_pickling": PICKLE,
    "test_reverseiterator_pickling": PICKLE,
    "test_reverseitemiterator_pickling": PICKLE,
    "test_reversevaluesiterator_pickling": PICKLE,
    "test_repr": REPR,
    "test_repr_deep": "building it is 50,000 commits; the unit tests have a deep one",
    "test_track_literals": MEMORY,
    "test_track_dynamic": MEMORY,
    "test_track_subtypes": MEMORY,
    "test_copy_maintains_tracking": MEMORY,
    "test_container_iterator": MEMORY,
    "test_string_keys_can_track_values": MEMORY,
    "test_empty_presized_dict_in_freelist": MEMORY,
    "test_free_after_iterating": MEMORY,
    "test_splittable_setdefault": MEMORY,
    "test_splittable_del": MEMORY,
    "test_splittable_pop": MEMORY,
    "test_splittable_pop_pending": MEMORY,
    "test_splittable_popitem": MEMORY,
    "test_splittable_update": MEMORY,
    "test_splittable_to_generic_combinedtable": MEMORY,
    "test_dict_items_result_gc": MEMORY,
    "test_dict_items_result_gc_reversed": MEMORY,
    "test_fromkeys": FROMKEYS,
    "test_fromkeys_operator_modifying_dict_operand": FROMKEYS,
    "test_fromkeys_operator_modifying_set_operand": FROMKEYS,
    "test_setdefault_atomic": COUNTS,
    "test_setitem_atomic_at_resize": COUNTS,
    "test_merge_and_mutate": ATOMIC,
    "test_oob_indexing_dictiter_iternextitem": DEATH,
    "test_equal_operator_modifying_operand": DEATH,
    "test_store_evilattr": "an instance's `__dict__` is a plain dict",
    "test_reentrant_insertion": DEATH,
    "test_dict_copy_order": "a subclass that overrides `__iter__` only is copied in the order of its items",
}

mapping_tests = stdlib.load_suite("mapping_tests", {})
test_dict = stdlib.load_suite("test_dict", {"dict": DICT}, ["dict"])

for suite in (
    mapping_tests.BasicTestMappingProtocol,
    mapping_tests.TestMappingProtocol,
    mapping_tests.TestHashMappingProtocol,
):
    title = f"Test{suite.__name__.removeprefix('Test')}"
    globals()[title] = adapt(suite, title, DICT_OUT, type2test=DICT)
TestDict = adapt(test_dict.DictTest, "TestDict", DICT_OUT)

# Sets -------------------------------------------------------------------------------------------

SET_OUT = {
    "test_pickling": PICKLE,
    "test_iterator_pickling": PICKLE,
    "test_deepcopy": PICKLE,
    "test_deep_copy": PICKLE,
    "test_do_not_rehash_dict_keys": COUNTS,
    "test_keywords_in_subclass": NEW,
    "test_weakref": "a pool keeps the objects used last alive for a while",
    "test_constructor_identity": "an immutable collection is made anew by its own constructor",
    "test_repr": REPR,
    "test_cyclical_repr": REPR,
    "test_gc": MEMORY,
    "test_container_iterator": MEMORY,
    "test_free_after_iterating": MEMORY,
    "test_c_api": MEMORY,
    "test_hash_effectiveness": "half a million commits, to learn that the hash is the built-in one's",
}

test_set = stdlib.load_suite("test_set", {"set": SET, "frozenset": FROZENSET}, ["set"])

# Those with a str or a tuple in them.
COPIES = {
    f"TestCopying{name}": {"test_copy": IDENTITY}
    for name in ("Singleton", "Triple", "Tuple", "Nested")
}


def check_set_op_does_not_crash(self: Any, function: Any) -> None:
    """Do as the test of this name in test_set does, which makes it 100 times."""
    for _ in range(10 if os.environ.get("PMSHELVE_PROFILE") != "torture" else 300):
        one, other = self.make_sets_of_bad_objects()
        try:
            function(one, other)
        except RuntimeError as error:
            self.assertIn("changed size during", str(error))  # noqa: PT009


for title, suite in vars(test_set).copy().items():
    if isinstance(suite, type) and title.startswith("Test"):
        if not issubclass(suite, unittest.TestCase):
            continue
        changed = {}
        if hasattr(suite, "check_set_op_does_not_crash"):
            changed["check_set_op_does_not_crash"] = check_set_op_does_not_crash
        left_out = {**SET_OUT, **COPIES.get(title, {})}
        globals()[f"{title}Sets"] = adapt(suite, f"{title}Sets", left_out, **changed)
del suite  # pytest would take it for one more


def test_the_test_package_was_really_used() -> None:
    """The suites hold CPython's tests, and those make instances of ours."""
    names = [
        f"{title}.{name}"
        for title, suite in globals().items()
        if title.startswith("Test") and isinstance(suite, type)
        for name in dir(suite)
        if name.startswith("test") and callable(getattr(suite, name))
    ]
    assert len(names) > 500
    assert type(LIST([1])) is pmemobj.PersistentList
    assert type(test_set.set("ab")) is pmemobj.PersistentSet
    assert test_set.SetSubclass("ab")._p_mm is stdlib.current[-1].mm
