"""Durus checked a file's magic with `assert`, so that `python -O` took any file for its own."""

from __future__ import annotations

import os
from pathlib import Path

from pmshelve.mmapdict import mmapdict
from tests.support.processes import run_isolated

_TRY = """
import sys
from pmshelve.mmapdict import mmapdict
for path in sys.argv[1:]:
    for readonly in (True, False):
        try:
            with mmapdict(path, readonly) as store:
                dict(store)
            print("taken", path)
        except ValueError:
            pass
print("done")
"""


def test_optimised_python_refuses_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "sound"
    with mmapdict(path) as store:
        store.update({str(i): [i] * 50 for i in range(50)})
    sound = path.read_bytes()
    bad = {
        "random": os.urandom(5000),
        "header only": sound[:24] + os.urandom(500) + sound[-11:],
        "magic": b"\x80\x63" + sound[2:],
        "entry": sound[:1000] + b"\xff" * 300 + sound[1300:],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in bad]
    out = run_isolated(_TRY, *paths, block=(), flags=("-O",))
    assert out.split(b"\n")[0] == b"done", out.decode()
    for name, data in bad.items():
        assert (tmp_path / name).read_bytes() == data
