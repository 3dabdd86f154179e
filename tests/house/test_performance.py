import json
from pathlib import Path

import pytest
from figure import Figure, arguments, read, report
from page import Results, Run, page

_ROOT = Path(__file__).parents[2]


def _run(*figures: Figure, failed: str = "") -> Run:
    return Run(
        command="python bench/x.py", commit="abc", date="2026-01-02", seconds=3, failed=failed, figures=[*figures]
    )


def test_the_page_is_what_the_results_say() -> None:
    """docs/performance.md is what bench/page.py makes of bench/results.json: run `make bench`, do not edit it."""
    results = Results.read((_ROOT / "bench" / "results.json").read_text(encoding="utf-8"))
    assert (_ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == page(results)


@pytest.mark.parametrize(
    ("value", "goal", "at_least", "verdict"),
    [
        (0.4, 0.4, False, "reached"),
        (0.41, 0.4, False, "missed"),
        (0.9, 0.9, True, "reached"),
        (0.89, 0.9, True, "missed"),
        (0.4, None, False, ""),
        (None, 0.4, False, "not run"),
    ],
)
def test_a_figure_stands_to_its_goal(value: float | None, goal: float | None, at_least: bool, verdict: str) -> None:
    """It reaches its goal, misses it, was not run, or has none."""
    assert Figure(group="g", name="n", value=value, goal=goal, at_least=at_least).verdict == verdict


def test_pairs_give_their_median_and_quartiles() -> None:
    """One wild pair moves neither the figure nor its spread far."""
    figure = Figure.of_pairs([1.0, 2.0, 3.0, 4.0, 400.0], group="g", name="n")
    assert (figure.low, figure.value, figure.high) == (2.0, 3.0, 4.0)


def test_figures_come_through_a_file_as_they_are(tmp_path: Path) -> None:
    """What a bench reports with `--json` is read again without loss."""
    file = arguments("x").parse_args(["--json", str(tmp_path / "figures")]).json
    figures = [
        Figure(group="g", name="n / m", value=1 / 3, low=0.1, high=0.5, goal=1.0),
        Figure(group="g", name="o", value=None),
    ]
    report(iter(figures), file)
    assert read(file) == figures


def test_the_page_hides_nothing() -> None:
    """A miss, what was not run with its reason, and a bench that failed all stand on the page."""
    missed = Figure(group="Speed", name="ours / theirs", value=2.0, goal=1.0, note="The disk.")
    absent = Figure(group="Speed", name="peer / theirs", value=None, note="NOT RUN: no such package.")
    results = Results(machine={"cores": "2"}, runs={"x": _run(missed, absent, failed="ended with 1.")})
    assert Results.read(results.text()) == results
    assert json.loads(results.text())["runs"]["x"]["figures"][0]["goal"] == 1.0
    text = page(results)
    assert "Goals reached: 0. Missed: 1. Not run: 2." in text
    assert "| Speed: ours / theirs | ≤ 1 | 2.000 |" in text
    assert "| ours / theirs | ≤ 1 | 2.000 |  | **missed** | 1 |" in text
    assert "| peer / theirs |  |  |  | not run | 2 |" in text
    assert "- Speed: peer / theirs. NOT RUN: no such package." in text
    assert "- `python bench/x.py` ended with 1." in text
