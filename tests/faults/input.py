"""What goes into a run: batches of odd lines whose custom_ids name how the witness answers, all from one seed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from witness import MODEL

_URL = b'"/v1/chat/completions"'

# How a behaviour of the witness must end: the status of its line in a result file, or the code of its error.
OUTCOMES: Mapping[str, int | str] = {
    "ok": 200,
    "slow": 200,
    "drip": 200,
    "400": 400,
    "429x2-ok": 200,
    "500-once": 200,
    "503-once": 200,
    "rst-once": 200,
    "rst-mid-once": 200,
    "fin-mid-once": 200,
    "garbage-once": 200,
    "hang-once": 200,
    "garbage": "invalid_backend_response",
    "poison": "worker_crashed",  # for the worker's own process: `planted.poison`
}
# Of a thousand lines. What costs a line seconds is rare: it would hold its batch where it is.
_COMMON = {
    "slow": 8,
    "drip": 8,
    "400": 20,
    "429x2-ok": 4,
    "500-once": 4,
    "rst-once": 4,
    "rst-mid-once": 4,
    "fin-mid-once": 4,
    "garbage-once": 4,
}
_RARE = {"503-once": 1, "hang-once": 1, "garbage": 1}  # of these one each, in one batch of four


class Fate(StrEnum):
    """What the client does to a batch, beside waiting for it."""

    RUN = "run"
    CANCEL = "cancel"
    EXPIRE = "expire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request: the raw JSON string of its custom_id, its body, the whole line with its line end, its place."""

    behaviour: str
    number: int  # physical line, from 1
    custom_id: bytes
    body: bytes
    text: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A batch as its client means it: `moment` is when it is cancelled, or its window; seconds from its creation."""

    name: str
    lines: Sequence[Line]
    fate: Fate
    moment: float
    deletes_input: float | None  # when the client deletes the input File, seconds from the batch's creation

    @property
    def content(self) -> bytes:
        """The input file."""
        return b"".join(line.text for line in self.lines)


def make_order(name: str, draw: random.Random, *, most_lines: int, poisoned: bool = False) -> Order:
    """Return a batch of up to so many lines; few are large, and what becomes of them is drawn, too.

    A poisoned one holds a line that kills its worker, and is left to run.
    """
    count = max(5, int(most_lines ** draw.uniform(0.55, 1.0)))
    fate = draw.choices(list(Fate), weights=(4, 4, 2))[0]
    behaviours = _behaviours(draw, count)
    if poisoned:
        behaviours[draw.randrange(count)] = "poison"
        fate = Fate.RUN
    return Order(
        name=name,
        lines=make_lines(name, behaviours),
        fate=fate,
        moment=draw.uniform(0, 5) if fate is Fate.CANCEL else float(draw.randint(2, 6)),
        deletes_input=draw.uniform(0, 6) if draw.random() < 0.3 else None,
    )


def make_lines(name: str, behaviours: Sequence[str]) -> list[Line]:
    """Return a good line for each behaviour, in forms that no encoder writes."""
    lines: list[Line] = []
    number = 0
    for index, behaviour in enumerate(behaviours):
        form = _FORMS[index % len(_FORMS)]
        custom_id, body, text = form(f"{behaviour}-{index}", f"{behaviour}-{index} {name}")
        number += 1 + text.startswith(b" \n")
        lines.append(Line(behaviour=behaviour, number=number, custom_id=custom_id, body=body, text=text))
    return lines


def _behaviours(draw: random.Random, count: int) -> list[str]:
    names = ["ok", *_COMMON]
    weights = [1000 - sum(_COMMON.values()), *_COMMON.values()]
    drawn = draw.choices(names, weights=weights, k=count)
    if draw.random() < 0.25:
        for rare in _RARE:
            drawn[draw.randrange(count)] = rare
    return drawn


_Form = Callable[[str, str], tuple[bytes, bytes, bytes]]


def _plain(name: str, prompt: str) -> tuple[bytes, bytes, bytes]:
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{prompt}"}}]}}'.encode()
    return _joined(b'"%s"' % name.encode(), body)


def _spaced(name: str, prompt: str) -> tuple[bytes, bytes, bytes]:
    body = f'{{\t"messages" :[ {{"content":"{prompt}" , "role":"user"}} ] ,  "model":"{MODEL}" }}'.encode()
    custom_id = b'"%s"' % name.encode()
    text = b' { "body" :%s,"url": %s ,"method"\t:"POST" , "custom_id": %s}  \r\n' % (body, _URL, custom_id)
    return custom_id, body, text


def _foreign(name: str, prompt: str) -> tuple[bytes, bytes, bytes]:
    # U+2028, U+0085 and U+000B end a line for `str.splitlines`; for JSON the first two are text like any other.
    said = f"{prompt} 你好 é \\u4f60\\ud83d\\ude00 \\/ \u2028 \u0085 \\u000b"
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"{said}"}}]}}'.encode()
    return _joined(b'"%s-\\u00e9-\xe4\xbd\xa0-\xe2\x80\xa8"' % name.encode(), body)


def _numbers(name: str, prompt: str) -> tuple[bytes, bytes, bytes]:
    odd = '"seed":123456789012345678901234567890,"temperature":0.1000000000000000055511151231257827,"top_p":1E+0'
    body = f'{{{odd},"model":"{MODEL}","messages":[{{"role":"user","content":"{prompt}"}}]}}'.encode()
    return _joined(b'"%s"' % name.encode(), body)


def _repeated(name: str, prompt: str) -> tuple[bytes, bytes, bytes]:
    odd = '"temperature":1,"temperature":1.0,"stop":null,"stop":[]'
    body = f'{{{odd},"model":"{MODEL}","messages":[{{"role":"user","content":"{prompt}"}}]}}'.encode()
    custom_id, body, text = _joined(b'"%s"' % name.encode(), body)
    return custom_id, body, b" \n" + text  # a blank line before it


def _joined(custom_id: bytes, body: bytes) -> tuple[bytes, bytes, bytes]:
    text = b'{"custom_id": %s, "method": "POST", "url": %s, "body": %s}\n' % (custom_id, _URL, body)
    return custom_id, body, text


_FORMS: Sequence[_Form] = (_plain, _spaced, _foreign, _numbers, _repeated)
