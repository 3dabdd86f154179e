"""Lines of an input by their custom_ids."""

from batchmill.blobs.blobs import Blobs
from batchmill.ledger.requests import find_requests
from blobs.put import put

LINES = [b'{"custom_id":"a"}', b'{"custom_id":"b","x":"%s"}' % (b"x" * 60), b"no JSON", b'{"custom_id":"a" }', b"[]"]


def test_what_is_no_request_is_passed_over(blobs: Blobs) -> None:
    """A line that is too long, or none, is nobody's; of two with one custom_id it is the first."""
    put(blobs, "upload_1", b"\n".join([*LINES, b'{"custom_id":"c"}']))
    spans = find_requests(blobs, "upload_1", frozenset("abc"), max_line_bytes=60)
    assert blobs.read_spans("upload_1", spans) == [LINES[0], b'{"custom_id":"c"}']
