"""Embeddings requests as one, and the reply as many."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.embeddings import Parts, pack, parts_of, unpack
from batchmill.spec.results import usage_of

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
inputs = st.one_of(texts, st.lists(texts, min_size=1, max_size=4))
layouts = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")])


def split(body: bytes) -> Parts:
    """Return the parts of a body that has some."""
    parts = parts_of(body)
    assert parts is not None
    return parts


def serve(body: bytes, separators: tuple[str, str] = (",", ":"), *, encode: bool = False) -> bytes:
    """Answer as an engine does, with a long vector of each input's own."""
    order = json.loads(body)
    asked = [order["input"]] if isinstance(order["input"], str) else order["input"]
    reply = {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": "x" * 300 if encode else vector(text), "index": place}
            for place, text in enumerate(asked)
        ],
        "model": order["model"],
        "usage": {"prompt_tokens": 7 * len(asked), "total_tokens": 7 * len(asked), "prompt_tokens_details": None},
    }
    return json.dumps(reply, separators=separators).encode()


def vector(text: str) -> list[float]:
    """Return a vector that only the text decides."""
    return [len(text) + n / 64 for n in range(100)]


def usages(replies: Sequence[bytes]) -> list[Any]:
    """Return the usage of each reply."""
    return [json.loads(reply)["usage"] for reply in replies]


def without_usage(reply: bytes) -> bytes:
    """Return a reply's bytes before its usage, and after it."""
    head, _, rest = reply.partition(b'"usage"')
    return head + rest.partition(b"}")[2]


@given(asked=st.lists(inputs, min_size=1, max_size=6), written=layouts, answered=layouts, encode=st.booleans())
def test_a_packed_request_gets_the_reply_that_it_would_get_alone(
    asked: list[str | list[str]], written: tuple[str, str], answered: tuple[str, str], *, encode: bool
) -> None:
    """Byte for byte but for the usage, whose counts add up to those of the whole."""
    bodies = [json.dumps({"model": "m", "input": each, "user": "u"}, separators=written).encode() for each in asked]
    parts = [split(body) for body in bodies]
    assert len({(part.before, part.after) for part in parts}) == 1
    whole = serve(pack(parts), answered, encode=encode)
    replies = unpack(whole, parts)
    assert replies is not None
    assert [without_usage(reply) for reply in replies] == [
        without_usage(serve(body, answered, encode=encode)) for body in bodies
    ]
    told = usages(replies)
    for count in ("prompt_tokens", "total_tokens"):
        assert sum(usage[count] for usage in told) == json.loads(whole)["usage"][count]
    assert all(usage["prompt_tokens"] == usage["total_tokens"] for usage in told)


@given(asked=st.lists(inputs, min_size=1, max_size=4))
def test_a_pack_asks_for_every_input_in_turn(asked: list[str | list[str]]) -> None:
    """The inputs stand side by side in one array, in the order of the requests, and nothing else is changed."""
    bodies = [json.dumps({"model": "m", "input": each, "dimensions": 8}).encode() for each in asked]
    flat = [text for each in asked for text in ([each] if isinstance(each, str) else each)]
    assert json.loads(pack([split(body) for body in bodies])) == {"model": "m", "input": flat, "dimensions": 8}


def test_bodies_are_cut_not_written_anew() -> None:
    """Odd spellings of keys, texts and numbers go through as they are."""
    odd = b'{ "model" :"m","in\\u0070ut": [ "\\u0041" , "b"\t] ,"n":1.00 }'
    parts = [split(odd), split(odd.replace(b'[ "\\u0041" , "b"\t]', b'"\\/"'))]
    assert parts[0] == (b'{ "model" :"m","in\\u0070ut": ', b'"\\u0041" , "b"', b' ,"n":1.00 }', 2)
    assert pack(parts) == b'{ "model" :"m","in\\u0070ut": ["\\u0041" , "b","\\/"] ,"n":1.00 }'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","input":[1,2,3]}',
        b'{"model":"m","input":[[1],[2]]}',
        b'{"model":"m","input":["a",1]}',
        b'{"model":"m","input":[]}',
        b'{"model":"m","input":{"text":"a"}}',
        b'{"model":"m","input":null}',
        b'{"model":"m"}',
        b'{"model":"m","input":"a","input":"b"}',
        b'["input","a"]',
        b'{"model":"m","input":["a"',
    ],
    ids=["tokens", "tokens-of-several", "mixed", "empty", "object", "null", "none", "twice", "array", "cut-off"],
)
def test_what_cannot_stand_beside_others_has_no_parts(body: bytes) -> None:
    """Tokens, odd inputs and bodies that readers may read in two ways are for the backend alone to judge."""
    assert parts_of(body) is None


@pytest.mark.parametrize(
    "before",
    [
        b'"a":"input",',
        b'"input ":"b",',
        b'"a":{"input":["b"]},',
        b'"a":[",",":1,"],',
        b'"a":1,"a":1,',
        b'"a":12,"a":1,',
    ],
    ids=["as-a-text", "as-a-name", "inside", "as-structure", "twice", "twice-and-longer"],
)
def test_the_input_is_found_whatever_stands_beside_it(before: bytes) -> None:
    """Texts that look like structure are none, and another member that stands twice changes nothing."""
    body = b'{%b"input":["b"],%b"c":0}' % (before, before)
    assert split(body) == (b'{%b"input":' % before, b'"b"', b',%b"c":0}' % before, 1)


TWO = [Parts(b"{", b'"aa"', b"}", 1), Parts(b"{", b'"bbbbbb","b"', b"}", 2)]
ENTRIES = b'[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]},{"embedding":[3],"index":2}]'


def test_counts_are_shared_by_the_bytes_of_the_inputs() -> None:
    """Each whole number in usage is shared, also inside it; what is no number is everybody's."""
    usage = b'{"prompt_tokens":10,"total_tokens":12,"details":{"cached_tokens":3,"kind":"x"},"extra":null,"zero":0}'
    replies = unpack(b'{"data":%b,"usage":%b}' % (ENTRIES, usage), TWO)
    assert replies is not None
    assert usages(replies) == [
        {"prompt_tokens": 2, "total_tokens": 3, "details": {"cached_tokens": 0, "kind": "x"}, "extra": None, "zero": 0},
        {"prompt_tokens": 8, "total_tokens": 9, "details": {"cached_tokens": 3, "kind": "x"}, "extra": None, "zero": 0},
    ]
    assert [usage_of(reply) is not None for reply in replies] == [True, True]


@pytest.mark.parametrize("usage", [b"", b',"usage":null'], ids=["none", "null"])
def test_a_reply_without_counts_is_shared_all_the_same(usage: bytes) -> None:
    """Each entry goes where it belongs and is counted from 0; there is nothing else to share."""
    replies = unpack(b'{"id":"e","data":%b%b}' % (ENTRIES, usage), TWO)
    assert replies == [
        b'{"id":"e","data":[{"index":0,"embedding":[1]}]%b}' % usage,
        b'{"id":"e","data":[{"index":0,"embedding":[2]},{"embedding":[3],"index":1}]%b}' % usage,
    ]


@pytest.mark.parametrize(
    "reply",
    [
        b'{"usage":{"prompt_tokens":3}}',
        b'{"data":null}',
        b'{"data":{"0":1,"1":2,"2":3}}',
        b'{"data":[]}',
        b'{"data":[{"index":0},{"index":1}]}',
        b'{"data":[{"index":0},{"index":1},{"index":2},{"index":3}]}',
        b'{"data":[{"index":0},{"index":2},{"index":1}]}',
        b'{"data":[{"index":0},{"index":1},{"index":1}]}',
        b'{"data":[{"index":0},{"index":1},{"index":2,"index":2}]}',
        b'{"data":[{"index":0},{"index":1},{"index":2.0}]}',
        b'{"data":[{"index":0},{"index":1},{}]}',
        b'{"data":[0,1,2]}',
        b'{"data":[{"index":0},{"index":1},{"index":2}],"data":[]}',
        b'{"data":%b,"usage":{"prompt_tokens":3},"usage":{"prompt_tokens":3}}' % ENTRIES,
        b'{"data":%b,"usage":{"prompt_tokens":3,"cost":0.5}}' % ENTRIES,
        b'{"data":%b,"usage":{"prompt_tokens":-3}}' % ENTRIES,
        b'{"data":%b,"usage":{"prompt_tokens":1000000000000000}}' % ENTRIES,
        b"[1]",
        b'{"data":[{"index":0}',
    ],
)
def test_a_reply_that_does_not_tell_what_is_whose_is_not_shared(reply: bytes) -> None:
    """Neither by guessing an order nor by making up numbers."""
    assert unpack(reply, TWO) is None


@given(
    named=st.lists(st.tuples(st.sampled_from(["a", "b", "input", 'in"put', "ïnput"]), inputs), min_size=1, max_size=5),
    written=layouts,
)
def test_a_body_is_cut_where_its_reader_would(
    named: list[tuple[str, str | list[str]]], written: tuple[str, str]
) -> None:
    """Whatever members there are, also several of one name: the cut is around the one input that there is, or none."""
    comma, colon = written
    body = "{" + comma.join(f"{json.dumps(name)}{colon}{json.dumps(value)}" for name, value in named) + "}"
    values = [value for name, value in named if name == "input"]
    parts = parts_of(body.encode())
    if len(values) != 1:
        assert parts is None
        return
    assert parts is not None
    before, texts, after, _ = parts
    at = [name for name, _ in named].index("input")
    asked = [values[0]] if isinstance(values[0], str) else values[0]
    assert json.loads(b"[%b]" % texts) == asked
    assert json.loads(before + b"0" + after, object_pairs_hook=list) == [*named[:at], ("input", 0), *named[at + 1 :]]
