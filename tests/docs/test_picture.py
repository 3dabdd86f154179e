"""The picture of a watched batch in docs/how-to/progress.md is what `watch` draws on a terminal."""

from io import StringIO
from zoneinfo import ZoneInfo

from rich.console import Console

from batchmill.client.progress import read_progress
from batchmill.client.watch import Picture
from docs.page import ROOT, blocks

_NOW = 1_795_780_800  # 2026-11-27 12:00 UTC
_PROGRESS = {
    "object": "batch.progress",
    "batch_id": "batch_0661420901c7c02d0bef0e60ef85423e16e618dab2f296",
    "status": "in_progress",
    "request_counts": {"completed": 6180, "failed": 27, "total": 12_000},
    "prompt_tokens_per_second": 5310.0,
    "completion_tokens_per_second": 1475.0,
    "usage": {"input_tokens": 781_204, "output_tokens": 217_118},
    "cost": {"amount": 0.2693, "currency": "USD"},
    "eta": _NOW + 138,
    "expires_at": _NOW + 86_080,
    "margin": 85_942,
    "queue_position": 0,
    "retries": 12,
    "error_groups": [
        {
            "id": "5f0a63e7c1d24b98",
            "status": 400,
            "code": "context_length_exceeded",
            "message": "This model's maximum context length is # tokens.",
            "count": 27,
            "custom_ids": ["doc-118", "doc-502", "doc-977"],
        }
    ],
}
_RATES = (3, 9, 17, 24, 28, 31, 35, 38, 40, 41, 42, 42, 41, 43, 44, 43, 42, 30, 22, 36, 41, 42, 43, 42.1)


def test_the_picture_is_what_watch_draws() -> None:
    """Whoever watches such a batch sees the very block of the page; a change of either shows what it should be."""
    picture, out = Picture(zone=ZoneInfo("UTC")), StringIO()
    for rate in _RATES:
        progress = read_progress(_PROGRESS | {"lines_per_second": rate})
        picture.seen(progress)
    Console(file=out, width=100, force_terminal=False).print(picture.draw(progress, _NOW))
    drawn = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    shown = [block.text for block in blocks(ROOT / "docs" / "how-to" / "progress.md") if block.language == "text"]
    assert shown == [drawn], drawn
