"""``get FILE KEY``: one value."""

from __future__ import annotations

import argparse
import pprint
import sys
from typing import TYPE_CHECKING, Any

from pmshelve.cli.detect import open_file
from pmshelve.cli.keys import printable
from pmshelve.errors import PickleRefusedError, PmshelveError

if TYPE_CHECKING:
    from pmshelve.cli.pool import PoolFile
    from pmshelve.mmapdict import mmapdict

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("get", help="print one value")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("key", metavar="KEY")
    parser.add_argument(
        "--raw", action="store_true", help="write the bytes of a text, bytes or array, and no more"
    )
    parser.add_argument(
        "--unpickle",
        action="store_true",
        help="load any kind of value, import any class; this can run code that is in the file",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with open_file(arguments.file, allow_pickle=arguments.unpickle) as store:
        if arguments.key not in store:
            print(f"pmshelve: no key {printable(arguments.key)!r}", file=sys.stderr)
            return 1
        value = _load(store, arguments)
        if arguments.raw:
            sys.stdout.buffer.write(_raw(value, arguments))
        else:
            print(_shown(value))
    return 0


def _load(store: mmapdict | PoolFile, arguments: argparse.Namespace) -> Any:
    try:
        return store[arguments.key]
    except PickleRefusedError:
        problem, hint = "the value is a pickle", "use --unpickle if you trust the file"
    except PmshelveError:
        raise
    except Exception as error:  # noqa: BLE001 - unpickling runs any code
        problem, hint = f"the value cannot be loaded: {type(error).__name__}: {error}", ""
    raise PmshelveError(problem, arguments.file, arguments.key, hint)


def _raw(value: Any, arguments: argparse.Namespace) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    if _is_array(value):
        return bytes(value.tobytes())
    raise PmshelveError(
        f"a value of type {type(value).__name__} has no raw form", arguments.file, arguments.key
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if _is_array(value):
        return f"{value.dtype} array, shape {value.shape}, {value.nbytes} bytes\n{value}"
    return pprint.pformat(value)


def _is_array(value: Any) -> bool:
    """Tell a NumPy array without importing NumPy where there is none."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
