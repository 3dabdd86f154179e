"""The storm: workers on one data directory are killed, stopped and drained while batches run, close and end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from faults.__main__ import short_storm
from faults.chaos import Plan, run_enclosed
from faults.checker import RESUME_SECONDS
from faults.launcher import WINDOW
from faults.remote import Remote

# A fault costs the lines in flight and those that wait for their group commit; measured: 5 to 17.
_EXTRA_A_FAULT = 8 * WINDOW


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_storm_of_faults_loses_doubles_and_overwrites_nothing(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Kills, stops and drains in every state, outages and cancels break no promise, and each of them bit.

    `make faults` inflicts four times as many a run.
    """
    plan = short_storm(1)
    verdict = run_enclosed(plan, tmp_path)
    tell(verdict.report())
    figures = verdict.figures
    assert verdict.violations == {}, verdict.examples
    assert verdict.void == []
    assert figures["worker faults"] >= plan.faults
    assert figures["extra executions"] <= figures["worker faults"] * _EXTRA_A_FAULT


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_a_storm_past_one_machine_loses_doubles_and_overwrites_nothing(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """On PostgreSQL and a bucket, worker faults and every trouble of both break no promise, and each of them bit.

    The API answers 503 with Retry-After meanwhile, and work goes on within ten seconds of the end of each.
    """
    plan = short_storm(1, Remote.name)
    verdict = run_enclosed(plan, tmp_path)
    tell(verdict.report())
    figures = verdict.figures
    assert verdict.violations == {}, verdict.examples
    assert verdict.void == []
    assert figures["worker faults"] >= plan.faults
    assert {*plan.troubles} == {*Remote.troubles}
    assert all(figures[f"seconds to go on after {trouble}"] <= RESUME_SECONDS for trouble in plan.troubles)


@pytest.mark.timeout(300)
def test_a_line_that_kills_its_workers_is_found_out_and_hurts_no_other(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """A line that fells its worker three times alone ends as `worker_crashed`; every other one gets its answer."""
    plan = Plan(seed=1, seconds=3, faults=0, outages=0, workers=2, most_lines=12, planted="poison")
    verdict = run_enclosed(plan, tmp_path)
    tell(verdict.report())
    assert verdict.violations == {}, verdict.examples
    assert verdict.figures["completed"] == verdict.figures["batches"] >= 3
    assert verdict.figures["ended by itself with 9"] >= 3 * verdict.figures["batches"]


@pytest.mark.timeout(300)
def test_without_faults_nothing_is_sent_twice(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """Where nothing fails, each line is executed once, though four workers share one data directory.

    With the default lease: on a busy machine a worker may well be kept waiting for the harness' one second.
    """
    verdict = run_enclosed(Plan(seed=1, seconds=10, faults=0, outages=0, lease=15.0), tmp_path)
    tell(verdict.report())
    assert verdict.violations == {}, verdict.examples
    assert verdict.figures["extra executions"] == 0
