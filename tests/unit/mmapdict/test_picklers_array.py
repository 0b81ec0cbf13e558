"""Arrays: exact, mapped, aligned, in every layout and dtype; refused where a file lies."""

from __future__ import annotations

import contextlib
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmshelve.errors import CorruptionError, UnsupportedTypeError
from pmshelve.mmapdict import EmptyNDArray
from pmshelve.mmapdict.opcodes import Buffer, Call, Global, emit
from pmshelve.mmapdict.picklers.array import CHUNK_SIZE, chunks_of
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.codec import encode
from pmshelve.mmapdict.picklers.dtypes import dtype_spec, load_dtype
from pmshelve.mmapdict.picklers.generic import encode_buffers
from tests.support.codec import (
    FakeSource,
    address,
    both,
    global_names,
    lies_in,
    load_body,
    place,
    stored,
)

ALIGNED = np.dtype([("a", "u1"), ("b", "<f8"), ("c", "<i2", (2, 3))], align=True)
TITLED = np.dtype({"names": ["a", "b"], "formats": ["<i4", "S3"], "titles": ["A title", None]})
GAPPED = np.dtype({"names": ["a"], "formats": ["<i4"], "offsets": [5], "itemsize": 17})
OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2]})
NESTED = np.dtype([("outer", [("x", ">f4"), ("y", ALIGNED, (2,))]), ("é", "<U2")])
DTYPES: list[Any] = [
    *"?bBhHiIlLqQefdgFDG",
    *(">i2", ">f4", ">c16", "<U5", ">U5", "S5", "V7", "S0", "U0", "V0"),
    *("M8[D]", "M8[ns]", "M8[25s]", "M8[us]", "M8", ">M8[ms]", "m8[h]", "m8"),
    *([("a", "<i4"), ("b", "S3")], [], ALIGNED, TITLED, GAPPED, OVERLAPPING, NESTED),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


def some(dtype: Any, shape: tuple[int, ...] = (3, 2)) -> Any:
    """Return an array of this dtype, its bytes not all zero."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    data = (np.arange(size) % 100 + 1).astype("u1")
    if dtype.kind in "U?":
        data = (np.arange(size) % 4 == 0).astype("u1")
    return np.ndarray(shape, dtype, bytearray(data.tobytes()))


def assert_exact(read: Any, value: Any) -> None:
    assert type(read) is np.ndarray or type(read) is np.memmap
    assert read.dtype == value.dtype
    assert repr(read.dtype) == repr(value.dtype)
    assert read.dtype.isalignedstruct == value.dtype.isalignedstruct
    assert read.dtype.itemsize == value.dtype.itemsize
    assert read.shape == value.shape
    assert read.tobytes() == value.tobytes()


# Dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_round_trips(path: Path, dtype: Any) -> None:
    for shape in ((3, 2), (), (0, 4), (2, 0), (50, 40)):
        value = some(dtype, shape)
        source = stored(path, value, allow_pickle=False)
        read = source.get()
        assert type(read) is np.memmap
        assert_exact(read, value)
        loaded = load_body(source.content())
        assert_exact(loaded, value)
        assert loaded.flags.writeable
        for inside in both(path, [value]):
            assert_exact(inside[0], value)
            assert inside[0].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_are_literals(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    spec = dtype_spec(dtype)
    again = load_dtype(pickle.loads(emit(spec) + b"."))
    assert repr(again) == repr(dtype)
    assert again.fields == dtype.fields
    assert np.dtype(spec) == again


@given(dtype=hnp.nested_dtypes(max_itemsize=300), align=st.booleans())
def test_any_dtype_survives(dtype: Any, align: bool) -> None:
    dtype = np.dtype([("field", dtype), ("other", "u1")], align=align)
    spec = dtype_spec(dtype)
    if spec is None:  # NumPy would align the inner structure too
        assert align
        assert not dtype["field"].base.isalignedstruct
        again = load_body(place(encode(np.zeros(2, dtype)))).dtype
    else:
        again = load_dtype(pickle.loads(emit(spec) + b"."))
    assert repr(again) == repr(dtype)
    assert again == dtype
    assert again.isalignedstruct == dtype.isalignedstruct == align


def test_what_is_no_literal() -> None:
    record = np.dtype((np.record, [("a", "<i4")]))
    titled = np.dtype({"names": ["a"], "formats": ["<i4"], "titles": [3]})
    for dtype in (np.dtype("O"), np.dtype([("a", "O")]), record, titled, np.dtype([("r", record)])):
        assert dtype_spec(dtype) is None
    deep = np.dtype("u1")
    for _ in range(40):
        deep = np.dtype([("a", deep)])
    assert dtype_spec(deep) is None


_DICT = {"names": ["a"], "formats": ["<i4"], "offsets": [0], "itemsize": 4, "aligned": False}


@pytest.mark.parametrize(
    "spec",
    [
        *("O", "|O8", "<O", "f8,O", "i4, i4", "float", "object", "<f3", "<f99", "<i99999999999"),
        *("<M8[ns", "<M8[x]", "<M8[99999999999s]", "|S-1", "|T16", "", "<", "(2,)<i4", "<i4\n"),
        *(
            None,
            5,
            b"<i4",
            [],
            ["<i4"],
            {},
            (),
            ("<i4",),
            ("<i4", (2,)),
            ("<i4", 2),
            ("<i4", (-1,)),
        ),
        {**_DICT, "extra": 1},
        {**_DICT, "formats": ["|O8"]},
        {**_DICT, "formats": ["<i4", "<i4"]},
        {**_DICT, "formats": "<i4"},
        {**_DICT, "formats": [("<i4", (2**40,))]},
        {**_DICT, "names": [5]},
        {**_DICT, "names": ["a", "a"], "formats": ["<i4"] * 2, "offsets": [0, 0]},
        {**_DICT, "offsets": [2]},
        {**_DICT, "offsets": [-1]},
        {**_DICT, "offsets": ["0"]},
        {**_DICT, "itemsize": -4},
        {**_DICT, "itemsize": 2**70},
        {**_DICT, "itemsize": "4"},
        {**_DICT, "aligned": 1},
        {**_DICT, "aligned": True, "offsets": [1], "itemsize": 8},
        {**_DICT, "titles": [b"t"]},
        {key: value for key, value in _DICT.items() if key != "names"},
    ],
    ids=str,
)
def test_dtypes_that_are_not_one_are_corrupt(spec: Any) -> None:
    with pytest.raises(CorruptionError, match="dtype"):
        load_dtype(spec)


def test_a_dtype_nested_too_deep_is_corrupt() -> None:
    spec: Any = "<i4"
    for _ in range(3000):
        spec = (spec, (1,))
    with pytest.raises(CorruptionError):
        load_dtype(spec)


# Layouts ----------------------------------------------------------------------------------------

_cube = np.arange(24, dtype="<i4").reshape(2, 3, 4)
LAYOUTS: dict[str, Any] = {
    "c": _cube,
    "fortran": np.asfortranarray(_cube),
    "transposed": _cube.transpose(1, 0, 2),
    "reversed": _cube[::-1, :, ::-1],
    "strided": _cube[:, ::2, 1:3],
    "column": _cube[:, 1, 2],
    "broadcast": np.broadcast_to(np.arange(4.0), (3, 4)),
    "read-only": np.frombuffer(b"abcdefgh", "<i4"),
    "unaligned": np.frombuffer(bytearray(b"x" * 17), "<i4", offset=1),
    "ones": np.ones((1, 1, 5)),
    "0-d": np.array(7.5),
    "0-d view": _cube[1, 2, 3:4].reshape(()),
    "many dimensions": np.ones((1,) * 31 + (3,)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
def test_layouts_round_trip(path: Path, name: str, mode: Any) -> None:
    value = LAYOUTS[name]
    source = stored(path, value, mode)
    read = source.get()
    assert_exact(read, value)
    assert read.flags.fnc == value.flags.fnc
    assert read.flags.writeable == (mode != "r")
    assert_exact(load_body(source.content()), value)
    source = stored(path, [value], mode)
    for (inside,) in (source.get(), load_body(source.content())):
        assert_exact(inside, value)
        assert inside.flags.fnc == value.flags.fnc


@given(
    value=hnp.arrays(
        hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)
    ),
    data=st.data(),
)
def test_any_view_of_any_array_round_trips(tmp_path_factory: Any, value: Any, data: Any) -> None:
    path = tmp_path_factory.mktemp("array") / "value"
    view = value[data.draw(hnp.basic_indices(value.shape, allow_newaxis=True))]
    view = np.asarray(view).transpose(data.draw(st.permutations(range(np.ndim(view)))))
    for read in both(path, view):
        assert_exact(read, view)
    for read in both(path, {"inside": view}):
        assert_exact(read["inside"], view)


def test_contiguous_memory_is_handed_over_as_it_is() -> None:
    for value in (np.arange(10_000), np.ones((100, 80), order="F"), np.array(5.0)):
        (chunk,) = chunks_of(value)
        assert isinstance(chunk, memoryview)
        assert (chunk.format, chunk.ndim, chunk.nbytes) == ("B", 1, value.nbytes)
        assert address(chunk) == address(value)


def test_other_memory_is_copied_a_part_at_a_time() -> None:
    base = np.arange(4_000_000, dtype="<i4").reshape(2000, 2000)
    for value in (base[:, ::2], base[:, 1:], base.reshape(20, 200, 1000)[:, :, ::-1], base[::2, 0]):
        tracemalloc.start()
        sizes = [chunk.nbytes for chunk in chunks_of(value)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(sizes) == value.nbytes
        assert max(sizes) <= CHUNK_SIZE
        assert peak < 2.5 * CHUNK_SIZE
        assert b"".join(chunks_of(value)) == value.tobytes()


def test_rows_larger_than_a_part() -> None:
    wide = np.arange(1_200_000, dtype="<i4").reshape(2, 600_000)
    for value in (wide[:, :500_000], wide[:, ::2], wide[::-1].reshape(2, 2, -1)[:, :, 1:]):
        assert b"".join(chunks_of(value)) == value.tobytes()
    row = np.zeros(2, "S2000000")[::-1]
    assert sum(chunk.nbytes for chunk in chunks_of(row)) == row.nbytes


def test_a_memmap_is_stored_as_an_array(path: Path, tmp_path: Path) -> None:
    value = np.memmap(tmp_path / "other", "<f4", "w+", shape=(300, 5))
    value[:] = 3
    for read in both(path, value):
        assert_exact(read, np.asarray(value))
    for read in both(path, [value]):
        assert_exact(read[0], np.asarray(value))
        assert type(read[0]) is np.ndarray


# Maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r+", "r", "c"])
def test_what_comes_back_is_a_memmap(path: Path, mode: Any) -> None:
    source = stored(path, np.arange(1000), mode)
    read = source.get()
    assert type(read) is np.memmap
    assert read.filename == str(path)
    assert read.mode == mode
    assert read.offset % 64 == 0
    assert np.array_equal(np.memmap(path, read.dtype, "r", read.offset, read.shape), read)
    assert lies_in(read, source.map) == (mode != "c")
    part = read[10:20]
    assert (type(part), part.filename, part.mode) == (np.memmap, read.filename, mode)
    read.flush()
    if mode == "r":
        with pytest.raises(ValueError, match="read-only"):
            read[0] = 5
        return
    read[0] = 99
    read.flush()
    assert source.get()[0] == (99 if mode == "r+" else 0)


def test_an_empty_array_is_a_memmap_too(path: Path) -> None:
    read = stored(path, np.zeros((0, 3)), "r").get()
    assert (type(read), read.filename, read.mode) == (np.memmap, str(path), "r")
    assert not read.flags.writeable
    assert read.offset % 64 == 0
    read.flush()


def test_without_a_path_there_is_no_filename(path: Path) -> None:
    source = stored(path, np.arange(3))
    source.path = None  # type: ignore[assignment]
    assert source.get().filename is None


def test_in_memory_is_a_plain_array(path: Path) -> None:
    read = stored(path, np.arange(3), None).get()
    assert type(read) is np.ndarray
    assert read.flags.writeable


def test_arrays_inside_objects_are_mapped(path: Path) -> None:
    value = {"a": np.arange(1000), "b": [np.ones((40, 50), "f4", order="F"), np.arange(3)]}
    source = stored(path, value)
    read = source.get()
    for large in (read["a"], read["b"][0]):
        assert lies_in(large, source.map)
        assert address(large) % 64 == 0
    assert not lies_in(read["b"][1], source.map)
    read["a"][0] = 77
    assert source.get()["a"][0] == 77
    assert load_body(source.content())["a"][0] == 77


def test_an_array_that_is_shared_is_stored_once(path: Path) -> None:
    array = np.arange(5000)
    body, _ = encode([array, array])
    assert sum(isinstance(piece, Blob) for piece in body) == 1
    for read in both(path, [array, array]):
        assert read[0] is read[1]


# What is no plain array -------------------------------------------------------------------------


class Tagged(np.ndarray):
    pass


class Counted(np.ndarray):
    """Pickles in its own way."""

    def __reduce__(self) -> Any:
        return _make_counted, (self.tolist(),)


def _make_counted(items: Any) -> Any:
    return np.array(items).view(Counted)


_objects = np.array([1, "a", None, [2]], dtype=object)
OTHERS: dict[str, Any] = {
    "objects": _objects,
    "objects 2-d": _objects.reshape(2, 2).copy(order="F"),
    "objects 0-d": np.array(None, dtype=object),
    "no objects": np.empty((0, 2), dtype=object),
    "record of objects": np.array([(1, "a")], dtype=[("a", "i4"), ("b", "O")]),
    "matrix": np.array([[1, 2], [3, 4]]).view(np.matrix),
    "large matrix": np.ones((60, 60)).view(np.matrix),
    "recarray": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "array of records": np.array([(1,)], dtype=np.dtype((np.record, [("a", "i4")]))),
    "subclass": np.arange(3000).view(Tagged),
    "own reduction": np.arange(3).view(Counted),
}
if hasattr(getattr(np, "dtypes", None), "StringDType"):
    OTHERS["strings"] = np.array(["a", "long " * 50], np.dtypes.StringDType())
    _missing = np.dtypes.StringDType(na_object=None, coerce=False)
    OTHERS["missing strings"] = np.array(["a", None], _missing)


@pytest.mark.parametrize("name", OTHERS)
def test_other_arrays_keep_type_and_content(path: Path, name: str) -> None:
    value = OTHERS[name]
    for wrap in (lambda item: item, lambda item: [item]):
        for read in both(path, wrap(value)):
            read = read[0] if isinstance(read, list) else read
            assert type(read) is type(value)
            assert read.dtype == value.dtype
            assert read.dtype.type is value.dtype.type
            assert read.flags.fnc == value.flags.fnc
            assert read.shape == value.shape
            assert read.tolist() == value.tolist()


def test_subclasses_are_mapped(path: Path) -> None:
    source = stored(path, OTHERS["large matrix"])
    assert lies_in(source.get(), source.map)


def test_an_array_that_holds_itself(path: Path) -> None:
    value = np.empty(2, dtype=object)
    value[0], value[1] = value, 5
    for read in both(path, value):
        assert read[0] is read
        assert read[1] == 5


def test_objects_that_do_not_pickle_are_a_type_error() -> None:
    with pytest.raises(UnsupportedTypeError):
        encode(np.array([lambda: None]))


SCALARS: list[Any] = [
    *(np.dtype(code).type(1) for code in "?bBhHiIlLqQefdgFDG"),
    *(
        np.float64("nan"),
        np.float32(1 / 3),
        np.float16(1 / 3),
        np.longdouble(1) / 3,
        -np.float64(0),
    ),
    *(
        np.str_("a\0"),
        np.bytes_(b"a\0"),
        np.datetime64("2020-01-01T01", "25h"),
        np.datetime64("NaT", "s"),
    ),
    *(np.timedelta64(3, "ns"), np.void(b"abc"), np.array([(1, 2.0)], "i4,f8")[0]),
    np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_scalars_keep_type_and_bits(path: Path, value: Any) -> None:
    for wrapped in (value, [value]):
        for read in both(path, wrapped):
            read = read[0] if isinstance(read, list) else read
            assert type(read) is type(value)
            assert read.dtype == value.dtype
            if value.dtype.char in "gG":  # part of whose bytes is chance
                assert read == value
            else:
                assert read.tobytes() == value.tobytes()
            if isinstance(value, str | bytes):
                assert len(read) == len(value)
            if value.dtype.names:
                read[0] = 0  # can be written to


PUBLIC = {
    *("pickle.loads", "functools.partial", "builtins.getattr", "importlib.import_module"),
    *("numpy.ndarray", "numpy.dtype", "numpy.take", "numpy.matrix", "numpy.str_", "numpy.bytes_"),
    *("builtins.complex", "numpy.ma.MaskedArray", "numpy.ma.nomask", "numpy.dtypes.StringDType"),
    *(f"numpy.{np.dtype(code).type.__name__}" for code in "bBhHiIlLqQefdFD"),
    # Where NumPy says these are, which depends on its version.
    *(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in (np.recarray, np.record, np.ma.MaskedArray)
    ),
}


def test_only_public_names_reach_the_file() -> None:
    plain = [np.arange(3), np.arange(3000), np.ma.masked, np.ma.zeros(3), *SCALARS]
    others = [value for name, value in OTHERS.items() if "sub" not in name and "own" not in name]
    for value in (plain, others, np.zeros(3), np.ma.array([1], mask=[1]), np.ma.zeros(2)):
        names = global_names(place(encode(value)) + b".")
        assert {name for name in names if "StringDType" not in name} <= PUBLIC


# Allocation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [3, (), (0,), (2, 3), [4], np.array([2, 2])])
def test_a_stub_is_an_array_of_zeros(path: Path, shape: Any) -> None:
    stub = EmptyNDArray(shape, "<i4")
    for read in both(path, stub):
        assert_exact(read, np.zeros(shape, "<i4"))
        assert read.flags.writeable


def test_a_stub_allocates_without_writing() -> None:
    for reserve in (False, True):
        body, _ = encode(EmptyNDArray((2**20, 2**20), reserve=reserve))
        (blob,) = (piece for piece in body if isinstance(piece, Blob))
        assert blob.size == 2**43
        assert blob.chunks is None
        assert blob.reserve == reserve


def test_what_a_stub_says() -> None:
    stub = EmptyNDArray((2, 3))
    assert (stub.shape, stub.dtype, stub.nbytes, stub.reserve) == (
        (2, 3),
        np.dtype(float),
        48,
        False,
    )
    assert repr(stub) == "EmptyNDArray((2, 3), '<f8', reserve=False)"
    assert EmptyNDArray(3, ("<i4", (2, 2))).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((-1,),), ValueError),
        (((3, -2), "i4"), ValueError),
        (((2**40, 2**40),), ValueError),
        (((2,), "O"), TypeError),
        (((2,), [("a", "O")]), TypeError),
        ((1.5,), TypeError),
        (((1.5,),), TypeError),
        (((2,), "nonsense"), TypeError),
    ],
)
def test_stubs_of_nothing_are_refused(arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        EmptyNDArray(*arguments)


def test_a_stub_of_an_inexact_dtype_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="cannot be allocated"):
        encode(EmptyNDArray((2,), np.dtype((np.record, [("a", "i4")]))))


def test_a_stub_inside_an_object_is_a_type_error() -> None:
    with pytest.raises(UnsupportedTypeError, match="of its own"):
        encode({"a": EmptyNDArray((2,))})


# Files that lie ---------------------------------------------------------------------------------


def array_call(*arguments: Any) -> bytes:
    """Return the value opcodes of an array with these arguments and 24 bytes of data."""
    raw = b"\x80\x05" + emit(Call(Global("numpy", "ndarray"), arguments)) + b"."
    blob = Blob(24, lambda: [bytes(24)])
    return place((encode_buffers([blob], [emit(raw)]), True))


GOOD = ((3,), "<f8", Buffer(0), 0, None, "C")


def test_the_forger_can_make_a_good_one(path: Path) -> None:
    assert array_call(*GOOD) == place(encode(np.zeros(3)))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        *(
            (0, shape)
            for shape in [(4,), (2,), (0,), (-3,), (3, -1), (2**70,), (0, 2**70), (True, 3)]
        ),
        *(
            (0, shape)
            for shape in [3, [3], ("3",), None, (1,) * 70 + (3,), (0,) * 70, (0, 2**62, 4)]
        ),
        *((1, spec) for spec in ["<f4", "|O8", "O", "object", None, ("<f8", (1,)), "|V0"]),
        *((2, buffer) for buffer in [bytes(24), None, Global("os", "system")]),
        *((3, offset) for offset in [8, -8, None, 2**70]),
        *((4, strides) for strides in [(8,), (2**60,), ()]),
        *((5, order) for order in ["K", None, b"C", 5, "A"]),
    ],
    ids=repr,
)
def test_arguments_that_do_not_fit_are_corrupt(path: Path, index: int, value: Any) -> None:
    arguments = [*GOOD]
    arguments[index] = value
    for allow_pickle in (False, True):
        with pytest.raises(CorruptionError):
            FakeSource(path, array_call(*arguments), allow_pickle=allow_pickle).get()


def test_too_many_or_few_arguments_are_corrupt(path: Path) -> None:
    for arguments in (GOOD[:5], (*GOOD, None), ()):
        with pytest.raises(CorruptionError):
            FakeSource(path, array_call(*arguments)).get()


def test_two_buffers_for_one_array_are_corrupt(path: Path) -> None:
    raw = b"\x80\x05" + emit(Call(Global("numpy", "ndarray"), GOOD)) + b"."
    blobs = [Blob(24, lambda: [bytes(24)])] * 2
    with pytest.raises(CorruptionError):
        FakeSource(path, place((encode_buffers(blobs, [emit(raw)]), True))).get()


@given(
    at=st.integers(0, 2000),
    byte=st.integers(0, 255),
    value=st.sampled_from([np.arange(5), some(NESTED, (2,)), np.zeros((0, 2))]),
)
def test_a_changed_byte_is_another_array_or_refused(
    tmp_path_factory: Any, at: int, byte: int, value: Any
) -> None:
    opcodes = bytearray(place(encode(value), padding=5))
    opcodes[at % len(opcodes)] = byte
    source = FakeSource(
        tmp_path_factory.mktemp("flip") / "value", bytes(opcodes), allow_pickle=False
    )
    with contextlib.suppress(ValueError, TypeError):
        read = source.get()
        assert read.nbytes <= len(opcodes)
        read.tobytes()
