"""The bytes of a Segment."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batchmill.ledger.segment import DamagedSegment, Result, pack_results, unpack_results
from batchmill.spec.objects import Usage

RESULTS = st.lists(
    st.builds(
        Result,
        index=st.integers(0, 65_535),
        succeeded=st.booleans(),
        attempts=st.integers(0, 1000),
        text=st.binary(max_size=100),
        usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 9)),
    )
)


@given(RESULTS)
def test_results_come_back_in_the_order_in_which_they_came(results: list[Result]) -> None:
    """All of a Result is kept save its usage, which the batch has counted; attempts are kept up to 255."""
    data = pack_results(results)
    kept = [replace(result, attempts=min(result.attempts, 255), usage=None) for result in results]
    assert list(unpack_results(data, crc32=zlib.crc32(data))) == kept


@given(RESULTS.filter(bool), st.data())
def test_a_flipped_bit_is_seen(results: list[Result], draw: st.DataObject) -> None:
    """Not one Result is given out of bytes of which a single bit is another."""
    data = bytearray(pack_results(results))
    crc32 = zlib.crc32(data)
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    data[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(DamagedSegment):
        next(unpack_results(bytes(data), crc32=crc32))
