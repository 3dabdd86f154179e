"""The copy of lines in the Plan's order: each of them whole, wherever it stands."""

import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchmill.blobs.disk import DiskBlobs
from batchmill.schedule.plan import Record, unpack
from batchmill.schedule.planner import Ordering, Planner
from batchmill.spec.limits import OPEN
from batchmill.spec.lines import read_lines
from batchmill.validation.ordered import OrderedCopy


class Far(DiskBlobs):
    """A disk that says of itself what a bucket does."""

    @property
    def is_local(self) -> bool:
        """See `Blobs`."""
        return False


LINES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9000), st.booleans()), min_size=1, max_size=150)
ENDS = [b"\n", b"\r\n", b"\n\n \r\n"]
COPIED = [(at % 5, 5000, at % 2 == 0) for at in range(150)]


@settings(max_examples=25, deadline=None)
@given(
    LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n \r\n"]), st.integers(20, 160), st.sampled_from([1 << 18, 1 << 30])
)
@example(COPIED, b"\n", 160, 1 << 30)
@example(COPIED[:-1], b"\n\n \r\n", 60, 1 << 30)
@example(COPIED, b"\r\n", 160, 1 << 18)
@example([(0, 5000, False)] * 60 + COPIED + [(0, 5000, False)] * 60, b"\n", 50, 1 << 30)
def test_each_line_stands_in_the_copy(shape: list[tuple[int, int, bool]], end: bytes, piece: int, copied: int) -> None:
    """Whatever is between lines, a record's span in the copy, or else in the input, is its line, byte for byte."""
    texts = [b"%d " % at + b"x" * length for at, (_, length, _) in enumerate(shape)]
    content = b"\xef\xbb\xbf" * shape[0][2] + end.join(texts) + end * shape[-1][2]
    plan = bytearray()
    with tempfile.TemporaryDirectory() as folder:
        blobs = Far(folder=Path(folder))
        writer = blobs.writer("input")
        writer.write(content)
        writer.finish()
        copy = OrderedCopy(blobs=blobs, input_key="input", key="copy")
        by = Ordering(in_file_order=True)
        planner = Planner(write=plan.extend, ordering=by, copy=copy.lay, piece=piece, copied=copied)
        with blobs.open("input") as stream:
            raws = list(read_lines(stream.readline, OPEN.max_line_bytes))
        for raw, (model, _, _) in zip(raws, shape, strict=True):
            record = Record(raw.offset, len(raw.text), raw.number, 0, 0, 0, 0, model, 1, 0)
            planner.add(record, prompt=b"", output=0, body=b"")
        planner.finish()
        written = copy.finish()
        copy.discard()
        records = list(unpack(bytes(plan)))
        found = blobs.read_spans("copy" if written else "input", [(one.offset, one.length) for one in records])
    assert written is not None or COPIED[0] not in shape[60:61]
    assert written is None or written.bytes == len(content)
    assert {one.line: text for one, text in zip(records, found, strict=True)} == {raw.number: raw.text for raw in raws}
