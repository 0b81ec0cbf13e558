"""NumPy's dtypes as text that needs neither NumPy's names nor its pickles.  (docs/format-pmemobj.md)

JSON, ASCII only:

    "<f8"                                           the array interface's type string
    {"base": <dtype>, "shape": [2, 3]}              a field that is an array itself
    {"names": [...], "formats": [<dtype>, ...],     a structure
     "offsets": [...], "titles": [...],             titles: null where a field has none
     "itemsize": 16, "aligned": false}

Whatever cannot be said so exactly is refused: dtypes with Python objects, and those of other packages.
"""

from __future__ import annotations

import json
from typing import Any

from pmshelve.errors import CorruptionError, UnsupportedTypeError

__all__ = ["describe", "restore"]


def describe(dtype: Any) -> bytes:
    """Return the description of a dtype.

    Raises
    ------
    UnsupportedTypeError
        It holds Python objects, or has no description.
    """
    if not dtype.hasobject:
        text = json.dumps(_described(dtype), separators=(",", ":")).encode()
        try:
            if _restored(json.loads(text)) == dtype:
                return text
        except (TypeError, ValueError):
            pass
    raise UnsupportedTypeError(
        f"Don't know how to persist an array of {dtype!r}",
        hint="use a plain dtype, or a PersistentList of objects",
    )


def _described(dtype: Any) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _described(base), "shape": list(shape)}
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_described(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def restore(text: bytes) -> Any:
    """Return the dtype of a description.

    Raises
    ------
    CorruptionError
        It is none, or of something that this platform does not have.
    """
    try:
        dtype = _restored(json.loads(text))
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise CorruptionError(f"no dtype is {text[:80]!r}: {error}", invariant="A1") from None
    return dtype


def _restored(told: Any) -> Any:
    import numpy as np

    if isinstance(told, str):
        return np.dtype(told)
    if "base" in told:
        return np.dtype((_restored(told["base"]), tuple(told["shape"])))
    fields = {
        "names": told["names"],
        "formats": [_restored(each) for each in told["formats"]],
        "offsets": told["offsets"],
        "itemsize": told["itemsize"],
    }
    if any(title is not None for title in told["titles"]):
        fields["titles"] = told["titles"]
    make: Any = np.dtype
    return make(fields, align=bool(told["aligned"]))
