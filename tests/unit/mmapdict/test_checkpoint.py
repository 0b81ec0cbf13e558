"""Checkpoint tables: built, probed, verified, merged."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import checkpoint_writer
from pmshelve.mmapdict.checkpoint import (
    BUCKET_SLOTS,
    HEADER,
    PAGE_SLOTS,
    Checkpoint,
    hash_key,
    open_chain,
)
from pmshelve.mmapdict.checkpoint_writer import PAGE_LOAD, build, merge, plan_merge
from pmshelve.storage.binary import PAGE_SIZE, U32, crc32

START = 24
END = 1 << 16
OFFSET = 1 << 16

hashes_any = st.integers(0, 2**31 - 1).map(lambda number: number << 1 | 1)
# Few different ones, at both ends: full buckets, long paths, equal hashes, wrapping.
hashes_crowded = st.sampled_from([1, 3, 2**31 | 1, 2**32 - 3, 2**32 - 1])


@st.composite
def pair_lists(draw: Any, size_max: int = 400) -> tuple[list[int], list[int]]:
    """Hashes and offsets, the latter different and in any order."""
    hashes = draw(
        st.lists(hashes_any | hashes_crowded, max_size=size_max)
        | st.lists(hashes_crowded, max_size=size_max)
    )
    offsets = [START + 30 * index for index in range(len(hashes))]
    if draw(st.booleans()):
        random.Random(len(hashes)).shuffle(offsets)
    return hashes, offsets


def build_plain(hashes: list[int], offsets: list[int], **fields: int) -> bytearray:
    with mock.patch.object(checkpoint_writer, "numpy_for", return_value=None):
        return build(hashes, offsets, **{"start": START, "end": END, **fields})


def build_numpy(hashes: Any, offsets: Any, **fields: int) -> bytearray:
    numpy = pytest.importorskip("numpy")
    with mock.patch.object(checkpoint_writer, "numpy_for", return_value=numpy):
        return build(hashes, offsets, **{"start": START, "end": END, **fields})


def open_at(data: bytes | bytearray, offset: int = OFFSET) -> Checkpoint:
    return Checkpoint(bytes(offset) + data, offset, len(data))


def by_hash(hashes: list[int], offsets: list[int]) -> dict[int, tuple[int, ...]]:
    model: dict[int, list[int]] = {}
    for offset, hash_ in sorted(zip(offsets, hashes, strict=True), reverse=True):
        model.setdefault(hash_, []).append(offset)
    return {hash_: tuple(found) for hash_, found in model.items()}


def reseal(data: bytearray, page: int) -> None:
    """Give a page that was tampered with a right CRC."""
    at = page * PAGE_SIZE
    U32.pack_into(data, at + 4092, crc32(data[at : at + 4092]))


# Hash -----------------------------------------------------------------------------------------


def test_hash_is_what_the_format_says() -> None:
    assert hash_key(b"") == 1
    assert hash_key(b"key") == crc32(b"key") * 2654435769 % 2**32 | 1


@given(st.binary())
def test_hash_is_odd_and_has_32_bits(stored: bytes) -> None:
    assert hash_key(stored) & 1
    assert 0 < hash_key(stored) < 2**32


# Round trips ----------------------------------------------------------------------------------


@given(pair_lists(), st.lists(hashes_any | hashes_crowded, max_size=20))
def test_finds_what_was_put_in_newest_first_and_nothing_else(
    pairs: tuple[list[int], list[int]], others: list[int]
) -> None:
    hashes, offsets = pairs
    table = open_at(build_plain(hashes, offsets))
    model = by_hash(hashes, offsets)
    assert table.count == len(hashes)
    for hash_ in {*hashes, *others}:
        assert table.find(hash_) == model.get(hash_, ())
        assert table.first(hash_) == model.get(hash_, (0,))[0]
    assert list(table.verify()) == []


@given(pair_lists())
def test_pairs_returns_what_was_put_in(pairs: tuple[list[int], list[int]]) -> None:
    table = open_at(build_plain(*pairs))
    found = zip(*table.pairs(), strict=True)
    assert sorted((int(h), int(o)) for h, o in found) == sorted(zip(*pairs, strict=True))


@given(pair_lists())
def test_pairs_returns_lists_without_numpy(pairs: tuple[list[int], list[int]]) -> None:
    table = open_at(build_plain(*pairs))
    with mock.patch("pmshelve.mmapdict.checkpoint.numpy_for", return_value=None):
        hashes, offsets = table.pairs()
    assert type(hashes) is type(offsets) is list
    assert by_hash(hashes, offsets) == by_hash(*pairs)


@given(pair_lists())
def test_numpy_and_plain_python_build_the_same_bytes(pairs: tuple[list[int], list[int]]) -> None:
    assert build_numpy(*pairs) == build_plain(*pairs)


def test_numpy_and_plain_python_build_the_same_bytes_of_a_large_table() -> None:
    numpy = pytest.importorskip("numpy")
    hashes = [hash_key(b"key-%08d" % index) for index in range(20_000)]
    offsets = list(range(START, START + 20_000))
    plain = build_plain(hashes, offsets)
    assert build_numpy(hashes, offsets) == plain
    assert build_numpy(numpy.array(hashes, "u4"), numpy.array(offsets, "i8")) == plain


def test_a_large_table_loads_numpy_and_a_small_one_does_not() -> None:
    pytest.importorskip("numpy")
    script = """
import sys
from pmshelve.mmapdict.checkpoint import NUMPY_COUNT_MIN
from pmshelve.mmapdict.checkpoint_writer import build
build([1] * 1000, range(1000), start=0, end=1000)
assert "numpy" not in sys.modules
build([1] * NUMPY_COUNT_MIN, range(NUMPY_COUNT_MIN), start=0, end=NUMPY_COUNT_MIN)
assert "numpy" in sys.modules
sys.modules["numpy"] = None  # as where it is not installed
build([1] * NUMPY_COUNT_MIN, range(NUMPY_COUNT_MIN), start=0, end=NUMPY_COUNT_MIN)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_offsets_past_4_gib() -> None:
    far = 1 << 50
    for make in (build_plain, build_numpy):
        data = make([7, 9], [far, far + 1], start=far, end=far + 2)
        # The table itself lies far behind in a real file; here only what it holds matters.
        U32.pack_into(data, 8, 32)
        HEADER.pack_into(data, 0, b"PMSINDEX", 32, 2, 0, 1, 0, 0)
        reseal(data, 0)
        assert open_at(data).find(7) == (far,)


# Crowding -------------------------------------------------------------------------------------


def test_a_full_bucket_overflows_into_the_next_and_wraps_around() -> None:
    hashes = [2**32 - 1] * (BUCKET_SLOTS + 3) + [1] * 4
    offsets = list(range(START, START + len(hashes)))
    data = build_plain(hashes, offsets)
    table = open_at(data)
    assert table.find(2**32 - 1) == tuple(reversed(offsets[: BUCKET_SLOTS + 3]))
    assert table.find(1) == tuple(reversed(offsets[BUCKET_SLOTS + 3 :]))
    first_bucket = struct.unpack_from("<10I", data, PAGE_SIZE)
    assert first_bucket == (1,) * 4 + (2**32 - 1,) * 3 + (0,) * 3
    assert list(table.verify()) == []


def test_a_table_without_a_free_slot_is_probed_once_around() -> None:
    data = build_plain([], [])
    for bucket in range(32):
        at = PAGE_SIZE + 128 * bucket
        struct.pack_into("<10I10Q", data, at, *[5] * 10, *range(30, 40))
    reseal(data, 1)
    table = open_at(data)
    assert table.find(7) == ()
    assert table.first(7) == 0
    assert len(table.find(5)) == PAGE_SLOTS


def test_a_hash_is_not_found_across_two_others() -> None:
    # 01 01 03 04 and 01 07 06 05, side by side in one bucket, hold 01 03 04 01 between them.
    table = open_at(build_plain([0x04030101, 0x05060701], [30, 31]))
    assert table.find(0x01040301) == ()
    assert table.first(0x01040301) == 0
    both = open_at(build_plain([0x04030101, 0x05060701, 0x01040301], [30, 31, 32]))
    assert both.find(0x01040301) == (32,)
    assert both.first(0x01040301) == 32


@pytest.mark.parametrize(
    "name",
    [
        lambda index: f"key-{index:08d}",
        str,
        lambda index: f"{index:016d}",
        lambda index: f"k{index:x}",
        lambda index: str(1_700_000_000_000 + 1000 * index),
        lambda index: str(uuid.uuid5(uuid.NAMESPACE_OID, str(index))),
        lambda index: f"/usr/lib/python3/site-packages/m{index // 50}/part_{index % 50}.py",
    ],
    ids=["padded", "digits", "wide", "hex", "times", "uuid", "path"],
)
def test_keys_in_sequence_spread_like_random_ones(name: Callable[[int], str]) -> None:
    count = 20 * PAGE_LOAD
    hashes = [hash_key(name(index).encode()) for index in range(count)]
    table = open_at(build(hashes, range(START, START + count), start=START, end=END))
    full = sum(bool(bucket[-1]) for bucket, _ in table.slots())
    # Random hashes fill 4.4 percent of the buckets, one in a thousand tables 8.
    assert full < 0.08 * table.buckets
    assert len(set(hashes)) > count - 5


# Damage ---------------------------------------------------------------------------------------


def _sample() -> tuple[list[int], list[int], bytearray]:
    hashes = [hash_key(b"%d" % index) for index in range(300)]
    offsets = [START + 50 * index for index in range(300)]
    return hashes, offsets, build_plain(hashes, offsets)


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_bit_is_noticed_when_probed(data: st.DataObject) -> None:
    hashes, _offsets, table = _sample()
    position = data.draw(st.integers(0, len(table) - 1))
    table[position] ^= 1 << data.draw(st.integers(0, 7))
    if position < PAGE_SIZE:
        with pytest.raises(CorruptionError) as info:
            open_at(table)
        assert info.value.invariant == "L7"
        return
    opened = open_at(table)
    with pytest.raises(CorruptionError) as info:
        list(map(opened.first, hashes))
    assert info.value.offset == OFFSET + position // PAGE_SIZE * PAGE_SIZE
    with pytest.raises(CorruptionError):
        opened.pairs()
    assert len(list(opened.verify())) == 1


@pytest.mark.parametrize("cut", [1, PAGE_SIZE, 2 * PAGE_SIZE, 2 * PAGE_SIZE + 1])
def test_a_truncated_table_is_refused(cut: int) -> None:
    _hashes, _offsets, table = _sample()
    data = bytes(OFFSET) + table
    with pytest.raises(CorruptionError):
        Checkpoint(data[: len(data) - cut], OFFSET, len(table))


@pytest.mark.parametrize("offset", [0, -1, OFFSET + 1, 2**63, 2**70])
def test_no_table_where_there_is_none(offset: int) -> None:
    _hashes, _offsets, table = _sample()
    with pytest.raises(CorruptionError):
        Checkpoint(bytes(OFFSET) + table, offset, len(table))


@pytest.mark.parametrize(
    "fields",
    [
        (0, 300, START, END, 0, 0),
        (63, 300, START, END, 0, 0),
        (96, 300, START, END, 0, 0),
        (2**32 - 32, 300, START, END, 0, 0),
        (64, 641, START, END, 0, 0),
        (64, 300, END, START, 0, 0),
        (64, 300, START, OFFSET + 1, 0, 0),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(fields: tuple[int, ...]) -> None:
    _hashes, _offsets, table = _sample()
    HEADER.pack_into(table, 0, b"PMSINDEX", *fields)
    reseal(table, 0)
    with pytest.raises(CorruptionError):
        open_at(table)


@given(st.integers(0), st.integers(0, 40), st.lists(hashes_any | hashes_crowded, max_size=20))
def test_any_sealed_bytes_are_probed_without_harm(seed: int, runs: int, hashes: list[int]) -> None:
    source = random.Random(seed)
    table = build_plain([], [])
    for _ in range(runs):
        run = source.randbytes(source.randrange(1, 200))
        at = PAGE_SIZE + source.randrange(PAGE_SIZE - len(run))
        table[at : at + len(run)] = run
    reseal(table, 1)
    opened = open_at(table)
    for hash_ in hashes:
        found = opened.find(hash_)
        assert opened.first(hash_) == (found[0] if found else 0)
    assert len(opened.pairs()[0]) <= PAGE_SLOTS
    assert all(isinstance(problem, str) for _, problem in opened.verify())


# Verify ---------------------------------------------------------------------------------------


def _problems(change: Callable[[bytearray], None], hashes: list[int] | None = None) -> list[str]:
    hashes = hashes or [1, 3, 5, 2**31 | 1]
    table = build_plain(hashes, [START + index for index in range(len(hashes))])
    change(table)
    reseal(table, 0)
    reseal(table, 1)
    return [problem for _, problem in open_at(table).verify()]


def _swap(table: bytearray, one: int, other: int) -> None:
    """Swap two slots of the first bucket."""
    for base, size in ((PAGE_SIZE, 4), (PAGE_SIZE + 40, 8)):
        a = slice(base + one * size, base + (one + 1) * size)
        b = slice(base + other * size, base + (other + 1) * size)
        table[a], table[b] = table[b], table[a]


def test_verify_names_slots_out_of_order() -> None:
    assert _problems(lambda table: _swap(table, 0, 2)) == [
        f"the slot of entry {START + 1} is out of place",
        f"the slot of entry {START} is out of place",
    ]


def test_verify_names_equal_hashes_out_of_order() -> None:
    problems = _problems(lambda table: _swap(table, 0, 1), [1, 1])
    assert problems == [f"the slot of entry {START + 1} is out of place"]


def test_verify_names_a_gap() -> None:
    problems = _problems(lambda table: _swap(table, 2, 3))
    assert problems == [f"the slot of entry {START + 2} is out of place"]


def test_verify_names_offsets_outside_the_range() -> None:
    problems = _problems(lambda table: struct.pack_into("<Q", table, PAGE_SIZE + 40, END))
    assert problems == [f"a slot points at {END}, out of the range covered"]


def test_verify_names_an_offset_in_a_free_slot() -> None:
    problems = _problems(lambda table: struct.pack_into("<Q", table, PAGE_SIZE + 40 + 72, 30))
    assert problems == ["a free slot has an offset"]


def test_verify_names_an_even_hash() -> None:
    problems = _problems(lambda table: struct.pack_into("<I", table, PAGE_SIZE, 2), [1])
    assert problems == ["a hash is even"]


def test_verify_names_a_wrong_count() -> None:
    problems = _problems(lambda table: struct.pack_into("<Q", table, 16, 3))
    assert problems == ["4 slots are used, and page 0 says 3"]


def test_verify_names_slots_that_wrapped_without_need() -> None:
    problems = _problems(lambda table: struct.pack_into("<I", table, PAGE_SIZE, 2**32 - 1), [1])
    assert problems == ["slots at the table's start belong to its end"]


def test_verify_names_wrapped_slots_out_of_place() -> None:
    crowd = [2**32 - 1] * (BUCKET_SLOTS + 2)
    assert _problems(lambda table: None, crowd) == []
    assert "is out of place" in _problems(lambda table: _swap(table, 0, 1), crowd)[0]
    assert "is out of place" in _problems(lambda table: _swap(table, 1, 4), crowd)[0]


# Chains ---------------------------------------------------------------------------------------


def _chain(*ranges: tuple[int, int], offsets: list[int] | None = None) -> tuple[bytes, int, int]:
    """Return a file with one checkpoint for each range, and where the newest is."""
    file = bytearray(OFFSET)
    older = (0, 0)
    for start, end in ranges:
        table = build_plain(
            [1], [start], start=start, end=end, older_offset=older[0], older_size=older[1]
        )
        older = (len(file), len(table))
        file += table
    return bytes(file), *older


def test_a_chain_is_opened_newest_first() -> None:
    chain = open_chain(*_chain((24, 100), (100, 200), (200, 200), (200, 300)))
    assert [(table.start, table.end) for table in chain] == [
        (200, 300),
        (200, 200),
        (100, 200),
        (24, 100),
    ]
    assert open_chain(b"", 0, 0) == []


def test_a_chain_whose_ranges_do_not_join_is_refused() -> None:
    with pytest.raises(CorruptionError):
        open_chain(*_chain((24, 100), (101, 200)))


def test_a_chain_that_goes_in_a_circle_is_refused() -> None:
    size = 2 * PAGE_SIZE
    table = build_plain([], [], start=24, end=24, older_offset=OFFSET, older_size=size)
    with pytest.raises(CorruptionError):
        open_chain(bytes(OFFSET) + table, OFFSET, size)


def test_the_view_can_be_replaced() -> None:
    table = open_at(build_plain([1], [30]))
    assert table.find(1) == (30,)
    table.view = bytes(table.view) + b"more"
    assert table.find(1) == (30,)


# Merging --------------------------------------------------------------------------------------


def test_plan_merge_keeps_the_chain_short_and_rewrites_fewslots() -> None:
    counts: list[int] = []
    rewritten = 0
    for _ in range(1000):
        merged = plan_merge(counts, 10)
        counts = [10 + sum(counts[:merged]), *counts[merged:]]
        rewritten += counts[0]
        assert len(counts) <= 10
    assert sum(counts) == 10_000
    assert rewritten <= 10_000 * 10


def test_plan_merge_respects_the_limit_and_catches_up_without() -> None:
    counts: list[int] = []
    for _ in range(1000):
        merged = plan_merge(counts, 10, limit=160)
        counts = [10 + sum(counts[:merged]), *counts[merged:]]
        assert counts[0] <= 160
    assert len(counts) > 50
    assert plan_merge(counts, 10) == len(counts)


def test_plan_merge_leaves_a_large_checkpoint_alone() -> None:
    assert plan_merge([], 5) == 0
    assert plan_merge([1000], 5) == 0
    assert plan_merge([5, 1000], 5) == 1
    assert plan_merge([6, 10], 5) == 2


@given(st.lists(st.lists(hashes_any | hashes_crowded, max_size=80), min_size=1, max_size=5))
def test_merged_checkpoints_find_what_the_chain_and_the_new_pairs_held(
    parts: list[list[int]],
) -> None:
    chain: list[Checkpoint] = []
    model: dict[int, tuple[int, ...]] = {}
    position = START
    for index, hashes in enumerate(parts):
        offsets = list(range(position, position + len(hashes)))
        end = position + len(hashes)
        for hash_, found in by_hash(hashes, offsets).items():
            model[hash_] = found + model.get(hash_, ())
        if index < len(parts) - 1:
            data = build(
                hashes, offsets, start=position, end=end, older_offset=index * 7, older_size=index
            )
            chain.insert(0, open_at(data))
        position = end
    data = merge(chain, hashes, offsets, start=position - len(hashes), end=position)
    table = open_at(data)
    assert (table.start, table.end) == (START, position)
    assert (table.older_offset, table.older_size) == (0, 0)
    assert {hash_: table.find(hash_) for hash_ in model} == model
    with (
        mock.patch.object(checkpoint_writer, "numpy_for", return_value=None),
        mock.patch("pmshelve.mmapdict.checkpoint.numpy_for", return_value=None),
    ):
        assert merge(chain, hashes, offsets, start=end - len(hashes), end=end) == data


@pytest.mark.parametrize("with_numpy", [True, False])
def test_merge_drops_dead_slots_of_a_hash_that_came_again(with_numpy: bool) -> None:
    numpy = pytest.importorskip("numpy") if with_numpy else None
    is_stale = mock.Mock(side_effect=lambda offset: offset != 25)

    with (
        mock.patch.object(checkpoint_writer, "numpy_for", return_value=numpy),
        mock.patch("pmshelve.mmapdict.checkpoint.numpy_for", return_value=numpy),
    ):
        old = open_at(build([1, 1, 3], [24, 25, 26], start=24, end=27))
        older_offset = 99
        data = merge(
            [old], [1, 5], [27, 28], start=27, end=29, is_stale=is_stale, older_offset=older_offset
        )
    table = open_at(data)
    assert sorted(call.args[0] for call in is_stale.call_args_list) == [24, 25]
    assert table.find(1) == (27, 25)
    assert table.find(3) == (26,)
    assert table.count == 4
    assert table.older_offset == 0  # that of the one swallowed


def test_merge_keeps_the_slots_of_different_keys_with_one_hash() -> None:
    old = open_at(build([1], [24], start=24, end=25))
    data = merge([old], [1], [25], start=25, end=26, is_stale=lambda _offset: False)
    assert open_at(data).find(1) == (25, 24)


def test_merge_of_no_checkpoint_links_to_the_older_one() -> None:
    table = open_at(merge([], [1], [30], start=24, end=31, older_offset=64, older_size=8192))
    assert (table.start, table.end) == (24, 31)
    assert (table.older_offset, table.older_size) == (64, 8192)


def test_merge_refuses_a_broken_page() -> None:
    data = build_plain([1], [30])
    data[PAGE_SIZE] ^= 4
    with pytest.raises(CorruptionError):
        merge([open_at(data)], [], [], start=END, end=END)
