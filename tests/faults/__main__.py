"""`make faults`: storms with fresh seeds for so long, then every planted bug; what was seen is printed as it comes.

    PYTHONPATH=src:tests python -m faults --minutes 30 [--seed N] [--keep FOLDER]

It ends with 1 as soon as a promise was broken, a run was void, or a planted bug was not found. The folder of a run that
failed is kept, and its seed replays it.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from faults.chaos import Plan, run_enclosed
from faults.planted import BLIND, BUGS, is_found
from faults.sandbox import not_permitted

_STORM_SECONDS = 155.0
_FAULTS = 640


def storm(seed: int) -> Plan:
    """Return the run of CI, with this seed."""
    return Plan(seed=seed, seconds=_STORM_SECONDS, faults=_FAULTS, outages=8)


def short_run(planted: str = "") -> Plan:
    """Return the run in which each planted bug must be found."""
    # With this seed no early batch holds a line that must go alone to its end: that would take half of the time.
    plan = Plan(seed=556, seconds=12, faults=36, stale=8, most_lines=500, planted=planted)
    if planted:
        plan = replace(plan, patience=20.0)
    if planted in BLIND:
        # A stale write must find its batch far from its end: else it would exceed the total, and its row refuses that.
        plan = replace(plan, seconds=8, faults=8, outages=0, most_lines=2500, patience=12.0)
    return plan


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(plan: Plan, totals: Counter[str]) -> bool:
    folder = Path(mkdtemp(prefix="batchmill-faults-"))
    verdict = run_enclosed(plan, folder)
    if plan.planted:
        well = is_found(plan.planted, verdict.violations)
        _say(f"{'found' if well else 'NOT FOUND'}: {plan.planted}: {', '.join(verdict.violations) or 'nothing'}")
    else:
        well = not verdict.violations and not verdict.void
        _say(verdict.report())
        totals.update({name: int(figure) for name, figure in verdict.figures.items()})
    if well:
        shutil.rmtree(folder)
    else:
        _say(f"FAILED, and kept in {folder}: {verdict.violations} {verdict.examples} {verdict.void}")
    return well


def _main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--minutes", type=float, default=10.0)
    given = options.parse_args()
    if (reason := not_permitted()) is not None:
        _say(f"NOT RUN: {reason}")
        return 1
    seed = int.from_bytes(os.urandom(3)) if given.seed is None else given.seed
    end = time.monotonic() + 60 * given.minutes
    totals: Counter[str] = Counter()
    runs = 0
    while runs == 0 or time.monotonic() < end:
        if not _run(storm(seed + runs), totals):
            return 1
        runs += 1
    faults, extra = totals["worker faults"], totals["extra executions"]
    _say(f"{runs} runs from seed {seed}: {faults} worker faults, {totals['lines']} lines, {extra} executed again")
    found = [_run(short_run(bug.__name__), totals) for bug in BUGS]
    _say(f"{sum(found)} of {len(BUGS)} planted bugs found")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(_main())
