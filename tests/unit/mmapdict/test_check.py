"""`check` is silent on sound files and names every broken invariant, without running anything."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.check import Problem, check_bytes
from pmshelve.mmapdict.checkpoint import hash_key
from pmshelve.mmapdict.frame import DEAD, LIVE, REPLACED, TERMINATOR
from pmshelve.storage.binary import PAGE_SIZE
from tests.support.image import Image, sample
from tests.support.stores import DATA


def check(data: bytes | bytearray, *, exclusive: bool = False) -> list[Problem]:
    return list(
        check_bytes(lambda start, stop: bytes(data[start:stop]), len(data), exclusive=exclusive)
    )


def broken(data: bytes | bytearray) -> list[tuple[str, int, str | None]]:
    """Return invariant, offset and key of every problem."""
    return [(found.invariant, found.offset, found.key) for found in check(data)]


# Sound files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.glob("*.mmdpickle")), ids=lambda path: path.stem)
def test_files_of_mmappickle_are_sound(path: Path) -> None:
    assert check(path.read_bytes()) == []


def test_a_file_with_entries_of_every_kind_is_sound() -> None:
    assert check(sample().finish()) == []


def test_a_file_without_a_superblock_is_sound_wherever_its_entries_end() -> None:
    image = Image(superblock=False)
    image.add("a")
    moved = Image(superblock=False)
    moved.data += b"".join([bytes(image.data[24:])] * 1)
    data = bytearray(moved.data)
    for shift in range(0, 600, 7):
        filler = Image(superblock=False)
        filler.add_foreign("f", b"B" + struct.pack("<I", shift) + bytes(shift))
        data = filler.data + image.data[24:] + TERMINATOR
        assert check(data) == []


def test_an_empty_file_is_sound() -> None:
    assert check(b"") == []
    assert check(Image().finish()) == []


def test_what_stands_behind_the_terminator_does_not_matter() -> None:
    data = sample().finish()
    assert check(data + b"\0" * 100) == []
    assert check(data + data) == []


# L1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 2, 9, 12, 16, 17, 22, 23])
def test_l1_header(offset: int) -> None:
    data = bytearray(sample().finish())
    data[offset] ^= 0x40
    assert broken(data) == [("L1", 0, None)]


def test_l1_any_commit_number_will_do() -> None:
    image = Image(superblock=False)
    for commit in (0, 1, 2**30, -1):
        image.data[18:22] = struct.pack("<i", commit)
        assert check(image.finish()) == []


@pytest.mark.parametrize("count", [1, 10, 11])
def test_l1_terminator(count: int) -> None:
    data = sample().finish()
    found = broken(data[:-count])
    assert found[-1] == ("L1", len(data) - len(TERMINATOR), None)


def test_l1_a_terminator_amid_the_entries() -> None:
    image = Image()
    for key in "abcd":
        image.add(key, b"C\xc8" + bytes(200))
    start = image.places["b"][0]
    data = bytearray(image.finish())
    data[start : start + 60] = b"\xff" * 60
    # Behind a range that had to be searched, a terminator is believed only if nothing follows.
    data[start + 60 : start + 71] = TERMINATOR
    assert broken(data) == [("L2", start, None)]


# L2 -------------------------------------------------------------------------------------------


def test_l2_an_entry_that_is_none() -> None:
    image = sample()
    start, stop = image.places["long"]
    image.data[start:stop] = bytes(stop - start)
    found = check(image.finish())
    assert (found[0].invariant, found[0].offset) == ("L2", start)
    assert f"{stop - start} bytes are lost" in found[0].problem


def test_l2_a_head_that_can_be_mended_keeps_its_key() -> None:
    image = sample()
    start, _ = image.places["text"]
    image.data[start + 3] ^= 1
    assert broken(image.finish()) == [("L2", start, "text")]


def test_l2_opcodes_that_leave_no_value_although_the_crc_is_right() -> None:
    image = Image()
    image.add("a", b"K\x01K\x02")
    image.add("b", b"0")
    image.add_foreign("c", b"K\x01")
    data = image.finish()
    assert broken(data) == [
        ("L2", image.places["a"][0], "a"),
        ("L2", image.places["b"][0], "b"),
    ]


def test_l2_opcodes_of_mmappickle_that_leave_no_value() -> None:
    image = Image()
    image.add_foreign("a", b"K\x01K\x02")
    image.add_foreign("b", b"K\x01")
    assert broken(image.finish()) == [("L2", image.places["a"][0], None)]


def test_l2_a_reserved_key_that_is_live() -> None:
    for superblock in (True, False):
        image = Image(superblock=superblock)
        entry = frame.encode_entry(frame.FILL_KEY, b"N", False, image.end)
        start = image.end
        image.append("\0fill", entry, LIVE)
        assert broken(image.finish())[0] == ("L2", start, None)


def test_l2_the_superblock_has_lost_its_magic() -> None:
    image = sample()
    image.data[48] ^= 1
    assert broken(image.finish())[0][:2] == ("L2", 24)


# L3 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["int", "object", "dead object", "k" * 300, "\ud800", "first"])
def test_l3_a_changed_value(key: str) -> None:
    image = sample()
    _, stop = image.places[key]
    image.data[stop - 17] ^= 1
    invariants = {found.invariant for found in check(image.finish())}
    assert "L3" in invariants


def test_l3_data_of_large_values_is_not_covered() -> None:
    image = sample()
    for key in ("array", "long"):
        start, stop = image.places[key]
        middle = (start + stop) // 2
        image.data[middle] ^= 1
    assert check(image.finish()) == []


def test_l3_long_text_is_covered() -> None:
    image = Image()
    image.add_blob("a", b"text" * 100, b"\x8d")
    start, stop = image.places["a"]
    assert check(image.finish()) == []
    image.data[(start + stop) // 2] ^= 1
    assert broken(image.finish()) == [("L3", start, None)]


def test_l3_a_live_value_without_its_reduce() -> None:
    image = sample()
    start, stop = image.places["object"]
    image.data[stop - 15] = ord("0")
    assert broken(image.finish()) == [("L3", start, "object")]


def test_l3_a_dead_value_has_its_reduce_or_pop_there() -> None:
    for last, sound in ((b"R", True), (b"0", True), (b"N", False)):
        image = sample()
        start, stop = image.places["dead object"]
        image.data[stop - 15 : stop - 14] = last
        expected = [] if sound else [("L3", start, "dead object")]
        assert broken(image.finish()) == expected


# L4 -------------------------------------------------------------------------------------------


def _twice(first: int, second: int, *, settled: bool = True) -> tuple[bytes, int, int]:
    image = Image()
    image.add("a", flag=first)
    start = image.places["a"][0]
    image.add("b")
    image.add("a", flag=second)
    return image.finish(settled=settled), start, image.places["a"][0]


def test_l4_an_older_entry_is_live() -> None:
    for second in (LIVE, DEAD):
        data, older, _ = _twice(LIVE, second)
        assert broken(data) == [("L4", older, "a")]


def test_l4_the_newest_entry_has_no_successor() -> None:
    for first in (DEAD, REPLACED):
        data, _, newer = _twice(first, REPLACED)
        assert broken(data) == [("L4", newer, "a")]


def test_l4_is_asked_of_settled_files_only() -> None:
    for flags in ((LIVE, LIVE), (DEAD, REPLACED)):
        data, _, _ = _twice(*flags, settled=False)
        assert check(data) == []
        assert [found.invariant for found in check(data, exclusive=True)] == ["L4"]


# L5 -------------------------------------------------------------------------------------------


def _batch(count: int, extra: int = 0, members: int = 2) -> tuple[Image, int]:
    """Return a file with a batch of `members` entries, whose header says something else."""
    image = Image()
    image.add("before")
    start = image.end
    image.add_batch(count, 0)
    header_end = image.end
    for member in range(members):
        image.add(f"member {member}")
    header = Image()
    header.data = image.data[:start]
    header.add_batch(count, image.end - header_end + extra)
    image.data[start:header_end] = header.data[start:]
    return image, start


def test_l5_a_whole_batch() -> None:
    image, _ = _batch(2)
    image.add("after")
    assert check(image.finish()) == []
    image, _ = _batch(0, members=0)
    assert check(image.finish()) == []


@pytest.mark.parametrize(
    ("count", "extra", "members"), [(3, 0, 2), (1, 0, 2), (2, 1, 2), (2, -1, 2), (0, -5, 0)]
)
def test_l5_a_batch_whose_header_is_wrong(count: int, extra: int, members: int) -> None:
    image, start = _batch(count, extra, members)
    image.add("after")
    assert broken(image.finish()) == [("L5", start, None)]


def test_l5_a_batch_at_the_end_whose_last_members_are_missing() -> None:
    image, start = _batch(3, extra=100)
    assert broken(image.finish()) == [("L5", start, None)]


def test_l5_a_batch_with_a_member_that_is_lost() -> None:
    image, start = _batch(2)
    first, stop = image.places["member 0"]
    image.data[first:stop] = bytes(stop - first)
    found = broken(image.finish())
    assert ("L5", start, None) in found
    assert ("L2", first, None) in found


def test_l5_a_batch_with_a_member_that_can_be_mended() -> None:
    image, _ = _batch(2)
    first, _ = image.places["member 0"]
    image.data[first] ^= 1
    assert broken(image.finish()) == [("L2", first, "member 0")]


def test_l5_a_batch_in_a_batch() -> None:
    image, start = _batch(2, extra=200)
    image.add_batch(0, 0)
    assert broken(image.finish())[0] == ("L5", start, None)


def test_l5_a_batch_that_does_not_tell_its_size() -> None:
    image = Image()
    entry = frame.encode_dead(frame.BATCH_KEY, b"K\x01", image.end)
    start = image.end
    image.append("\0batch", entry, DEAD)
    assert broken(image.finish()) == [("L5", start, None)]


# L6 -------------------------------------------------------------------------------------------


def test_l6_counts() -> None:
    data = bytearray(sample().finish())
    stamp, live, dead = struct.unpack_from("<iQQ", data, 80)
    struct.pack_into("<iQQ", data, 80, stamp, live + 1, dead)
    assert broken(data) == [("L6", 80, None)]
    struct.pack_into("<iQQ", data, 80, stamp, live + 1, dead + 1)
    assert broken(data) == [("L6", 80, None)] * 2
    struct.pack_into("<iQQ", data, 80, stamp, frame.UNKNOWN, frame.UNKNOWN)
    assert check(data) == []
    struct.pack_into("<iQQ", data, 80, stamp + 1, live + 1, dead)
    assert check(data) == []


# L7 -------------------------------------------------------------------------------------------


def _indexed(**arguments: tuple[object, ...]) -> Image:
    image = Image()
    for key in "abc":
        image.add(key)
    image.add("d", flag=DEAD)
    image.add_index(**arguments)  # type: ignore[arg-type]
    image.add("after")
    return image


def test_l7_a_sound_checkpoint() -> None:
    assert check(_indexed().finish()) == []
    assert check(_indexed(without=("d",)).finish()) == []


def test_l7_a_live_entry_without_a_slot() -> None:
    image = _indexed(without=("b",))
    assert broken(image.finish()) == [("L7", image.places["b"][0], None)]


def test_l7_slots_that_point_at_nothing() -> None:
    for pair in ((hash_key(b"a"), 300), (hash_key(b"x"), 254)):
        image = _indexed(extra=(pair,))
        found = check(image.finish())
        assert [problem.invariant for problem in found] == ["L7"]
        assert f"points at {pair[1]}" in found[0].problem


def _table(image: Image) -> int:
    return frame.POINTER.unpack_from(image.data, frame.INDEX_OFFSET)[0]


def test_l7_a_broken_page() -> None:
    image = _indexed()
    image.data[_table(image) + PAGE_SIZE] ^= 1
    assert ("L7", _table(image) + PAGE_SIZE, None) in broken(image.finish())


def test_l7_a_table_that_is_none() -> None:
    image = _indexed()
    image.data[_table(image)] ^= 1
    assert broken(image.finish()) == [("L7", _table(image), None)]


def test_l7_a_pointer_with_a_wrong_crc() -> None:
    image = _indexed()
    image.data[frame.INDEX_OFFSET + 27] ^= 1
    assert broken(image.finish()) == [("L7", frame.INDEX_OFFSET, None)]


def test_l7_a_pointer_that_tells_of_another_range() -> None:
    image = _indexed()
    where, size, end = frame.POINTER.unpack_from(image.data, frame.INDEX_OFFSET)
    pointer = frame.encode_pointer(where, size, end + 1)
    image.data[frame.INDEX_OFFSET : frame.INDEX_OFFSET + 28] = pointer
    assert ("L7", where, None) in broken(image.finish())


def test_l7_a_pointer_out_of_the_file() -> None:
    image = _indexed()
    for where in (2**63, 2**64 - 1, image.end):
        pointer = frame.encode_pointer(where, 8192, 300)
        image.data[frame.INDEX_OFFSET : frame.INDEX_OFFSET + 28] = pointer
        assert [problem.invariant for problem in check(image.finish())] == ["L7"]


# L8 -------------------------------------------------------------------------------------------


def _ends_at(edge: int) -> bytes:
    image = Image()
    entry = b""
    size = edge - 254
    entry = struct.pack("<BQBB", 0x95, size - 9, 0x8C, 1) + b"a"
    entry += b"C" + bytes((size - len(entry) - 2 - 14,)) + bytes(size - len(entry) - 2 - 14)
    crc = frame.crc32(entry)
    image.append("a", entry + b"J" + struct.pack("<I", crc) + b"0J\0\0\0\x000\x880")
    assert image.end == edge
    return image.finish()


def test_l8_ends_near_the_edge_of_a_sector() -> None:
    assert check(_ends_at(501)) == []
    assert check(_ends_at(512 - 10)) != []
    assert check(_ends_at(512)) != []
    assert [problem.invariant for problem in check(_ends_at(502))] == ["L8"]
    assert [problem.invariant for problem in check(_ends_at(512 + 14 - 512 + 512))] == ["L8"]


def test_l8_data_that_is_not_aligned() -> None:
    image = Image()
    image.add("a", b"\x96" + struct.pack("<Q", 3) + b"abc")
    start, stop = image.places["a"]
    crc = frame.crc32(image.data[start : start + 21], 0)
    crc = frame.crc32(image.data[start + 24 : stop - 14], crc)
    image.data[stop - 13 : stop - 9] = struct.pack("<I", crc)
    assert broken(image.finish()) == [("L8", start, "a")]


# All together ---------------------------------------------------------------------------------


def test_every_problem_is_told_not_just_the_first() -> None:
    image = Image()
    image.add("twice")
    image.add("lost", b"C\x64" + bytes(100))
    image.add("twice")
    image.add("head")
    image.add_batch(7, 7000)
    lost, head = image.places["lost"], image.places["head"]
    image.data[lost[0] + 40] ^= 1
    image.data[head[0]] ^= 1
    data = bytearray(image.finish())
    data[2] ^= 1
    data[frame.INDEX_OFFSET] ^= 1
    assert sorted({found.invariant for found in check(data)}) == [
        "L1", "L2", "L3", "L4", "L5", "L7",
    ]  # fmt: skip


def test_a_problem_reads_well() -> None:
    assert str(Problem("L3", 254, "k", "the checksum is wrong")) == (
        "L3: the checksum is wrong (key 'k') at offset 254"
    )
    assert str(Problem("L1", 0, None, "the header is broken")) == (
        "L1: the header is broken at offset 0"
    )


class Trap:
    """Unpickling one is noticed."""

    sprung = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


def test_checking_never_unpickles() -> None:
    name = b"c" + __name__.encode() + b"\n_spring\n"
    image = Image()
    image.add_foreign("a", name + b")R")
    image.add_generic("b", b"\x80\x05" + name + b")R.")
    assert check(image.finish()) == []
    assert not Trap.sprung


class Counting:
    """A file of which only the ends are real; counts what is read of it."""

    def __init__(self, head: bytes, zeros: int, rest: bytes) -> None:
        self.head, self.rest = head, rest
        self.rest_at = len(head) + zeros
        self.size = self.rest_at + len(rest)
        self.count = 0

    def __call__(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        self.count += stop - start
        assert self.count < 1 << 24, "reads the data of a large value"
        data = bytearray(stop - start)
        for offset, piece in ((0, self.head), (self.rest_at, self.rest)):
            low, high = max(start, offset), min(stop, offset + len(piece))
            if low < high:
                data[low - start : high - start] = piece[low - offset : high - offset]
        return bytes(data)


def test_large_data_is_not_read() -> None:
    size = 1 << 40
    image = Image()
    layout = frame.lay_out(b"a", [_Huge(size)], False, image.end)
    head, blob, last = layout.parts
    assert blob is layout.blobs[0][1]
    image.data += head
    read = Counting(bytes(image.data), size, last + TERMINATOR)
    struct.pack_into("<iQQ", image.data, 80, 0, 1, 0)
    read.head = bytes(image.data)
    assert list(check_bytes(read, read.size)) == []
    assert read.count < 1 << 22


class _Huge:
    opcode, aligned, chunks = b"\x96", True, None

    def __init__(self, size: int) -> None:
        self.size = size


# Any bytes ------------------------------------------------------------------------------------


@given(st.binary(max_size=2000))
def test_any_bytes_are_checked_without_harm(data: bytes) -> None:
    if data:
        assert check(data)
    check(Image().data + data)
    check(sample().data[:3000] + data + TERMINATOR)


@given(st.lists(st.binary(max_size=30) | st.integers(0, 9000), max_size=20))
def test_any_mix_of_pieces_is_checked_without_harm(pieces: list[bytes | int]) -> None:
    whole = sample().finish()
    data = b"".join(
        whole[piece : piece + 300] if isinstance(piece, int) else piece for piece in pieces
    )
    check(data)
    check(whole[:24] + data)


@pytest.mark.parametrize("size", [9, 20, 100, 2000])
def test_a_file_made_to_be_slow_to_search_takes_linear_time(size: int) -> None:
    # Heads in heads, all of which end where the file does: each is a candidate, none is sound.
    count = 20_000
    heads = bytearray()
    end = 24 + 11 * count + size
    for index in range(count):
        heads += struct.pack("<BQBB", 0x95, end - (24 + 11 * index) - 9, 0x8C, 0)
    trailer = b"J\1\2\3\0040J\0\0\0\x000\x880"
    data = frame.encode_header(1) + heads + bytes(max(size - 14, 0)) + trailer
    read = Reads(data)
    assert list(check_bytes(read, len(data)))
    assert read.count < 60 * len(data)


class Reads:
    """Bytes that count what is read of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.count = 0

    def __call__(self, start: int, stop: int) -> bytes:
        found = self.data[start:stop]
        self.count += len(found)
        return found
