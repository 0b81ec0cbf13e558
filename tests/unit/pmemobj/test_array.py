"""PersistentArray: every dtype and shape, views that cannot be written to, changes that can be undone."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    ObjectError,
    ReadOnlyError,
    UnsupportedTypeError,
)
from pmshelve.pmemobj import PersistentArray
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent.dtypes import describe, restore
from tests.support.pools import assert_nothing_leaked, assert_sound, block_sizes

np = pytest.importorskip("numpy")

Make = Callable[..., Any]

DTYPES = [
    "<f8", ">i4", "S5", "U3", "M8[ns]", "m8[3D]", "?", "c16", "e", "g", "V7", "u1",
    [("a", "i4"), ("b", "S3")],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "offsets": [4, 16], "itemsize": 40}),
    np.dtype([("p", "f4", (2, 3)), ("q", [("r", ">u2"), ("s", "M8[us]")])]),
    np.dtype([(("title", "name"), "i4")]),
    np.dtype(("f4", (2,))),
    np.dtype([]),
]  # fmt: skip
SHAPES = [(), (0,), (3,), (2, 3), (4, 0, 2), (300, 3), (2, 1, 2, 2)]


class Matrix(PersistentArray):
    """A subclass that can be found again."""


def filled(shape: Any, dtype: Any, order: str) -> Any:
    array = np.zeros(shape, dtype, order=order)
    if array.dtype.kind in "?U":
        return array
    random = np.random.default_rng(1).bytes(array.nbytes) or b"\0"
    return np.ndarray(array.shape, array.dtype, bytearray(random), order=order)


def assert_same(found: Any, expected: Any) -> None:
    """Fail unless two arrays have the same dtype, shape, order and bytes (but for padding)."""
    assert found.dtype == expected.dtype
    assert found.dtype.isalignedstruct == expected.dtype.isalignedstruct
    assert found.shape == expected.shape
    assert found.flags.c_contiguous == expected.flags.c_contiguous
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    if expected.dtype.names is None:
        assert found.tobytes("A") == expected.tobytes("A")
    else:
        for name in expected.dtype.names:
            assert found[name].tobytes() == expected[name].tobytes()


@pytest.fixture
def array(pool: Any) -> Any:
    pool.root["array"] = pool.new(PersistentArray, np.arange(12.0).reshape(3, 4))
    return pool.root["array"]


# Kinds of arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_shape_and_order(pool: Any, make: Make, dtype: Any) -> None:
    expected = [filled(shape, dtype, order) for shape in SHAPES for order in "CF"]
    for number, values in enumerate(expected):
        pool.root[number] = pool.new(PersistentArray, values)
        assert_same(pool.root[number].view(), values)
        zeros = pool.new(
            PersistentArray, shape=SHAPES[number // 2], dtype=dtype, order="CF"[number % 2]
        )
        model = np.zeros(SHAPES[number // 2], dtype, order="CF"[number % 2])  # type: ignore[call-overload]
        assert_same(zeros.view(), model)
        assert not zeros.view().tobytes("A").strip(b"\0")
    assert_sound(pool)
    pool.close()
    pool = make()
    for number, values in enumerate(expected):
        found = pool.root[number]
        assert_same(found.view(), values)
        assert (found.shape, found.dtype, found.ndim) == (values.shape, values.dtype, values.ndim)
        assert (found.size, found.nbytes) == (values.size, values.nbytes)
        if found.nbytes:
            assert found.view().__array_interface__["data"][0] % 64 == 0
        repr(found)


def test_sources(pool: Any, array: Any) -> None:
    def made(*arguments: Any, **options: Any) -> Any:
        return pool.new(PersistentArray, *arguments, **options)

    assert made([1, 2]).dtype == int
    assert made([1, 2], "f4").dtype == np.float32
    assert made(5).shape == ()
    assert made(np.arange(10)[::2]).tolist() == [0, 2, 4, 6, 8]
    assert (made(array) == array).all()
    assert made(array.T).flags.f_contiguous
    assert made(array, order="F").flags.f_contiguous
    assert made(shape=3).tolist() == [0.0, 0.0, 0.0]
    assert made(shape=(2,), dtype="U").tolist() == ["", ""]
    assert made(b"abc").dtype == "S3"
    for arguments, options in (((), {}), (([1],), {"shape": 1})):
        with pytest.raises(TypeError, match="either a source or shape="):
            made(*arguments, **options)
    with pytest.raises(ValueError, match="order"):
        made([1], order="A")
    with pytest.raises(ValueError, match="negative"):
        made(shape=-1)
    with pytest.raises(MemoryError):
        made(shape=(1 << 40,))
    with pytest.raises(TypeError):
        made([1], unknown=2)


def test_arrays_of_objects_are_refused(pool: Any) -> None:
    before = block_sizes(pool)
    for source in (np.array([object()]), np.zeros(2, [("a", "O")]), [{}]):
        with pytest.raises(UnsupportedTypeError, match="Don't know how to persist an array of"):
            pool.new(PersistentArray, source)
    with pytest.raises(UnsupportedTypeError, match="masked"):
        pool.new(PersistentArray, np.ma.masked_array([1], [1]))
    with pytest.raises(ObjectError, match=r"pool\.new\(PersistentArray"):
        PersistentArray([1])
    gc.collect()
    assert block_sizes(pool) == before


@pytest.mark.parametrize("told", ["no NumPy dtype", "<f8"])
def test_a_dtype_that_is_not_the_same_again_is_refused(told: str) -> None:
    class Foreign:
        hasobject = False
        subdtype = names = None
        str = told

    with pytest.raises(UnsupportedTypeError, match="Don't know how to persist an array of"):
        describe(Foreign())


def test_a_subclass_keeps_its_class(pool: Any, make: Make) -> None:
    pool.root["matrix"] = pool.new(Matrix, [[1, 2]])
    assert repr(pool.root["matrix"]) == f"Matrix([[1, 2]], dtype='{np.dtype(int)}')"
    pool.close()
    assert type(make().root["matrix"]) is Matrix


# Reading ----------------------------------------------------------------------------------------


def test_views_are_not_copies_and_cannot_be_written_to(array: Any) -> None:
    views = [
        array.view(),
        array[...],
        array[1:],
        array[:, 0],
        np.asarray(array),
        array.T,
        array.reshape(-1),
    ]
    for view in views:
        assert type(view) is np.ndarray
        assert np.shares_memory(view, array.view())
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.base.flags.writeable = True
    array[1, 0] = 99
    assert views[0][1, 0] == views[2][0, 0] == views[3][1] == 99


def test_copies_are_copies(array: Any) -> None:
    for taken in (
        np.array(array),
        array.copy(),
        array[[0, 1]],
        array[array > 3],
        np.asarray(array, "f4"),
    ):
        assert type(taken) is np.ndarray
        assert taken.flags.writeable
        assert not np.shares_memory(taken, array.view())
    with pytest.raises(ValueError, match="copy"):
        array.__array__("f4", copy=False)
    assert type(array[0, 0]) is np.float64
    assert array[0, 1] == 1.0


def test_fields_of_a_structure_cannot_be_written_to(pool: Any) -> None:
    rows = pool.new(PersistentArray, np.zeros(3, [("x", "i4"), ("y", "f8")]))
    rows["x"] = [1, 2, 3]
    rows[1] = (5, 6.5)
    assert rows.tolist() == [(1, 0.0), (5, 6.5), (3, 0.0)]
    assert rows[["x", "y"]].tolist() == rows.tolist()
    for write in (
        lambda: operator.setitem(rows[0], "x", 9),
        lambda: operator.setitem(rows["x"], 0, 9),
    ):
        with pytest.raises(ValueError, match="read-only"):
            write()
    assert (rows == rows.view()).all()


def test_it_is_used_as_an_array(array: Any) -> None:
    model = np.arange(12.0).reshape(3, 4)
    assert len(array) == 3
    assert [row.tolist() for row in array] == model.tolist()
    assert 3.0 in array
    assert 77 not in array
    assert array.sum() == model.sum()
    assert array.strides == model.strides
    assert np.concatenate([array, array]).shape == (6, 4)
    assert np.mean(array) == model.mean()
    with pytest.raises(AttributeError, match=r"'numpy\.ndarray' object has no attribute 'nothing'"):
        array.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="_nothing"):
        array._nothing  # noqa: B018
    with pytest.raises(TypeError, match="unhashable"):
        hash(array)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(array)
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle"):
            attempt(array)


@pytest.mark.parametrize(
    "name",
    "lt le eq ne gt ge add sub mul truediv floordiv mod pow".split(),
)
def test_operators(pool: Any, name: str) -> None:
    model = np.arange(1.0, 13.0).reshape(3, 4)
    array = pool.new(PersistentArray, model)
    operation = getattr(operator, name)
    for other in (2, model + 1, [[1.0], [2.0], [3.0]]):
        for found, expected in (
            (operation(array, other), operation(model, other)),
            (operation(other, array), operation(other, model)),
        ):
            assert type(found) is type(expected)
            assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(operation(array, array), operation(model, model), equal_nan=True)


def test_more_operators(pool: Any) -> None:
    ints = pool.new(PersistentArray, [[1, 2], [3, 4]])
    model = np.array([[1, 2], [3, 4]])
    for name in ("matmul", "lshift", "rshift", "and_", "or_", "xor"):
        operation = getattr(operator, name)
        assert operation(ints, model).tolist() == operation(model, model).tolist()
        assert operation(model, ints).tolist() == operation(model, model).tolist()
    assert operator.matmul([[1, 0], [0, 1]], ints).tolist() == model.tolist()
    for name in ("neg", "pos", "abs", "invert"):
        assert getattr(operator, name)(ints).tolist() == getattr(operator, name)(model).tolist()
    assert [part.tolist() for part in divmod(ints, 2)] == [
        part.tolist() for part in divmod(model, 2)
    ]
    assert [part.tolist() for part in divmod(9, ints)] == [
        part.tolist() for part in divmod(9, model)
    ]
    assert (2**ints).tolist() == (2**model).tolist()
    one = pool.new(PersistentArray, 3)
    assert (int(one), float(one), complex(one), bool(one), range(5)[one]) == (
        3,
        3.0,
        3 + 0j,
        True,
        3,
    )
    assert one[()] == 3
    with pytest.raises(TypeError, match="unsized"):
        len(one)
    with pytest.raises(TypeError):
        ints + "a"


# Changing ---------------------------------------------------------------------------------------

CHANGES: list[Callable[[Any], Any]] = [
    lambda a: operator.setitem(a, 0, 5),
    lambda a: operator.setitem(a, (1, 2), 5),
    lambda a: operator.setitem(a, (np.int64(1), -1), 5),
    lambda a: operator.setitem(a, slice(None, None, -2), 5),
    lambda a: operator.setitem(a, (slice(None), 1), [5, 6, 7]),
    lambda a: operator.setitem(a, (slice(2, 0, -1), slice(3, 0, -2)), [[5, 6], [7, 8]]),
    lambda a: operator.setitem(a, (Ellipsis, 0), 5),
    lambda a: operator.setitem(a, (None, 1), 5),
    lambda a: operator.setitem(a, [0, 2], 5),
    lambda a: operator.setitem(a, ([0, 2], slice(1)), 5),
    lambda a: operator.setitem(a, True, 5),
    lambda a: operator.setitem(a, np.arange(12).reshape(3, 4) > 4, 5),
    lambda a: operator.setitem(a, slice(5, 9), 5),
    lambda a: operator.setitem(a, Ellipsis, a[::-1]),
    lambda a: operator.iadd(a, 1),
    lambda a: operator.isub(a, [[1], [2], [3]]),
    lambda a: operator.imul(a, a),
    lambda a: operator.itruediv(a, 2),
    lambda a: operator.ifloordiv(a, 2),
    lambda a: operator.imod(a, 3),
    lambda a: operator.ipow(a, 2),
    lambda a: np.add(a, 1, out=a),
    lambda a: np.divmod(a, 2, out=(a, np.zeros((3, 4)))),
    lambda a: np.modf(a + 0.5, out=(None, a)),
    lambda a: np.add(a, 1, out=a, where=a > 3),
    lambda a: np.add.accumulate(a, axis=1, out=a),
    lambda a: np.add.at(a, ([0, 0], [1, 1]), 5),
    lambda a: a.fill(3),
    lambda a: a.sort(axis=0),
]  # fmt: skip


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_changes(pool: Any, make: Make, change: Callable[[Any], Any], order: str) -> None:
    model = np.array(
        np.random.default_rng(2).permutation(12).astype("f8").reshape(3, 4), order=order
    )  # type: ignore[call-overload]
    array = pool.root["array"] = pool.new(PersistentArray, model)
    before = model.copy()
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        change(array)
        pool.transaction().abort()
    assert np.array_equal(array, before)
    assert_sound(pool)
    found, expected = change(array), change(model)
    assert found is array if expected is model else type(found) is type(expected)
    assert np.array_equal(array, model)
    pool.close()
    assert np.array_equal(make().root["array"], model)


def test_an_item_of_a_large_array_is_a_small_change(pool: Any) -> None:
    array = pool.new(PersistentArray, shape=(1000, 1000), dtype="i4")
    with pool.transaction():
        array[500, 3] = 1
        array[500, 10:20] = 2
        saved = pool.mm.memory.changes.saved
        assert sum(len(old) for old in saved.values()) <= 8 + 48
    assert array[500, 3] == 1


def test_what_fails_changes_nothing(array: Any) -> None:
    before = np.array(array)
    for attempt, kind in (
        (lambda: operator.setitem(array, 9, 1), IndexError),
        (lambda: operator.setitem(array, "x", 1), IndexError),
        (lambda: operator.setitem(array, 0, "text"), ValueError),
        (lambda: operator.setitem(array, slice(2), [1, 2, 3]), ValueError),
        (lambda: operator.iadd(array, 1j), TypeError),
        (lambda: operator.ilshift(array, 1), TypeError),
        (lambda: operator.iadd(array[1:], 1), ValueError),
        (lambda: np.add(array, [1, 2], out=array), ValueError),
        (lambda: array.put(0, 1), ValueError),
        (lambda: setattr(array, "shape", (4, 3)), AttributeError),
    ):
        with pytest.raises(kind):
            attempt()
        assert np.array_equal(array, before)


def test_an_operand_that_would_replace_the_array(array: Any) -> None:
    class Greedy:
        def __array_ufunc__(self, *arguments: Any, **options: Any) -> str:
            return "mine now"

    with pytest.raises(TypeError, match="Greedy does not change an array in place"):
        array += Greedy()
    assert array[0, 1] == 1.0
    assert array + Greedy() == "mine now"


def test_a_writable_array_for_a_while(pool: Any, array: Any) -> None:
    with array.writable() as elements:
        elements[0] = -1
        np.sqrt(elements[1:], out=elements[1:])
    assert array[0].tolist() == [-1] * 4
    assert array[1, 0] == 2.0
    with pytest.raises(ValueError, match="read-only"):
        elements[0] = 5
    for part in (elements, elements.base):
        with pytest.raises(ValueError, match="WRITEABLE"):
            part.flags.writeable = True
    before = np.array(array)
    with pytest.raises(ZeroDivisionError), array.writable() as elements:
        elements[:] = 7
        assert array[0, 0] == 7
        1 / 0  # noqa: B018
    assert np.array_equal(array, before)
    empty = pool.new(PersistentArray, [])
    with empty.writable() as elements:
        elements += 1
    with pytest.raises(ValueError, match="read-only"):
        elements += 1


# Resizing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("row", [(), (3,), (2, 5)])
def test_resizing(pool: Any, row: tuple[int, ...], order: str) -> None:
    model = np.asarray(np.random.default_rng(3).random((4, *row)), order=order)  # type: ignore[call-overload]
    array = pool.root["array"] = pool.new(PersistentArray, model)
    for length in (5, 4, 1, 30, 29, 3000, 2000, 100_000, 10, 0, 0, 7, 1000):
        blocks = block_sizes(pool)
        before = np.array(array)
        with pytest.raises(OSError, match="aborted"), pool.transaction():
            array.resize(length)
            array[...] = 1
            array.resize(length + 5)
            pool.transaction().abort()
        assert np.array_equal(array, before)
        assert block_sizes(pool) == blocks
        array.resize((length, *row) if length % 2 else length)
        kept = min(length, len(before))
        assert array.shape == (length, *row)
        assert np.array_equal(array[:kept], before[:kept])
        assert not array[kept:].any()
        assert (order == "C" or not row) == array.flags.c_contiguous or array.size <= 7
        if array.nbytes:
            assert array.view().__array_interface__["data"][0] % 64 == 0
        array[...] = np.random.default_rng(4).random(array.shape)
        assert_sound(pool)


def test_resizing_is_refused(array: Any) -> None:
    for shape in ((3, 5), (3,), (-1, 4), (3, 4, 1)):
        with pytest.raises(ValueError, match="first dimension only"):
            array.resize(shape)
    with pytest.raises(TypeError):
        array.resize(1.5)
    array.resize(3)  # nothing to do


def test_a_single_element_has_no_first_dimension(pool: Any) -> None:
    with pytest.raises(ValueError, match="first dimension only"):
        pool.new(PersistentArray, 5).resize(())


def test_views_keep_the_elements_in_place(pool: Any, array: Any) -> None:
    view = array[1:]
    before = view.copy()
    with pytest.raises(BufferError, match="drop the views"):
        array.resize(10)
    with pytest.raises(BufferError, match="drop the views"):
        array.__init__([1])
    with array.writable() as elements, pytest.raises(BufferError):
        array.resize(1)
    part = elements[0]
    del elements
    with pytest.raises(BufferError):
        array.resize(10)
    del pool.root["array"], part
    del array
    gc.collect()
    for n in range(50):  # the memory of what was freed would be used for these
        pool.root[n] = pool.new(PersistentArray, np.full((3, 4), n))
    assert np.array_equal(view, before)
    del view
    assert_nothing_leaked(pool)


def test_initialising_again(pool: Any, make: Make, array: Any) -> None:
    array.__init__(np.arange(3), dtype=">i2")
    assert (array.tolist(), array.dtype) == ([0, 1, 2], ">i2")
    array.__init__(array)
    assert array.tolist() == [0, 1, 2]
    array.__init__(shape=(0, 3))
    assert array.shape == (0, 3)
    assert_sound(pool)
    pool.close()
    assert make().root["array"].shape == (0, 3)


# The pool's life --------------------------------------------------------------------------------


@pytest.mark.leaks("a view keeps the map on purpose")
def test_a_view_outlives_the_pool(pool: Any, array: Any) -> None:
    rows = pool.new(PersistentArray, np.arange(100_000))
    pool.root["rows"] = rows
    views = [array.view(), rows[50_000:], array[1]]
    expected = [view.copy() for view in views]
    pool.close()
    for view, values in zip(views, expected, strict=True):
        assert np.array_equal(view, values)
        assert view.sum() == values.sum()
    for attempt in (lambda: array[0], lambda: array.view(), lambda: array.shape, lambda: operator.iadd(array, 1),
                    lambda: np.asarray(array), lambda: array.sum()):  # fmt: skip
        with pytest.raises(ClosedError):
            attempt()


def test_nothing_stays_mapped(path: Path) -> None:
    from pmshelve import pmemobj

    pool = pmemobj.create(path)
    array = pool.root = pool.new(PersistentArray, [1, 2, 3])
    view = array.view()
    array += 1
    pool.close()
    assert str(path) in Path("/proc/self/maps").read_text()
    assert view.tolist() == [2, 3, 4]
    del view, array, pool
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_reader_reads(pool: Any, make: Make, array: Any) -> None:
    pool.close()
    array = make("r").root["array"]
    assert array[2, 3] == 11.0
    assert array.sum() == 66
    for attempt in (
        lambda: operator.setitem(array, 0, 1),
        lambda: array.fill(1),
        lambda: array.resize(1),
    ):
        with pytest.raises(ReadOnlyError):
            attempt()
    with pytest.raises(ReadOnlyError), array.writable():
        pass


def test_an_array_made_in_an_aborted_transaction(pool: Any) -> None:
    before = block_sizes(pool)
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        made = pool.new(PersistentArray, np.arange(1000))
        pool.transaction().abort()
    with pytest.raises(RuntimeError, match="aborted"):
        made.view()
    assert block_sizes(pool) == before


# Words ------------------------------------------------------------------------------------------


def test_the_words_are_those_of_the_format(pool: Any) -> None:
    array = pool.root["array"] = pool.new(
        PersistentArray, np.asfortranarray([[1, 2, 3], [4, 5, 6]], "<i2")
    )
    words = pool.mm.words
    header, block, first, size, told, order = words[array._p_index : array._p_index + 6].tolist()
    assert header == 21 << TYPE_CODE_SHIFT | 1
    assert (first % 64, size, order) == (0, 12, 1)
    assert pool.mm.map[first : first + 12] == b"\1\0\4\0\2\0\5\0\3\0\6\0"
    assert pool.mm.heap.type_num_of(block) == 34
    assert pool.mm.heap.type_num_of(told) == 35
    assert words[told >> 3 : (told >> 3) + 3].tolist() == [2, 2, 3]
    assert pool.mm.map[told + 24 : told + pool.mm.heap.size_of(told)] == b'"<i2"'


@pytest.mark.parametrize(
    ("place", "value", "invariant"),
    [
        (1, 4096, "A2"), (1, 0, "A2"), (2, 8, "A2"), (2, 1 << 40, "A2"), (3, 1 << 39, "A2"), (3, 95, "A3"),
        (3, 0, "A2"), (4, 0, "A1"), (4, 4096, "A1"), (5, 2, "A1"), ("ndim", 65, "A1"), ("ndim", 9, "A1"),
        ("length", 7, "A3"), ("text", 0xFF, "A1"),
    ],
)  # fmt: skip
def test_check_sees_damage(pool: Any, array: Any, place: Any, value: int, invariant: str) -> None:
    words = pool.mm.words
    told = words[array._p_index + 4]
    index = {"ndim": told >> 3, "length": (told >> 3) + 1, "text": (told >> 3) + 3}.get(place)
    index = array._p_index + place if index is None else index
    assert list(PersistentArray._p_problems(pool.mm, array._p_offset)) == []
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        pool.mm.snapshot_range(array._p_oid, 48)
        pool.mm.snapshot_range(told, pool.mm.heap.size_of(told))
        words[index] = value
        assert invariant in [
            each[2] for each in PersistentArray._p_problems(pool.mm, array._p_offset)
        ]
        array._p_forget()
        if place != 5:
            with pytest.raises(CorruptionError):
                array.view()
        pool.transaction().abort()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b'"O"',
        b'"<f7"',
        b"5",
        b"{}",
        b'{"base":"<f8"}',
        b'{"names":[],"formats":[],"offsets":[],"titles":[],"aligned":false}',
        b"[" * 10_000,
        b"\xff",
        b'"f8,O"',
    ],
)  # fmt: skip
def test_what_is_no_dtype(text: bytes) -> None:
    with pytest.raises(CorruptionError, match="no dtype is"):
        restore(text)
