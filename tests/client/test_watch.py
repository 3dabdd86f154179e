"""What one who watches sees: pictures and lines, from progress objects alone."""

import json
from datetime import UTC
from io import StringIO

import pytest
from rich.console import Console

from batchmill.client.failure import Failed
from batchmill.client.progress import Observed, read_progress
from batchmill.client.text import money, shown, shown_json
from batchmill.client.watch import Log, Picture, span, sparkline

_NOW = 1_800_000_000.0
_RUNNING = {
    "object": "batch.progress",
    "batch_id": "batch_1",
    "status": "in_progress",
    "paused_at": None,
    "priority": 5,
    "request_counts": {"completed": 40, "failed": 10, "total": 200},
    "lines_per_second": 12.5,
    "prompt_tokens_per_second": 1200.0,
    "completion_tokens_per_second": 300.4,
    "usage": {"input_tokens": 5000, "output_tokens": 700, "total_tokens": 5700},
    "cost": {"amount": 0.0123, "currency": "USD"},
    "eta": int(_NOW) + 12,
    "expires_at": int(_NOW) + 7200,
    "margin": 7188,
    "queue_position": 2,
    "waiting": {"reason": "backend gpu-1 is unwell\x1b[2J", "since": int(_NOW) - 60},
    "retries": 3,
    "error_groups": [
        {"id": "ab12", "status": 500, "code": "oops", "message": "bad\u202e", "count": 9, "custom_ids": ["a\n", "b"]}
    ],
    "errors_ungrouped": 1,
    "new_member": {},
}


def _drawn(found: dict[str, object], width: int = 100) -> str:
    picture, out = Picture(zone=UTC), StringIO()
    progress = read_progress(found)
    picture.seen(progress)
    Console(file=out, width=width, color_system=None).print(picture.draw(progress, _NOW))
    return out.getvalue()


def test_a_picture_has_all_that_is_known() -> None:
    """State, bar, rates, deadline, use, the reason to wait and why lines failed."""
    told = _drawn(_RUNNING)
    for words in (
        "batch_1  in_progress  priority 5  2 before it",
        "50 of 200 lines  10 failed",
        "█ 12.5 lines/s · 1,200 prompt tokens/s · 300 completion tokens/s",
        "ETA 12 s (08:00) · deadline in 2 h 0 min · 2 h 0 min to spare",
        "5,000 prompt and 700 completion tokens · 0.0123 USD · 3 sends again",
        r"waits: backend gpu-1 is unwell\x1b[2J (for 60 s)",
        r"9× 500 oops: bad\u202e  [ab12]  e.g. a\n, b",
        "1× of other causes",
    ):
        assert words in told
    assert "━" in told
    assert "\x1b" not in told


def test_a_picture_fits_a_narrow_terminal() -> None:
    """No line is longer than the terminal is wide."""
    assert max(map(len, _drawn(_RUNNING, width=30).splitlines())) <= 30


def test_a_deadline_that_will_be_missed_is_told() -> None:
    """In the picture and in a log."""
    late = _RUNNING | {"margin": -600, "waiting": None}
    assert "will miss it by 10 min" in _drawn(late)
    assert "misses its deadline by 10 min" in str(Log().line(read_progress(late), _NOW))


def test_a_log_has_a_line_when_something_changed() -> None:
    """At once when the state changes, else once in five seconds at most, and nothing twice."""
    log, quiet = Log(), _RUNNING | {"waiting": None, "eta": None}
    assert log.line(read_progress(quiet), _NOW) == "in_progress: 50 of 200 lines, 10 failed, 12.5 lines/s"
    more = quiet | {"request_counts": {"completed": 41, "failed": 10, "total": 200}}
    assert log.line(read_progress(more), _NOW + 1) is None
    assert log.line(read_progress(more | {"paused_at": 5}), _NOW + 1) is not None
    assert "51 of 200" in str(log.line(read_progress(more), _NOW + 7))
    assert log.line(read_progress(more), _NOW + 14) is None


def test_little_is_enough() -> None:
    """A server that tells an id and a status alone is shown; one that tells nonsense is not."""
    assert "no line yet" in _drawn({"batch_id": "b", "status": "validating"})
    with pytest.raises(Failed, match="cannot be read"):
        read_progress({"batch_id": "b", "status": "validating", "eta": "soon"})


def test_a_rate_is_put_together_from_looks() -> None:
    """Two looks at a Batch tell lines a second, and from those when it will be done."""
    observed = Observed()
    batch = {"id": "b", "status": "in_progress", "expires_at": 1000, "request_counts": {"completed": 0, "total": 100}}
    first = observed.progress(batch, 100.0)
    assert (first["lines_per_second"], first["eta"]) == (None, None)
    second = observed.progress(batch | {"request_counts": {"completed": 15, "failed": 5, "total": 100}}, 110.0)
    assert (second["lines_per_second"], second["eta"], second["margin"]) == (2.0, 150, 850)
    assert second["misses_by"] is None
    assert read_progress(second).request_counts.done == 20
    none = observed.progress(batch | {"request_counts": {"completed": None, "failed": None, "total": None}}, 120.0)
    assert read_progress(none).request_counts.total == 0


def test_spans_and_sparklines_can_be_read() -> None:
    """The highest rate is the highest bar; a length of time has two units at most."""
    from collections import deque  # noqa: PLC0415 - of this test alone

    assert sparkline(deque([0.0, 4.0, 8.0])) == "▁▅█"
    assert sparkline(deque()) == ""
    assert [span(each) for each in (-5, 40, 720, 12_000, 900_000)] == [
        "0 s",
        "40 s",
        "12 min",
        "3 h 20 min",
        "10 d 10 h",
    ]


def test_no_character_of_a_server_moves_the_cursor() -> None:
    """Controls, marks of direction and line ends are escaped; words of every language are not; JSON stays the same."""
    assert shown("a\x1b[2J\r\n\x9b\u202e\u2028你好é") == r"a\x1b[2J\r\n\x9b\u202e\u2028你好é"
    line = '{"a":"\x9b\u202e你\U000e0001\x7f"}'
    assert shown_json(line.encode()) == r'{"a":"\u009b\u202e你\udb40\udc01\u007f"}'
    assert json.loads(shown_json(line.encode())) == json.loads(line)


@pytest.mark.parametrize(
    ("amount", "words"),
    [(1234.5, "1,234.50"), (1, "1.00"), (0.2693, "0.2693"), (0.00003, "0.00003"), (0, "0"), (0.00000001, "0.00000001")],
)
def test_money_shows_what_a_small_batch_costs_too(amount: float, words: str) -> None:
    """Cents from one on; a small batch costs what it costs, and not 0.0000."""
    assert money(amount, "USD") == f"{words} USD"
