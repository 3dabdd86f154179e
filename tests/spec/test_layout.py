"""What is learnt of one line's layout holds for the next, and for nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.layout import Envelope, Layout, learn
from batchmill.spec.limits import OPEN
from batchmill.spec.rules import Rules

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
FIRST = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": %b}' % BODY
LAYOUT = Layout(b'{"custom_id": "', b'", "method": "POST", "url": "/v1/chat/completions", "body": ', b"}")


def right(text: bytes) -> Envelope | None:
    """Read a line that is laid out like FIRST, as json does."""
    members = json.loads(text)
    custom_id, body = members.pop("custom_id"), members.pop("body")
    if members != {"method": "POST", "url": CHAT}:
        return None
    return Envelope(json.dumps(custom_id).encode(), json.dumps(body, separators=(",", ":")).encode())


def test_a_layout_is_learnt_from_a_line() -> None:
    """It is what stands around the two values."""
    assert learn(FIRST, Envelope(b'"a"', BODY), right) == LAYOUT


def test_a_layout_splits_the_next_line() -> None:
    """The values come as they are, whatever they are."""
    text = FIRST.replace(b'"a"', b'"\xe4\xb8\xad"').replace(b'"hi"', b'"}, {"')
    assert LAYOUT.split(text) == Envelope(b'"\xe4\xb8\xad"', BODY.replace(b'"hi"', b'"}, {"'))


@pytest.mark.parametrize(
    "text",
    [
        FIRST.replace(b": ", b":"),
        FIRST.replace(b"POST", b"PUT"),
        FIRST.replace(b'"a"', b'"a\\""'),  # an escape: the text may end elsewhere
        FIRST.replace(b'"a"', b"1"),
        FIRST + b" ",
        FIRST[:-1],
        FIRST.replace(BODY, b"[]"),
        FIRST.replace(BODY, b" {}"),
        LAYOUT.before,
        LAYOUT.before + b"a",
        LAYOUT.before + b"a" + LAYOUT.between,
        b"",
    ],
)
def test_a_line_that_is_laid_out_otherwise_is_not_split(text: bytes) -> None:
    """Another frame, an escape in the custom_id, or a body that is no object: somebody must look anew."""
    assert LAYOUT.split(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            b'{"body": %b, "custom_id": "a", "method": "POST", "url": "%b"}' % (BODY, CHAT.encode()),
            Envelope(b'"a"', BODY),
        ),
        (FIRST.replace(b'"a"', b'"url"').replace(b"{", b'{"x": "url", ', 1), Envelope(b'"url"', BODY)),
    ],
)
def test_a_layout_that_cannot_be_told_is_not_learnt(text: bytes, found: Envelope) -> None:
    """The body before the custom_id, or the custom_id's text elsewhere: the probe comes back as something else."""
    assert learn(text, found, right) is None


@given(
    custom_id=st.text() | st.sampled_from(['"', "\\", "\x00", "a", '", "body": {}, "x": "', "\u2028"]),
    content=st.text(),
    spaced=st.booleans(),
    ascii_only=st.booleans(),
    extra=st.sampled_from([b"", b'"url":0,', b'"x":0,', b" "]),
    order=st.permutations(["custom_id", "method", "url", "body"]),
)
def test_what_was_learnt_changes_no_verdict(
    *, custom_id: str, content: str, spaced: bool, ascii_only: bool, extra: bytes, order: list[str]
) -> None:
    """After lines of a layout the quick look takes a line only if the careful one finds nothing wrong with it."""
    messages = [{"role": "user", "content": content}]
    values = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": "m", "messages": messages}}
    separators = (", ", ": ") if spaced else (",", ":")
    line = {name: values[name] for name in order}
    text = json.dumps(line, ensure_ascii=ascii_only, separators=separators).encode(errors="surrogatepass")
    hostile = text.replace(b'"custom_id"', extra + b'"custom_id"')
    rules = Rules(endpoint=CHAT, limits=OPEN)
    rules.quick(json.dumps(line | {"custom_id": "learnt"}, separators=separators).encode())
    for one in (text, hostile, text[:-1], text + b"}", text.replace(custom_id.encode(errors="replace"), b"\x01")):
        facts = rules.quick(one)
        assert facts is None or facts == rules.careful(one, 1)
