"""`batchmill watch`: what a stream is that is told how a batch goes."""

import io
import json

import pytest

from batchmill.cli.exit import ClientExit
from batchmill.cli.watching import watch
from client.odd import odd_server, text


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """See `io.IOBase`."""
        return True


@pytest.mark.parametrize(("kind", "draws"), [("dumb", False), ("xterm", True)])
async def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch, kind: str, draws: bool) -> None:
    """There a batch that runs is told as in a log: nothing would be seen of it until its end."""
    monkeypatch.setenv("TERM", kind)
    told = [{"batch_id": "batch_1", "status": status} for status in ("in_progress", "completed")]
    events = "".join(f"event: progress\ndata: {json.dumps(each)}\n\n" for each in told)
    stream = Terminal()
    async with odd_server() as (odd, client):
        odd.answers = [text(events.encode(), media_type="text/event-stream")]
        assert await watch(client, "batch_1", as_json=False, stream=stream) is ClientExit.GOOD
    lines = stream.getvalue().splitlines()
    assert ("\x1b" in stream.getvalue()) is draws
    assert lines[-1] == "completed" or draws
    assert (lines[0] == "in_progress") is not draws
