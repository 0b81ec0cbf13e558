"""A pickled dict, as ``pickle.dump(dict, file)`` leaves it.

It can only be read as a whole, and only by the unpickler: by one that imports nothing, which is
enough for literals, unless the user trusts the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from pmshelve.convert import files
from pmshelve.convert.pickles import Refusing
from pmshelve.convert.source import Item, Source
from pmshelve.errors import NotAStoreError, PickleRefusedError

__all__ = ["PickledDictSource", "is_pickle"]


def is_pickle(path: str, head: bytes) -> bool:
    """Whether a file begins as the pickle of an object or, before protocol 2, of a dict; and ends so."""
    begins = head[:1] == b"\x80" and head[1:2] <= bytes((pickle.HIGHEST_PROTOCOL,))
    if not begins and not head.startswith((b"(d", b"}")):
        return False
    return files.read(path, 1, files.size(path) - 1) == b"."


class PickledDictSource(Source):
    """The dict, in memory.

    Parameters
    ----------
    path
        The file's name.
    unpickle
        Let the pickle import and call what it names.

    Raises
    ------
    PickleRefusedError
        It has to, and `unpickle` is False.
    NotAStoreError
        It is no pickle, one of something else than a dict, or several.
    """

    kind = "pickle"

    def __init__(self, path: str, *, unpickle: bool = False) -> None:
        super().__init__(path)
        self.watch()
        data = files.content(path)
        stream = data if hasattr(data, "readline") else _stream(data)
        try:
            content: Any = (pickle.Unpickler if unpickle else Refusing)(stream).load()
        except PickleRefusedError as error:
            raise PickleRefusedError(
                f"reading this pickle runs what it names: {error.problem}",
                path,
                hint="add --unpickle (unpickle=True) if you trust whoever wrote it",
            ) from None
        except Exception as error:
            raise NotAStoreError(f"the pickle does not load: {error!r}", path) from error
        rest = len(data) - stream.tell()
        if rest:
            raise NotAStoreError(
                f"there is more behind the first pickle: {rest} bytes",
                path,
                hint="load the pickles one by one, and put them into a store in Python",
            )
        if not isinstance(content, Mapping):
            raise NotAStoreError(f"a pickle of a {type(content).__name__}, not of a dict", path)
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[Item]:
        for key, value in self._content.items():
            yield Item(key, value)


def _stream(data: bytes) -> Any:
    import io

    return io.BytesIO(data)
