"""Other packages' containers: their large buffers come back as views of the file."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.codec import lies_in, load_body, stored
from tests.support.values import assert_same

MODES: list[Any] = ["r+", "r", "c", None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


@dataclasses.dataclass
class Measurement:
    name: str
    when: datetime.date
    samples: np.ndarray[Any, Any]
    parts: dict[str, Any]


@pytest.mark.parametrize("mode", MODES)
def test_dataclass_with_arrays(path: Path, mode: Any) -> None:
    value = Measurement(
        "m",
        datetime.date(2018, 3, 5),
        np.arange(5000),
        {"small": np.arange(3), "large": np.ones((90, 90), order="F")},
    )
    source = stored(path, value, mode)
    for read in (source.get(), load_body(source.content())):
        assert (read.name, read.when) == ("m", value.when)
        assert_same(read.samples, value.samples)
        assert_same(read.parts, value.parts)
        assert read.parts["large"].flags.f_contiguous
    if mode in ("r+", "r"):
        read = source.get()
        assert lies_in(read.samples, source.map)
        assert lies_in(read.parts["large"], source.map)
        assert not lies_in(read.parts["small"], source.map)
        assert read.samples.flags.writeable == (mode == "r+")


@pytest.mark.parametrize("mode", MODES)
def test_pandas_frame(path: Path, mode: Any) -> None:
    pandas = pytest.importorskip("pandas")
    count = 1000
    value = pandas.DataFrame(
        {
            "a": np.arange(count),
            "b": np.arange(count) / 2,
            "c": np.arange(count) % 2 == 0,
            "text": [f"row {number}" for number in range(count)],
            "when": pandas.date_range("2020-01-01", periods=count, freq="h"),
            "kind": pandas.Categorical(["x", "y"] * (count // 2)),
            "maybe": pandas.array([1, None] * (count // 2), dtype="Int64"),
        },
        index=pandas.Index(np.arange(count) * 10, name="id"),
    )
    source = stored(path, value, mode)
    read = source.get()
    pandas.testing.assert_frame_equal(read, value)
    pandas.testing.assert_frame_equal(load_body(source.content()), value)
    assert read.sum(numeric_only=True)["a"] == value["a"].sum()
    assert read.groupby("kind", observed=True)["b"].mean().to_dict() == pytest.approx(
        value.groupby("kind", observed=True)["b"].mean().to_dict()
    )
    if mode in ("r+", "r"):
        for column in ("a", "b"):
            assert lies_in(read[column].to_numpy(), source.map)
        assert lies_in(read.index.to_numpy(), source.map)
        assert lies_in(read["when"].to_numpy(), source.map)
    if mode != "r":
        read.loc[10, "a"] = -1
        assert read.loc[10, "a"] == -1


def test_pandas_series_and_index(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(np.arange(3000.0), name="s")
    source = stored(path, [series, series.index, pandas.Timestamp("2020-01-01"), pandas.NaT])
    read = source.get()
    pandas.testing.assert_series_equal(read[0], series)
    assert lies_in(read[0].to_numpy(), source.map)
    assert read[2:] == [pandas.Timestamp("2020-01-01"), pandas.NaT]
    pandas.testing.assert_series_equal(load_body(source.content())[0], series)


@pytest.mark.parametrize("mode", MODES)
def test_arrow_table(path: Path, mode: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    value = arrow.table(
        {
            "n": arrow.array(np.arange(5000)),
            "x": arrow.array([1.5, None] * 2500),
            "t": arrow.array([f"text {number}" for number in range(5000)]),
            "l": arrow.array([[1, 2], [3]] * 2500),
        }
    )
    source = stored(path, value, mode)
    read = source.get()
    assert read.equals(value)
    assert load_body(source.content()).equals(value)
    if mode in ("r+", "r"):
        large = [
            buffer
            for column in read.columns
            for chunk in column.chunks
            for buffer in chunk.buffers()
            if buffer is not None and buffer.size >= 1024
        ]
        assert len(large) >= 5
        start = np.frombuffer(source.map, "u1").__array_interface__["data"][0]
        for buffer in large:
            assert start <= buffer.address
            assert buffer.address + buffer.size <= start + len(source.map)


def test_arrow_record_batch_and_schema(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    batch = arrow.record_batch({"n": np.arange(2000)})
    source = stored(path, {"batch": batch, "schema": batch.schema})
    assert source.get()["batch"].equals(batch)
    assert source.get()["schema"].equals(batch.schema)
