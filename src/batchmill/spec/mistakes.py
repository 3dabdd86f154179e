"""What people put where a request line belongs: a guess that tells what to do, beside the rule that was broken.

A guess never decides anything: the line is refused already.
"""

import re

_LOOKED_AT = 4096  # bytes of the line's beginning: a guess costs the same for any line
_TAIL = 64

_ONE_LINE = "A request must stand on one line of its own."
_BEGINNINGS = tuple(
    (re.compile(pattern, re.DOTALL), sentence)
    for pattern, sentence in (
        (rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh\d|\xfd7zXZ", "It looks like a compressed file: send the JSONL itself."),
        (rb"PK\x03\x04|%PDF-|\x89PNG|\x7fELF|PAR1|\xd0\xcf\x11\xe0", "It looks like a binary file, not JSONL."),
        (rb"\xef\xbb\xbf|\xe2\x80[\x8b-\x8f]|\xe2\x81\xa0|\xc2\xa0", "It begins with an invisible character."),
        (rb"\s*(?:#|//|/\*)", "Comments are not read."),
        (rb"\s*<", "It looks like HTML or XML."),
        (rb'\s*[{[]\s*$|\s*[}\]],?\s*$|\s*"[^"]*"\s*:', f"{_ONE_LINE} Is the JSON spread over several?"),
        (rb"\s*\[", "It looks like an array: put each object on a line of its own, without brackets."),
        (rb"\s*\{\s*(?:'|[A-Za-z_]\w*\s*:)", "JSON wants names and texts in double quotes."),
        (rb".*\}\s*\{", f"It looks like several objects. {_ONE_LINE}"),
        (rb'[^{["]*,', "It looks like CSV, not JSONL."),
    )
)
_COMMA = re.compile(rb"\}\s*,\s*$")


def likely_mistake(text: bytes) -> str | None:
    """Return a sentence that says what a line that is no JSON looks like; None if it looks like nothing known."""
    if _COMMA.search(text[-_TAIL:]) and text.lstrip().startswith(b"{"):
        return "A comma follows the object: lines are not separated by commas."
    beginning = text[:_LOOKED_AT]
    return next((sentence for pattern, sentence in _BEGINNINGS if pattern.match(beginning)), None)


def likely_mistake_of_value(text: bytes) -> str | None:
    """Return a sentence that says what a line that is JSON, but no object, looks like."""
    if text.lstrip().startswith(b"["):
        return "It is an array: put each object on a line of its own, without brackets."
    if text.lstrip().startswith(b'"'):
        return "It is a text: was the object encoded twice?"
    return None
