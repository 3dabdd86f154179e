"""Lines of input as odd as JSON allows, and what became of them."""

import hashlib
import json
from dataclasses import dataclass

MODEL = "witness"
_URL = b'"/v1/chat/completions"'


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLine:
    """One request: the raw JSON string of its custom_id, its body, and the whole line with its line end."""

    custom_id: bytes
    body: bytes
    text: bytes

    @property
    def digest(self) -> str:
        """The body as the witness logs it."""
        return hashlib.sha256(self.body).hexdigest()


def odd_lines(count: int, *, filling: int = 0) -> list[InputLine]:
    """Return that many good lines, all different, with `filling` characters of prompt each."""
    return [_LINES[number % len(_LINES)](number, "x" * filling) for number in range(count)]


def plain_lines(count: int, *, model: str = MODEL) -> list[InputLine]:
    """Return that many good lines as the standard library writes them."""
    return [_plain(number, "", model) for number in range(count)]


def joined(lines: list[InputLine]) -> bytes:
    """Return the input file."""
    return b"".join(line.text for line in lines)


def _plain(number: int, filling: str, model: str = MODEL) -> InputLine:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": f"{number} {filling}"}]}).encode()
    return _line(b'"line-%d"' % number, body)


def _spaced(number: int, filling: str) -> InputLine:
    body = (
        '{\t"messages" :[ {"content":"%d %s" , "role":"user"} ] ,  "model":"witness" }' % (number, filling)  # noqa: UP031 - braces
    ).encode()
    custom_id = b'"line-%d"' % number
    text = b' { "body" :%s,"url": %s ,"method"\t:"POST" , "custom_id": %s}  \r\n' % (body, _URL, custom_id)
    return InputLine(custom_id=custom_id, body=body, text=text)


def _foreign(number: int, filling: str) -> InputLine:
    content = f"{number} 你好 é \\u4f60\\ud83d\\ude00 \\/ {filling}"
    body = f'{{"model":"witness","messages":[{{"role":"user","content":"{content}"}}]}}'.encode()
    return _line(b'"line-\\u00e9-\xe4\xbd\xa0-%d"' % number, body)


def _numbers(number: int, filling: str) -> InputLine:
    odd = '"seed":123456789012345678901234567890,"temperature":0.1000000000000000055511151231257827,"top_p":1E+0'
    body = f'{{{odd},"model":"witness","messages":[{{"role":"user","content":"{number} {filling}"}}]}}'.encode()
    return _line(b'"line-%d"' % number, body)


def _repeated(number: int, filling: str) -> InputLine:
    odd = '"temperature":1,"temperature":1.0,"stop":null,"stop":[]'
    body = f'{{{odd},"model":"witness","messages":[{{"role":"user","content":"{number} {filling}"}}]}}'.encode()
    line = _line(b'"line-%d"' % number, body)
    return InputLine(custom_id=line.custom_id, body=line.body, text=b" \n" + line.text)  # a blank line before it


def _line(custom_id: bytes, body: bytes) -> InputLine:
    text = b'{"custom_id": %s, "method": "POST", "url": %s, "body": %s}\n' % (custom_id, _URL, body)
    return InputLine(custom_id=custom_id, body=body, text=text)


_LINES = (_plain, _spaced, _foreign, _numbers, _repeated)
