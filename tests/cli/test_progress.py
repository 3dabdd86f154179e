"""What one who waits for a run sees of its pace."""

import pytest

from batchmill.cli.progress import Moment, PlainLines
from batchmill.schedule.forecast import UNKNOWN, Forecast

GOING = Forecast(lines_per_second=1234.56, eta=1060)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (Moment(status="in_progress", now=1000.4, total=10, forecast=GOING), "1,234.6 lines/s, ETA 60 s"),
        (Moment(status="in_progress", now=1070.0, total=10, forecast=GOING), "1,234.6 lines/s, ETA 0 s"),
        (Moment(status="in_progress", now=1000.0, total=10, forecast=UNKNOWN), "-- lines/s, ETA --"),
        (Moment(status="finalizing", now=1000.0, total=10), ""),
    ],
    ids=["going", "overdue", "unknown", "over"],
)
def test_the_pace_is_that_of_the_forecast(moment: Moment, words: str) -> None:
    """Rate and time left are the batch's own, dashes where nobody knows them, and nothing beside `in_progress`."""
    assert moment.pace == words


def test_a_plain_line_names_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    """Status, lines, failures and pace stand in one line on stderr; once it is over there is no pace."""
    lines = PlainLines()
    lines.show(Moment(status="in_progress", now=1000.0, total=10, done=4, failed=1, forecast=GOING))
    assert capsys.readouterr().err == "in_progress: 4 of 10 lines, 1 failed, 1,234.6 lines/s, ETA 60 s\n"
    lines.show(Moment(status="completed", now=1000.0, total=10, done=10, failed=1))
    assert capsys.readouterr().err == "completed: 10 of 10 lines, 1 failed\n"
