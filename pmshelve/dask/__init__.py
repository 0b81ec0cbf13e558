"""Dask workers that spill into one of our stores instead of a directory of files.

`SpillBuffer` is what a worker keeps its results in, for its argument `data=`; `SpillPlugin` puts the
same store under the workers of a running cluster.  Both are loaded when they are first used, since
`distributed` takes a second to import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pmshelve.dask.buffer import SpillBuffer
    from pmshelve.dask.plugin import SpillPlugin

__all__ = ["SpillBuffer", "SpillPlugin"]

_MODULES = {"SpillBuffer": "buffer", "SpillPlugin": "plugin"}


if not TYPE_CHECKING:  # to whom the module would have any name

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f"pmshelve.dask.{_MODULES[name]}"), name)
        except ImportError as error:
            raise ImportError(
                f"pmshelve.dask needs distributed and zict ({error}): pip install pmshelve[dask]",
                name=error.name,
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
