"""The reader alone: what bytes mean does not depend on how the network cuts them."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.servers import answer
from batchmill.backends.backend import Reply
from batchmill.backends.reader import ReplyReader
from batchmill.schedule.retry import Fault

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
NO_HTTP = "the reply is not valid HTTP"


def reader() -> ReplyReader:
    """A reader with a cap of 1,000 bytes."""
    return ReplyReader(now=lambda: 1_800_000_000.0, max_reply_bytes=1_000)


def read(pieces: list[bytes]) -> tuple[Reply | None, bool]:
    """What the first reply is, and whether its connection may be used again."""
    reading = reader()
    for piece in pieces:
        reply = reading.feed(piece)
        if reply is not None:
            return reply, reading.keeps
    return None, reading.keeps


REPLIES = {
    "plain": answer(b"{}"),
    "interim first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nContent-Length: 9\r\n\r\n" + answer(b"{}"),
    "chunks, an extension, a trailer": CHUNKED + b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nRetry-After: 9\r\n\r\n",
    "retry after": answer(b"{}", OK.strip() + b"\r\nretry-AFTER: 7"),
    "empty": answer(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "too long": answer(b"x" * 1_001),
    "too long in chunks": CHUNKED + b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512 + b"\r\n0\r\n\r\n",
    "status 101": b"HTTP/1.1 101 Switch\r\n\r\n",
    "folded header": OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}


@given(name=st.sampled_from(sorted(REPLIES)), cuts=st.sets(st.integers(1, 1_200), max_size=8))
def test_how_bytes_are_cut_means_nothing(name: str, cuts: set[int]) -> None:
    """A reply is the same in one piece, in many, and byte by byte."""
    whole = REPLIES[name]
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]

    at_once = read([whole])

    assert at_once[0] is not None
    assert at_once == read([whole[start:end] for start, end in pairwise(edges)])
    assert at_once == read([whole[place : place + 1] for place in range(len(whole))])


@given(st.lists(st.binary(max_size=40), max_size=5), st.sampled_from([b"", OK, CHUNKED, OK + b"Content-Length: 9\r\n"]))
def test_no_bytes_break_the_reader(pieces: list[bytes], opening: bytes) -> None:
    """Whatever comes is a Reply or waits for more, and at its end a Reply."""
    reading = reader()
    for piece in [opening, *pieces]:
        if reading.feed(piece) is not None:
            return

    assert reading.end(lost=False).status in (None, 200)


@pytest.mark.parametrize(
    "surplus", [b"garbage", b"HTTP/1.1 200 OK", answer(b"{}"), b"HTTP/1.1 101 Switch\r\n\r\n", CHUNKED + b"9\r\nx"]
)
def test_what_follows_a_reply_is_not_read(surplus: bytes) -> None:
    """A whole reply stands whatever follows it, but its connection is not used again."""
    assert read([answer(b"{}") + surplus]) == (Reply(status=200, body=b"{}"), False)


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(b"", id="interim replies"),
        pytest.param(b"HTTP/1.1 200 ", id="a reason"),
        pytest.param(OK + b"X: ", id="a header"),
        pytest.param(OK, id="header names"),
        pytest.param(CHUNKED + b"1;", id="a chunk's extension"),
        pytest.param(CHUNKED + b"1\r\nx\r\n0\r\nX: ", id="a trailer"),
        pytest.param(CHUNKED + b"1\r\nx\r\n0\r\n", id="trailers"),
        pytest.param(b"\r\n", id="empty lines"),
    ],
)
def test_what_brings_no_body_is_bounded(opening: bytes) -> None:
    """Heads, extensions and trailers without an end are cut after 64 KiB or 1,023 headers, in whatever pieces."""
    more = {
        b"": b"HTTP/1.1 100 C\r\n\r\n",
        OK: b"X: y\r\n",
        b"\r\n": b"\r\n",
        CHUNKED + b"1\r\nx\r\n0\r\n": b"X: y\r\n",
    }
    reading = reader()
    reading.feed(opening)
    said = 0
    reply = None
    while reply is None:
        reply = reading.feed(more.get(opening, b"aaaa") * 100)
        said += 100 * len(more.get(opening, b"aaaa"))

    assert reply == Reply(fault=Fault.GARBLED, detail="the reply has over 65536 bytes of headers")
    assert said <= 67_000


def test_a_thousand_headers_are_too_many_and_five_hundred_are_not() -> None:
    """Each header counts 64 bytes beside its own."""
    few, many = (OK + b"X: y\r\n" * count + b"Content-Length: 2\r\n\r\n{}" for count in (500, 1_000))

    assert (read([few])[0], read([many])[0]) == (
        Reply(status=200, body=b"{}"),
        Reply(fault=Fault.GARBLED, detail="the reply has over 65536 bytes of headers"),
    )


@pytest.mark.parametrize(
    ("said", "lost", "reply"),
    [
        (b"", False, Fault.RESET),
        (b"HTTP/1.1 20", False, Fault.RESET),
        (OK + b"Content-Length: 2\r\n\r\n{", False, Fault.GARBLED),
        (CHUNKED + b"1\r\n{\r\n", False, Fault.GARBLED),
        (CHUNKED + b"1\r\n{\r\n0\r\nX: ", False, Fault.GARBLED),
        (OK + b"\r\n{}", True, Fault.GARBLED),
        (OK + b"\r\n{}", False, None),
    ],
)
def test_an_end_is_told_by_what_was_promised(said: bytes, lost: bool, reply: Fault | None) -> None:
    """Before a head it is a reset; within a body a reply that broke off; without a length, and in order, its end."""
    reading = reader()
    reading.feed(said)

    assert (reply, False) == (reading.end(lost=lost).fault, reading.keeps)


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (b"Content-Encoding: gzip", "the reply is compressed, though we asked for a plain one"),
        (
            b"Content-Encoding: identity\r\nContent-Encoding: gzip",
            "the reply is compressed, though we asked for a plain one",
        ),
        (b"Transfer-Encoding: gzip, chunked", "the reply comes in a transfer coding that we did not ask for"),
        (b"Transfer-Encoding: identity", "the reply comes in a transfer coding that we did not ask for"),
        (b"Content-Length: 2\r\nContent-Length: 2", NO_HTTP),
        (b"Content-Length: -2", NO_HTTP),
        (b"Content-Length: 99999999999999999999", NO_HTTP),
        (b"Content-Length : 2", NO_HTTP),
        (b"X: a\x00b", NO_HTTP),
    ],
)
def test_a_coding_or_length_that_is_not_ours_is_refused(header: bytes, detail: str) -> None:
    """Nothing is decoded, and no length is guessed."""
    assert Reply(fault=Fault.GARBLED, detail=detail) == read([OK + header + b"\r\n\r\n{}"])[0]


def test_a_body_in_tiny_chunks_takes_no_more_room_than_its_bytes() -> None:
    """A hostile server cannot blow a reply up by cutting it fine."""
    reading = ReplyReader(now=lambda: 0.0, max_reply_bytes=1 << 20)
    reading.feed(CHUNKED)
    tracemalloc.start()
    for _ in range(100):
        reading.feed(b"2\r\nab\r\n" * 1_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reply = reading.feed(b"0\r\n\r\n")

    assert reply == Reply(status=200, body=b"ab" * 100_000)
    assert most < 1_000_000


def test_a_reader_reads_one_reply_after_another() -> None:
    """Nothing of the last reply is left in the next."""
    reading = reader()
    first = reading.feed(answer(b"one", OK.strip() + b"\r\nRetry-After: 7"))
    reading.begin()
    second = reading.feed(answer(b"two"))

    assert (first, second) == (Reply(status=200, body=b"one", retry_after=7.0), Reply(status=200, body=b"two"))
