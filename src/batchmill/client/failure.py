"""What a call can end with beside its answer: the server refuses it, or the server is not there."""

import re
from collections.abc import Mapping

import msgspec

from batchmill.client.retry import NO_USE
from batchmill.client.text import shown

_MOST = 500  # characters of what a server says
_MARKUP = re.compile(r"<(head|style|script)\b.*?(</\1>|\Z)|<[^>]*>", re.DOTALL | re.IGNORECASE)
_MISSING = frozenset({404, 405, 501})
_PASSING = frozenset({429, 502, 503, 504})


class Failed(Exception):  # noqa: N818 - it states what is so
    """The call came to nothing; the text is one sentence, and a terminal may show it, whoever wrote parts of it.

    `may_pass` says whether the same call may succeed when some minutes have passed.
    """

    may_pass = False

    def __init__(self, sentence: str) -> None:
        super().__init__(shown(sentence))


class Unreachable(Failed):
    """No answer: the server is away, or is none."""

    may_pass = True


class Refused(Failed):
    """The server refuses the call.

    Attributes:
        status: Its HTTP status.
        message: What it says, as it came.
        code: The error's code, or its type; None where it says none.
        param: The parameter that it speaks of, None if it names none.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.may_pass = status in _PASSING and code not in NO_USE
        of = "" if param is None else f" (param: {shown(param, _MOST)})"
        said = shown(message, _MOST).rstrip(".")
        super().__init__(f"The server answers {status}: {said}{of}.")

    @property
    def is_missing(self) -> bool:
        """Whether it may be that there is no such route."""
        return self.status in _MISSING


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    error: _Error | str


def refusal(status: int, body: bytes) -> Refused:
    """Return what an answer with an error status says, in the envelope of the contract (a.0) or in any other form."""
    try:
        error = msgspec.json.decode(body, type=_Envelope).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body[: 8 * _MOST].decode(errors="replace")
        if text.lstrip().startswith("<"):  # a proxy's page
            text = _MARKUP.sub(" ", text)
        return Refused(status, " ".join(text.split()) or "no reason given")
    if isinstance(error, str):
        return Refused(status, error)
    code = error.code if error.code is not None else error.type
    return Refused(status, error.message, code=None if code is None else str(code), param=error.param)


def wire(failed: Failed) -> Mapping[str, object]:
    """Return it as JSON's values, in the envelope of the contract and with the status beside."""
    if isinstance(failed, Refused):
        error = {"status": failed.status, "message": failed.message, "code": failed.code, "param": failed.param}
    else:
        code = "unreachable" if isinstance(failed, Unreachable) else "failed"
        error = {"status": None, "message": str(failed), "code": code, "param": None}
    return {"error": error}
