"""The lines of the result files: a reply's bytes between a constant head and tail (contract d).

On the hot path no JSON object is built: a reply is checked, spliced in, and its usage picked out.
"""

from hashlib import blake2b
from typing import Annotated

import msgspec

from batchmill.spec.objects import Usage

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # as in rules: what the decoders raise
_BOM = b"\xef\xbb\xbf"
_EXCERPT = 2_000  # characters of an answer that is no JSON object
_ANSWERED = b',"error":null}\n'  # ends the line of a Request that got an HTTP answer, and no other
_WIDEST = 4  # bytes of a character in UTF-8

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]  # sums of them stay within 64 bits


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _Reasoned(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Tokens(msgspec.Struct, gc=False):
    """`usage` in the names of chat, of responses, and of Kimi, who puts cached_tokens at the top."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Reasoned | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Cached | None = None
    output_tokens_details: _Reasoned | None = None
    cached_tokens: _Count | None = None


class _Reply(msgspec.Struct, gc=False):
    usage: _Tokens | None = None


_ANY = msgspec.json.Decoder(msgspec.Raw)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REPLY = msgspec.json.Decoder(_Reply)
_ENCODER = msgspec.json.Encoder()


def result_id(batch_id: str, line: int) -> str:
    """Return the id of a Result: unique, and the same however often its line is written (choice 5)."""
    return "batch_req_" + blake2b(f"{batch_id}:{line}".encode(), digest_size=16).hexdigest()


def answered(line_id: str, custom_id: bytes, status: int, request_id: str, body: bytes) -> bytes:
    r"""Return the line of a Request that got an HTTP answer, \n included.

    Args:
        line_id: From `result_id`.
        custom_id: The raw JSON string from the input, quotes included.
        status: The HTTP status: 2xx belongs in the output file, any other in the error file.
        request_id: Ours, of this call.
        body: From `body_of_reply`.
    """
    response = b'"response":{"status_code":%d,"request_id":%b,"body":%b}' % (status, _ENCODER.encode(request_id), body)
    return b"%b%b%b" % (_head(line_id, custom_id), response, _ANSWERED)


def unanswered(line_id: str, custom_id: bytes, code: str, message: str) -> bytes:
    r"""Return the line of a Request that got no HTTP answer, for the error file, \n included."""
    return b'%b"response":null,"error":{"code":%b,"message":%b}}\n' % (
        _head(line_id, custom_id),
        _ENCODER.encode(code),
        _ENCODER.encode(message),
    )


def is_answer(text: bytes) -> bool:
    """Say whether a line is one of a Request that got an HTTP answer."""
    return text.endswith(_ANSWERED)


def readdressed(text: bytes, *, line_id: str, custom_id: bytes, new_line_id: str, new_custom_id: bytes) -> bytes:
    """Return a line as that of another Request, which got the same."""
    old, new = _head(line_id, custom_id), _head(new_line_id, new_custom_id)
    if not text.startswith(old):
        raise ValueError("not the line of the Request that it is said to be of")
    return new + text[len(old) :]


def body_of_reply(raw: bytes, status: int) -> bytes | None:
    """Return a reply's body as a result line holds it: the backend's bytes, on one line; None if it is garbled.

    A 2xx must be a JSON object in UTF-8 that says more than `error`. Any other status always has a body: what is no
    JSON object is quoted in an error envelope, shortened.
    """
    body = _object(raw)
    if not 200 <= status < 300:  # noqa: PLR2004 - the 2xx class
        return body or _quoted(raw)
    return None if body is None or _only_error(body) else body


def usage_of(body: bytes) -> Usage | None:
    """Return the tokens that a reply counts, or None if it does not say, or not in a way that we know."""
    try:
        tokens = _REPLY.decode(body).usage
    except _UNREADABLE:
        return None
    if tokens is None or (tokens.prompt_tokens is None and tokens.input_tokens is None):
        return None
    cached = tokens.prompt_tokens_details or tokens.input_tokens_details
    reasoned = tokens.completion_tokens_details or tokens.output_tokens_details
    return Usage(
        input_tokens=tokens.prompt_tokens or tokens.input_tokens or 0,
        cached_tokens=(cached and cached.cached_tokens) or tokens.cached_tokens or 0,
        output_tokens=tokens.completion_tokens or tokens.output_tokens or 0,
        reasoning_tokens=(reasoned and reasoned.reasoning_tokens) or 0,
    )


def _head(line_id: str, custom_id: bytes) -> bytes:
    return b'{"id":%b,"custom_id":%b,' % (_ENCODER.encode(line_id), custom_id)


def _object(raw: bytes) -> bytes | None:
    """Return the JSON object in a reply on one line, else byte-identical; None if there is none."""
    try:
        body = bytes(_ANY.decode(raw.removeprefix(_BOM)))
        if not body.isascii():
            body.decode()  # the decoder skips strings without a look at their UTF-8
    except _UNREADABLE:
        return None
    if not body.startswith(b"{"):
        return None
    if b"\n" in body or b"\r" in body:  # legal between tokens only, so these are no part of any text (choice 15)
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body


def _only_error(body: bytes) -> bool:
    """Say whether a reply that claims success holds an error and no answer (reliability, E16)."""
    if b'"error"' not in body:
        return False
    members = _OBJECT.decode(body)
    if bytes(members.get("error", b"null")) == b"null":
        return False
    return members.keys().isdisjoint(("choices", "data", "output", "results"))


def _quoted(raw: bytes) -> bytes:
    excerpt = raw[: _EXCERPT * _WIDEST].decode(errors="replace")[:_EXCERPT]
    error = {"message": excerpt, "type": "upstream_error", "param": None, "code": None}
    return _ENCODER.encode({"error": error})
