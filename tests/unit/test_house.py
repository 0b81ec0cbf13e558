"""The rules of the house, as tests: what is public, what is imported when, who touches a disk."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

import pmshelve
from pmshelve import pmemobj
from pmshelve.mmapdict import mmapdict
from tests.support.processes import run_isolated

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pmshelve"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

PUBLIC = {
    "pmshelve": {"__version__", "dbm_compat", "errors", "mmapdict", "open", "pmemobj"},
    "pmshelve.mmapdict": {"EmptyNDArray", "Stats", "mmapdict"},
    "pmshelve.mmapdict.picklers": {
        "ArrayPickler",
        "BasePickler",
        "GenericPickler",
        "MaskedArrayPickler",
    },
    "pmshelve.pmemobj": {
        "MIN_POOL_SIZE",
        "OID_NULL",
        "POBJECT_TYPE_NUM",
        "MemoryManager",
        "Persistent",
        "PersistentArray",
        "PersistentDict",
        "PersistentFrozenSet",
        "PersistentList",
        "PersistentObject",
        "PersistentObjectPool",
        "PersistentSet",
        "PersistentTuple",
        "PoolSizeError",
        "create",
        "open",
    },
    "pmshelve.convert": {"KINDS", "BadEntriesError", "BadEntry", "Report", "convert"},
    "pmshelve.dbm_compat": {"mmapdict", "pmemobj", "register", "unregister"},
    "pmshelve.dbm_compat.mmapdict": {"error", "library", "open"},
    "pmshelve.dbm_compat.pmemobj": {"error", "library", "open"},
    "pmshelve.errors": {
        "ClosedError",
        "CorruptionError",
        "ForkedError",
        "FormatError",
        "LockTimeoutError",
        "NoSpaceError",
        "NotAStoreError",
        "ObjectError",
        "PickleRefusedError",
        "PmshelveError",
        "ReadOnlyError",
        "StateError",
        "StorageError",
        "StoreFailedError",
        "TransactionError",
        "UnknownTypeError",
        "UnsupportedTypeError",
        "VersionError",
        "WrongDoorError",
    },
    "pmshelve.dask": {"SpillBuffer", "SpillPlugin"},
    "pmshelve.joblib_compat": {"MmapDictBackend", "register"},
    "pmshelve.zarr_compat": {"MmapDictStore"},
    "pmshelve.zict_compat": {"MmapDict", "PmemDict"},
}
NEEDS = {
    "pmshelve.dask": "distributed",
    "pmshelve.joblib_compat": "joblib",
    "pmshelve.zarr_compat": "zarr",
    "pmshelve.zict_compat": "zict",
}


def import_public(name: str) -> Any:
    """Import a public module; skip the test where the package it is for is not installed."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_pinned_and_there(name: str) -> None:
    module = import_public(name)
    assert set(module.__all__) == PUBLIC[name]
    assert len(module.__all__) == len(PUBLIC[name])
    for public in PUBLIC[name]:
        getattr(module, public)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_classes_and_functions_are_documented(name: str) -> None:
    module = import_public(name)
    for public in PUBLIC[name]:
        thing = getattr(module, public)
        if callable(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'pmshelve' has no attribute 'nonsense'"):
        pmshelve.nonsense  # noqa: B018
    assert set(dir(pmshelve)) == PUBLIC["pmshelve"]


def test_the_version_is_pep_440_and_that_of_the_distribution() -> None:
    assert str(Version(pmshelve.__version__)) == pmshelve.__version__
    assert importlib.metadata.version("pmshelve") == pmshelve.__version__
    assert f"## {pmshelve.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# Imports --------------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    """Return what `statement` imports in a fresh interpreter."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
        f"{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_nothing_else() -> None:
    assert modules_after("import pmshelve") <= {"pmshelve", "__future__"}


@pytest.mark.parametrize(
    ("statement", "other"),
    [
        ("import pmshelve.mmapdict.mapping", "pmemobj"),
        ("import pmshelve; pmshelve.open", "pmemobj"),
        ("import pmshelve; pmshelve.dbm_compat.register", "pmemobj"),
        ("from pmshelve.pmemobj import *", "mmapdict"),
    ],
)
def test_one_store_is_imported_without_the_other(statement: str, other: str) -> None:
    assert not {f"pmshelve.{other}", f"pmshelve.dbm_compat.{other}"} & modules_after(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "import pmshelve.mmapdict",
        "from pmshelve.mmapdict import mmapdict",
        "import pmshelve; pmshelve.open",
        "import pmshelve; pmshelve.dbm_compat",
        "import pmshelve.dbm_compat.mmapdict",
        "import pmshelve.dbm_compat.pmemobj",
        "import pmshelve.cli.main, pmshelve.cli.pool",
        "import pmshelve.pmemobj",
        "from pmshelve.pmemobj import *",
        "import pmshelve; pmshelve.pmemobj.PersistentObjectPool",
    ],
)
def test_numpy_and_the_optional_packages_are_not_imported_before_they_are_needed(
    statement: str,
) -> None:
    loaded = {name.partition(".")[0] for name in modules_after(statement)}
    assert "pmshelve" in loaded
    assert not loaded & {"numpy", "zict", "dask", "distributed", "rich", "pandas", "pyarrow"}


_WITHOUT_NUMPY = """
import sys
sys.path.insert(0, sys.argv[1])
import pickle
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict import picklers
path = sys.argv[2]
expected = {"gone": 1, "bytes": b"b", "text": "t" * 70_000, "number": 2**80, "none": None, "list": [1, {2: 3}]}
expected["buffers"] = bytearray(100_000)
with mmapdict(path) as store:
    store.update(expected)
    with store.batch():
        for changed in store, expected:
            del changed["gone"], changed["bytes"]
            changed["bytes"] = b"c" * 100_000
    store.vacuum()
    assert list(store.check()) == []
with mmapdict(path, readonly=True) as store:
    assert dict(store) == expected, dict(store)
    assert list(store) == [*expected]
    assert picklers.GenericPickler in map(type, store._picklers)
with open(path, "rb") as file:
    assert pickle.load(file) == expected
if len(sys.argv) > 3:
    with mmapdict(sys.argv[3]) as store:
        assert store["text"] == "no array"
        try:
            store["array"]
        except ImportError as error:
            assert "numpy" in str(error).lower()
        else:
            raise AssertionError("an array was read without NumPy")
print("done")
"""


def test_the_store_works_without_numpy(tmp_path: Path) -> None:
    out = run_isolated(_WITHOUT_NUMPY, ROOT, tmp_path / "store", block=("numpy",))
    assert out == b"done\n"


_POOL_WITHOUT_NUMPY = """
import sys
sys.path.insert(0, sys.argv[1])
from pmshelve import pmemobj
with pmemobj.create(sys.argv[2]) as pool:
    pool.root = pool.new(pmemobj.PersistentDict, a=pool.new(pmemobj.PersistentList, [1, "x" * 50, (2, 3)]))
with pmemobj.open(sys.argv[2]) as pool:
    assert pool.root == {"a": [1, "x" * 50, (2, 3)]}
    assert pool.check() == []
    try:
        pool.new(pmemobj.PersistentArray, [1])
    except ImportError as error:
        assert "numpy" in str(error).lower()
    else:
        raise AssertionError("an array was made without NumPy")
print("done")
"""


def test_a_pool_works_without_numpy(tmp_path: Path) -> None:
    out = run_isolated(_POOL_WITHOUT_NUMPY, ROOT, tmp_path / "pool", block=("numpy",))
    assert out == b"done\n"


def test_reading_an_array_without_numpy_says_what_is_missing(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "arrays") as store:
        store["array"] = np.arange(3)
        store["text"] = "no array"
    out = run_isolated(
        _WITHOUT_NUMPY, ROOT, tmp_path / "store", tmp_path / "arrays", block=("numpy",)
    )
    assert out == b"done\n"


# Who touches a disk ---------------------------------------------------------------------------

# Modules of the standard library whose every call may touch a disk, and the calls of `os` that do.
DISK_MODULES = {"fcntl", "mmap", "shutil", "tempfile"}
DISK_CALLS_OF_OS = set(
    "chmod chown copy_file_range fallocate fchmod fchown fdatasync fdopen fsync ftruncate link "
    "lockf makedirs mkdir mkfifo open posix_fallocate pread preadv pwrite pwritev read readv "
    "remove rename renames replace rmdir sendfile symlink sync truncate unlink utime write "
    "writev".split()
)
DISK_METHODS = set(
    "hardlink_to madvise mkdir read_bytes read_text rename rmdir symlink_to touch truncate unlink "
    "write_bytes write_text writelines".split()
)


def calls_that_touch_a_disk(tree: ast.Module) -> Iterator[str]:
    """Yield the calls in a module that may reach a disk by another way than the file layer."""
    imported = [
        (node.module or "", alias.name, alias.asname or alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    layer = {known for module, name, known in imported if name == "file"}
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    own |= {known for _, _, known in imported}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            module, _, name = called.rpartition(".")
            if (
                (called == "open" and "open" not in own and not opens_nothing(node))
                or (module in DISK_MODULES and not ast.unparse(node).startswith("mmap.mmap(-1,"))
                or (module in {"os", "io"} and name in DISK_CALLS_OF_OS)
                or (module and name in DISK_METHODS and module not in layer and not unlinks(node))
            ):
                yield f"{node.lineno}: {called}"


def unlinks(call: ast.Call) -> bool:
    """Tell taking something out of a list: a path's `unlink` takes no positional argument."""
    return bool(call.args) and ast.unparse(call.func).endswith(".unlink")


def opens_nothing(call: ast.Call) -> bool:
    """Tell a look at the system's own tables, and a file object over a descriptor that is there."""
    tables = ast.unparse(call.args[0]).lstrip("f'\"").startswith("/proc/")
    return tables or any(keyword.arg == "closefd" for keyword in call.keywords)


def test_the_search_for_disk_calls_finds_them() -> None:
    source = """from pmshelve.storage import file as disk
open('x')
os.pwrite(1, b'', 0)
self.path.write_text('')
mmap.mmap(1, 1)
open('/proc/locks'), open(fd, closefd=False), disk.truncate(1, 2), os.getpid()
Path('x').unlink()
self.pages.unlink(page), mmap.mmap(-1, 10)
os.unlink('x')
"""
    assert list(calls_that_touch_a_disk(ast.parse(source))) == [
        "2: open",
        "3: os.pwrite",
        "4: self.path.write_text",
        "5: mmap.mmap",
        "7: Path('x').unlink",
        "9: os.unlink",
    ]


def test_a_function_named_open_is_not_the_builtin_one() -> None:
    source = "from pmshelve.shelf import open\nopen('x')\n"
    assert list(calls_that_touch_a_disk(ast.parse(source))) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_file_layer_touches_a_disk(module: Path) -> None:
    if module == PACKAGE / "storage" / "file.py":
        pytest.skip("this is the file layer")
    assert list(calls_that_touch_a_disk(ast.parse(module.read_text()))) == []


# What is written about it ---------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text()))


def test_the_architecture_page_names_every_module_and_no_other() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"^\| `([\w/]+\.py)`", page, re.MULTILINE))
    there = {str(path.relative_to(PACKAGE)) for path in MODULES}
    assert named == {name for name in there if not name.endswith("__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert len(blocks) == 5
    weights = space["weights"]
    assert isinstance(weights, np.ndarray)
    assert weights.shape == (1000, 1000)
    assert weights.sum() == 1e6
    assert not weights.flags.owndata
    everything = space["everything"]
    assert isinstance(everything, dict)
    assert everything.keys() == {"run 1"}
    with mmapdict("results.mmdpickle") as store:
        assert list(store) == ["run 2"]
    with pmemobj.open("notes.pool") as pool:
        assert pool.root == {"visits": 1, "names": ["somebody"]}


def test_the_readme_names_targets_that_make_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    wanted = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= wanted
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
