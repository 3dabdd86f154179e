"""The lines of the result files: a reply's bytes between a constant head and tail (contract d).

On the hot path no JSON object is built: a reply is checked, spliced in, and its usage picked out.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated

import msgspec

from batchmill.spec.objects import Usage

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # as in rules: what the decoders raise
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"  # JSON's own
_LF, _CR = b"\n\r"
_BATCHES = 256  # whose ids' digests are kept begun
_EXCERPT = 2_000  # characters of an answer that is no JSON object
_STATUS = re.compile(rb'"response":(?:null|\{"status_code":(\d+))')
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


_ABSENT = msgspec.Raw()


class _Answer(msgspec.Struct, gc=False):
    """The members of a reply that tell an answer from an error; what else it holds is checked, too, and passed over."""

    error: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    results: msgspec.Raw = _ABSENT

    @property
    def is_only_error(self) -> bool:
        """Whether there is an error and no answer, whatever the status claims (reliability, E16)."""
        if bytes(self.error) == b"null":
            return False
        return not any(map(bytes, (self.choices, self.data, self.output, self.results)))


_ANSWER = msgspec.json.Decoder(_Answer)
_REPLY = msgspec.json.Decoder(_Reply)
_ENCODER = msgspec.json.Encoder()


def result_id(batch_id: str, line: int) -> str:
    """Return the id of a Result: unique, and the same however often its line is written (choice 5)."""
    digest = _begun(batch_id).copy()
    digest.update(b"%d" % line)
    return "batch_req_" + digest.hexdigest()


@lru_cache(_BATCHES)
def _begun(batch_id: str) -> blake2b:
    return blake2b(f"{batch_id}:".encode(), digest_size=16)


def answered(line_id: str, custom_id: bytes, status: int, request_id: str, body: bytes) -> bytes:
    r"""Return the line of a Request that got an HTTP answer, \n included.

    Args:
        line_id: From `result_id`.
        custom_id: The raw JSON string from the input, quotes included.
        status: The HTTP status: 2xx belongs in the output file, any other in the error file.
        request_id: Ours, of this call.
        body: From `body_of_reply`.
    """
    return b'{"id":%b,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n' % (
        _ENCODER.encode(line_id),
        custom_id,
        status,
        _ENCODER.encode(request_id),
        body,
    )


def unanswered(line_id: str, custom_id: bytes, code: str, message: str) -> bytes:
    r"""Return the line of a Request that got no HTTP answer, for the error file, \n included."""
    return b'%b"response":null,"error":{"code":%b,"message":%b}}\n' % (
        _head(line_id, custom_id),
        _ENCODER.encode(code),
        _ENCODER.encode(message),
    )


def status_of(text: bytes) -> int | None:
    """Return the HTTP status in a line of a result file; None if its Request got no HTTP answer."""
    found = _STATUS.search(text)  # the first: before it is a custom_id, in which each quote has a backslash
    return int(found[1]) if found is not None and found[1] else None


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
    is_success = 200 <= status < 300  # noqa: PLR2004 - the 2xx class
    try:
        text = raw.removeprefix(_BOM)
        answer = _ANSWER.decode(text)
        if not text.isascii():
            text.decode()  # the decoder skips strings without a look at their UTF-8
    except _UNREADABLE:
        return None if is_success else _quoted(raw)
    if is_success and answer.error is not _ABSENT and answer.is_only_error:
        return None
    body = text.strip(_SPACE)
    if _LF in body or _CR in body:  # legal between tokens only, so these are no part of any text (choice 15)
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body


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


def _quoted(raw: bytes) -> bytes:
    excerpt = raw[: _EXCERPT * _WIDEST].decode(errors="replace")[:_EXCERPT]
    error = {"message": excerpt, "type": "upstream_error", "param": None, "code": None}
    return _ENCODER.encode({"error": error})
