"""How the lines of a file are laid out: most files have one writer, so what was learnt of one line holds for the next.

A layout is checked once, with a probe in place of the two values. JSON being free of context, a line with the same
bytes around another text and another object has the same members; so that only those two are left to be read.
"""

from collections.abc import Callable
from typing import NamedTuple

_ID = b"probe"
_BODY = b'{"probe":0}'


class Envelope(NamedTuple):
    """The two parts of a line that matter once it is checked, byte for byte as the user wrote them."""

    custom_id: bytes  # the raw JSON string, quotes included
    body: bytes


class Layout(NamedTuple):
    """The bytes around the two values, in this order; the quotes of the custom_id are with what stands around it."""

    before: bytes
    between: bytes
    after: bytes

    def split(self, text: bytes) -> Envelope | None:
        """Return the values of a line that is laid out like this; None if it is not, or its custom_id has escapes.

        Whether they are a valid text and object is for the caller to find out.
        """
        before, between, after = self
        start = len(before)
        end = text.find(b'"', start)
        if not (text.startswith(before) and text.startswith(between, end) and text.endswith(after)):
            return None
        token, body = text[start - 1 : end + 1], text[end + len(between) : len(text) - len(after)]
        if b"\\" in token or body[:1] != b"{" or body[-1:] != b"}":
            return None
        return Envelope(token, body)


def learn(text: bytes, found: Envelope, read: Callable[[bytes], Envelope | None]) -> Layout | None:
    """Return the layout of a line that `read` has found these values in; None if it is not of this kind.

    Args:
        text: The line.
        found: Its values.
        read: Returns the values of a line that is right but for them, or None; msgspec.MsgspecError is as good.
    """
    start = text.find(found.custom_id)
    end = start + len(found.custom_id)
    body = text.find(found.body, end)
    layout = Layout(text[: start + 1], text[end - 1 : body], text[body + len(found.body) :])
    probe = layout.before + _ID + layout.between + _BODY + layout.after
    return layout if body >= 0 and read(probe) == Envelope(b'"%b"' % _ID, _BODY) else None
