"""``run [--default NAME] SCRIPT ARG...``: run an unchanged program over our dbm modules.

The program finds `sys.argv`, `sys.path[0]`, `__file__` and the module `__main__` as if ``python``
had been called with what follows ``run``, and `dbm` and `shelve` knowing our modules
(`pmshelve.dbm_compat.register`).  Processes that it forks know them too; those it starts anew (by
`multiprocessing` with spawn, too) do not.

The program's `__main__` stays in place after its last line, because its threads and exit functions
may still need it; the public functions of `runpy` put the former one back before those are done.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType
from typing import Any

from pmshelve.dbm_compat.registry import MODULES, register

__all__ = ["add", "main"]

_USAGE = f"pmshelve run [--default {{{','.join(MODULES)}}}] (SCRIPT | -m MODULE) [ARG ...]"
_HELP = "run a Python program with dbm and shelve over our stores"


def add(commands: Any) -> None:
    """Add the command to the parser, for the help text; `main` does the work."""
    commands.add_parser("run", help=_HELP, usage=_USAGE)


def main(arguments: Sequence[str]) -> int:
    """Run a program; what it raises is raised, `SystemExit` among it.

    Parameters
    ----------
    arguments
        What follows ``run`` on the command line.

    Returns
    -------
    int
        The exit code: 0 when the program came to its end, 1 or 2 when it was not found.
    """
    default, is_module, program = _parse(arguments)
    register(default)
    if is_module:
        return _run_module(program)
    path = os.path.join(os.getcwd(), program[0])
    importer = pkgutil.get_importer(path)
    if importer is not None:  # a directory or an archive with a __main__.py
        return _run_spec(importer.find_spec("__main__"), program, path)
    return _run_script(path, program)


def _parse(arguments: Sequence[str]) -> tuple[str | None, bool, list[str]]:
    """Return default, whether a module is meant, and the program with its arguments.

    By hand, because argparse would look for options behind the program's name too.
    """
    parser = argparse.ArgumentParser(prog="pmshelve run", usage=_USAGE, description=_HELP)
    rest = list(arguments)
    default = None
    while rest and rest[0].startswith("-"):
        option, _, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            parser.print_help()
            parser.exit()
        elif option == "--default":
            default = value or (rest.pop(0) if rest else "")
            if default not in MODULES:
                parser.error(f"--default takes one of: {', '.join(MODULES)}")
        elif option == "-m" and rest:
            return default, True, rest
        elif option == "--":
            break
        else:
            parser.error(f"unexpected {option}")
    if not rest:
        parser.error("which script, or -m which module?")
    return default, False, rest


def _run_script(path: str, program: list[str]) -> int:
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as problem:
        return _not_found(f"{program[0]}: {problem.strerror}", 2)
    loader: Any
    if source.startswith(importlib.util.MAGIC_NUMBER):
        loader = SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
    else:
        loader = SourceFileLoader("__main__", path)
        code = loader.source_to_code(source, path)
    _execute(
        code,
        program,
        os.path.dirname(os.path.realpath(path)),
        {"__file__": path, "__loader__": loader},
    )
    return 0


def _run_module(program: list[str]) -> int:
    name = program[0]
    _set_first_path(os.getcwd())  # parents of the module are imported to find it
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as problem:
        return _not_found(str(problem), 1)
    return _run_spec(spec, program, os.getcwd())


def _run_spec(spec: ModuleSpec | None, program: list[str], first_path: str) -> int:
    loader: Any = spec and spec.loader
    code = loader.get_code(spec.name) if spec and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        return _not_found(f"there is no module in {program[0]} that can be run", 1)
    is_directory = spec.name == "__main__"
    _execute(
        code,
        program if is_directory else [spec.origin or spec.name, *program[1:]],
        first_path,
        {
            "__file__": spec.origin,
            "__cached__": spec.cached,
            "__loader__": loader,
            "__package__": spec.parent,
            "__spec__": spec,
        },
    )
    return 0


def _execute(code: CodeType, argv: list[str], first_path: str, names: dict[str, Any]) -> None:
    """Run `code` as the module `__main__`, as the interpreter does."""
    module = ModuleType("__main__")
    vars(module).update({"__builtins__": builtins, "__cached__": None})
    vars(module).update(names)
    sys.modules["__main__"] = module
    sys.argv = argv
    _set_first_path(first_path)
    exec(code, vars(module))  # noqa: S102 - running programs is what this command is for


def _set_first_path(directory: str) -> None:
    """Replace the directory that ``python -m pmshelve`` put first; ``-P`` and ``-I`` put none."""
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = directory


def _not_found(problem: str, code: int) -> int:
    print(f"pmshelve run: {problem}", file=sys.stderr)
    return code
