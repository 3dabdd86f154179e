"""What others wrote, as a terminal may show it: no character moves a cursor, hides a word or turns its order round."""

import re

_ODD = re.compile(r"[^\x20-\x7e]")


def shown(text: object, most: int | None = None) -> str:
    r"""Return a text on one line, each character that cannot be seen as its escape, such as `\x1b`.

    Args:
        text: What is to be shown; None is a dash.
        most: Characters; of a longer text the beginning is shown, and an ellipsis.
    """
    if text is None:
        return "-"
    words = str(text)
    if most is not None and len(words) > most:
        words = words[: most - 1] + "…"
    return _ODD.sub(lambda found: found[0] if found[0].isprintable() else repr(found[0])[1:-1], words)


def shown_json(line: bytes) -> str:
    r"""Return a line of JSON, each character that cannot be seen as JSON's own escape: it means the same.

    Bytes that are no UTF-8 are shown as �.
    """
    return _ODD.sub(_escaped, line.decode(errors="replace"))


def money(amount: float, currency: object) -> str:
    """Return an amount as one reads it: cents from one on, below it as many digits as say something."""
    digits = f"{amount:,.2f}" if abs(amount) >= 1 else f"{amount:.8f}".rstrip("0").rstrip(".")
    return f"{digits} {shown(currency)}"


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable() or character == "\t":
        return character
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
