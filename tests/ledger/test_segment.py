"""The bytes of a Segment."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.ledger.segment import DamagedSegment, Result, pack_results, unpack_results

_RESULTS = st.builds(
    Result,
    index=st.integers(0, 65_535),
    succeeded=st.booleans(),
    attempts=st.integers(0, 255),
    text=st.binary(max_size=300),
)


@given(st.lists(_RESULTS, max_size=20))
def test_what_is_packed_is_unpacked(results: list[Result]) -> None:
    """Results come back in their order, with every byte."""
    data = pack_results(results)
    assert list(unpack_results(data, crc32=zlib.crc32(data))) == results


@given(st.lists(_RESULTS, min_size=1, max_size=5), st.data())
def test_a_flipped_bit_is_seen(results: list[Result], data: st.DataObject) -> None:
    """A single flipped bit makes the whole Segment an error, never wrong bytes."""
    packed = bytearray(pack_results(results))
    crc32 = zlib.crc32(packed)
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedSegment):
        list(unpack_results(bytes(packed), crc32=crc32))


def test_attempts_are_clamped() -> None:
    """More attempts than a byte holds are kept as 255."""
    data = pack_results([Result(index=0, succeeded=True, attempts=1000, text=b"x")])
    assert next(unpack_results(data, crc32=zlib.crc32(data))).attempts == 255
