"""Values to store, and what it means that one came back."""

from __future__ import annotations

import datetime
import decimal
import math
from collections import OrderedDict
from typing import Any

import numpy as np
from hypothesis import strategies as st

LONG_KEY = "k" * 256
"""One byte more than mmappickle can read."""

AWKWARD_KEYS = [
    "",
    "\0",
    "k" * 255,
    LONG_KEY,
    "é" * 128,
    "x" * 70_000,
    "\ud800",
    "a\udcffb",
    "\U0001f40d",
    "\0pmshelve",
    "\0pmshelve/1",
    "\0pmshelve:key",
    "\0pmshelve/batch",
    "\0pmshelve/index",
    "\0pmshelve/fill",
    "\0pmshelve/anything",
]
"""Keys that the file cannot hold as they are, and those next to them."""

PLAIN_KEYS = [key for key in AWKWARD_KEYS if len(key.encode("utf-8", "surrogatepass")) <= 255
              and key.isprintable()]  # fmt: skip
"""The awkward keys that mmappickle can read."""


def scalars() -> dict[str, Any]:
    """Return values of every type that is stored without a pickle of its own, by name."""
    return {
        "none": None,
        "true": True,
        "false": False,
        "zero": 0,
        "byte": 255,
        "two bytes": 65535,
        "int": 2**31 - 1,
        "negative": -1,
        "long": -(2**31) - 1,
        "long1 limit": 1 << (8 * 254),
        "long4": -(1 << (8 * 300)),
        "float": 1.5,
        "minus zero": -0.0,
        "nan": math.nan,
        "infinite": -math.inf,
        "empty text": "",
        "text": "héllo 世\0",
        "text 256": "t" * 256,
        "long text": "é" * 40_000,
        "surrogate": "\ud800",
        "empty bytes": b"",
        "bytes": b"\x00\xff0.\x88",
        "bytes 256": b"b" * 256,
        "long bytes": bytes(range(256)) * 300,
    }


def objects() -> dict[str, Any]:
    """Return values that are stored as a pickle of their own, by name."""
    shared = [1, 2, 3]
    recursive: list[Any] = [1]
    recursive.append(recursive)
    return {
        "list": shared,
        "shared": {"a": [shared, shared], "b": ("s", "s"), 3: None},
        "ordered": OrderedDict(z=1, a=2),
        "date": datetime.date(2018, 3, 5),
        "decimal": decimal.Decimal("1.10"),
        "frozenset": frozenset({1, 2}),
        "bytearray": bytearray(b"writable"),
        "long bytearray": bytearray(100_000),
        "complex": 1 - 2j,
        "type": OrderedDict,
        "bool in list": [True, 1, 1.0, -0.0, None],
    }


def arrays() -> dict[str, Any]:
    """Return arrays of many kinds, by name."""
    grid = np.arange(24, dtype="i4").reshape(2, 3, 4)
    record = np.zeros(3, dtype=[("x", "<f4"), ("name", "S3"), ("sub", ">i2", (2,))])
    record["x"] = [1, 2, 3]
    aligned = np.zeros(2, dtype=np.dtype([("a", "u1"), ("b", "f8")], align=True))
    return {
        "u1": np.arange(3, dtype="u1"),
        "f8": np.arange(12.0).reshape(3, 4),
        "3d": grid,
        "fortran": np.asfortranarray(grid),
        "strided": grid[:, ::2, ::-1],
        "0-d": np.array(3.5),
        "empty": np.zeros((0, 3)),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "big-endian": np.arange(4, dtype=">f4"),
        "half": np.arange(4, dtype="f2"),
        "longdouble": np.arange(4, dtype=np.longdouble),
        "datetime": np.array(["2020-01-01", "NaT"], dtype="M8[s]"),
        "timedelta": np.array([1, 2], dtype="m8[25us]"),
        "text": np.array(["a", "é世"]),
        "bytes": np.array([b"a", b"bc"]),
        "void": np.frombuffer(b"abcdef", dtype="V3"),
        "record": record,
        "aligned": aligned,
        "large": np.arange(50_000),
    }


def masked_arrays() -> dict[str, Any]:
    """Return masked arrays, by name."""
    plain = np.ma.MaskedArray([[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 0, 1]])
    filled = np.ma.MaskedArray([1.5, 2.5], [True, False], fill_value=-9.0)
    hard = np.ma.MaskedArray([1, 2], [False, True], hard_mask=True)
    return {"masked": plain, "unmasked": np.ma.zeros((2, 3)), "fill value": filled, "hard": hard}


def all_values() -> dict[str, Any]:
    """Return everything above, by name."""
    return {**scalars(), **objects(), **arrays(), **masked_arrays()}


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal in type and content, arrays and NaNs included.

    An array is the same whichever subclass of `numpy.ndarray` a map gave it.
    """
    if isinstance(left, np.ma.MaskedArray) or isinstance(right, np.ma.MaskedArray):
        return _same_masked(left, right)
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return _same_array(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left.hex() == right.hex()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _same_array(left: Any, right: Any) -> bool:
    return (
        isinstance(left, np.ndarray)
        and isinstance(right, np.ndarray)
        and left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def _same_masked(left: Any, right: Any) -> bool:
    return (
        isinstance(left, np.ma.MaskedArray)
        and isinstance(right, np.ma.MaskedArray)
        and _same_array(left.data, right.data)
        and np.array_equal(np.ma.getmaskarray(left), np.ma.getmaskarray(right))
        and _same_array(np.asarray(left.fill_value), np.asarray(right.fill_value))
        and left.hardmask == right.hardmask
    )


def assert_same(left: Any, right: Any) -> None:
    """Fail, showing both, unless `same`."""
    assert same(left, right), f"{left!r}\n  is not\n{right!r}"


# For Hypothesis ---------------------------------------------------------------------------------

_atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=300)
)


def stored_values() -> st.SearchStrategy[Any]:
    """Values of every kind that a store keeps, mostly small."""
    nested = st.recursive(
        _atoms,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    )
    sizes = st.sampled_from([0, 1, 7, 64, 2000, 20_000])
    numbers = st.builds(
        lambda size, dtype, first: (np.arange(size) + first).astype(dtype),
        sizes,
        st.sampled_from(["u1", "<i8", ">f4"]),
        st.integers(0, 100),
    )
    blobs = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))
    holders = st.builds(lambda array, atom: {"array": array, "atom": atom}, numbers, _atoms)
    return _atoms | nested | numbers | blobs | holders
